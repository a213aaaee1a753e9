"""Start of a container, from nothing to the command's first output: containerd against pagein.

    python bench/starts.py --images DIR --runs 5 scipy torch-cuda

Same registry on loopback, same image, runs in turn, the client's page cache and stores empty each
time; the registry's own files are read back into the page cache, so that only the client is cold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from harness import Containerd, Series, Timing, drop_caches, save, time_command, workspace
from pagein.testing.docker_registry import DockerRegistry

PAGEIN = [sys.executable, "-m", "pagein"]
COMMANDS = {
    "debian-python": {"print(1)": "print(1)"},
    "scipy": {
        "print(1)": "print(1)",
        "import scipy": "import numpy, scipy.stats, pandas, sklearn; print(numpy.__version__)",
    },
    "torch-cuda": {
        "print(1)": "print(1)",
        "import torch": "import torch; print(torch.ones(3).sum())",
    },
}


def containerd_start(folder: Path, reference: str, code: str, blobs: Path) -> Timing:
    """Pull and run with an empty containerd; both count."""
    with Containerd(folder) as containerd:
        drop_caches(blobs)
        pull = time_command(containerd.ctr("image", "pull", "--plain-http", reference))
        run = time_command(containerd.ctr("run", "--rm", reference, "bench", "python3", "-c", code))
        subprocess.run(containerd.ctr("image", "rm", reference), check=True, capture_output=True)
    return Timing(pull.total + run.first_output, pull.total + run.total)


def pagein_start(folder: Path, reference: str, code: str, blobs: Path) -> Timing:
    """Run with an empty pagein root."""
    drop_caches(blobs)
    environment = {"PAGEIN_ROOT": str(folder)}
    return time_command(
        [*PAGEIN, "run", "--rm", reference, "--", "python3", "-c", code], environment
    )


def main() -> None:
    """Read the command line and run all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layout", type=Path, default=Path("/var/tmp/pagein-bench/layout"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--containerd-runs", type=int, help="default: as --runs")
    parser.add_argument("images", nargs="*", default=list(COMMANDS), metavar="IMAGE")
    arguments = parser.parse_args()
    series: list[Series] = []
    with workspace() as folder, DockerRegistry(folder / "registry") as registry:
        blobs = registry.data
        for image in arguments.images:
            reference = f"{registry.host}/{image}:latest"
            source = f"oci:{arguments.layout}:{image}"
            subprocess.run(
                [
                    "skopeo",
                    "copy",
                    "-q",
                    "--dest-tls-verify=false",
                    source,
                    f"docker://{reference}",
                ],
                check=True,
            )
            convert = subprocess.run(
                [*PAGEIN, "convert", "--json", reference], check=True, capture_output=True
            )
            print(image, "converted:", json.loads(convert.stdout), flush=True)
            for title, code in COMMANDS[image].items():
                ours = Series(f"{image}: {title}: pagein run")
                theirs = Series(f"{image}: {title}: containerd pull + run")
                for turn in range(arguments.runs):
                    if turn < (arguments.containerd_runs or arguments.runs):
                        timing = containerd_start(folder / "containerd", reference, code, blobs)
                        theirs.values.append(timing.first_output)
                    timing = pagein_start(
                        folder / f"root-{image}-{title}-{turn}", reference, code, blobs
                    )
                    ours.values.append(timing.first_output)
                    subprocess.run(
                        ["rm", "-rf", str(folder / f"root-{image}-{title}-{turn}")], check=True
                    )
                series += [theirs, ours]
                print(f"{image:14} {title:14} containerd {theirs.cell()}  pagein {ours.cell()}"
                      f"  x{theirs.median / ours.median:.1f}", flush=True)  # fmt: skip
    print(save("starts", series))


if __name__ == "__main__":
    main()
