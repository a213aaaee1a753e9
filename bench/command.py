"""What the command line itself costs: its start, and `pagein run` above the runtime that it calls.

    python bench/command.py --runs 11

Everything is in the page cache and in pagein's cache. `runc run` starts the same command from the
same tree, mounted before, with the bundle that `runc spec` writes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from harness import Series, save, time_command, workspace
from pagein.testing.docker_registry import DockerRegistry
from starts import PAGEIN, publish

IMAGE = "debian-python"
COMMAND = ["/bin/echo", "done"]


def write_bundle(folder: Path, rootfs: Path) -> Path:
    """Write what `runc run` needs for the command, on a read-only root."""
    folder.mkdir()
    subprocess.run(["runc", "spec"], cwd=folder, check=True)
    spec = json.loads((folder / "config.json").read_text())
    spec["process"] |= {"args": COMMAND, "terminal": False}
    spec["root"] = {"path": str(rootfs), "readonly": True}
    (folder / "config.json").write_text(json.dumps(spec))
    return folder


def main() -> None:
    """Take turns; print and save the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=Path("/var/tmp/pagein-bench"))
    parser.add_argument("--runs", type=int, default=11)
    arguments = parser.parse_args()
    with workspace() as folder, DockerRegistry(folder / "registry") as registry:
        os.environ["PAGEIN_ROOT"] = str(folder / "root")
        reference = f"{registry.host}/{IMAGE}:latest"
        publish(arguments.images / "layout", IMAGE, reference)
        target = folder / "tree"
        target.mkdir()
        subprocess.run([*PAGEIN, "mount", reference, str(target)], check=True)
        bundle = write_bundle(folder / "bundle", target)
        cases = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "pagein --help": [*PAGEIN, "--help"],
            "runc run": ["runc", "run", "--bundle", str(bundle), "bench"],
            "pagein run": [*PAGEIN, "run", "--rm", reference, "--", *COMMAND],
        }
        series = {title: Series(title) for title in cases}
        try:
            for command in cases.values():
                time_command(command)
            for _ in range(arguments.runs):
                for title, command in cases.items():
                    series[title].values.append(time_command(command).total)
        finally:
            subprocess.run([*PAGEIN, "umount", str(target)], check=True)
    for title, one in series.items():
        print(f"{title:16} {one.median * 1000:6.0f} ms")
    print(save("command", list(series.values())))


if __name__ == "__main__":
    main()
