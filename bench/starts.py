"""Start of a container, from nothing to the command's first output: containerd against pagein.

    python bench/starts.py --images DIR --runs 5 scipy torch-cuda

Same registry on loopback, same image, runs in turn, the client's page cache and stores empty each
time; the registry's own files are read back into the page cache, so that only the client is cold.
One pull of containerd's counts for each command of a turn; they run right after it, one after
another, with the page cache as the pull has left it. Every run of pagein's starts from nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from harness import Containerd, Series, drop_caches, save, time_command, workspace
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


def containerd_starts(
    folder: Path, reference: str, codes: Iterable[str], blobs: Path
) -> list[float]:
    """Pull with an empty containerd, then run each command; seconds to first output, with pull."""
    with Containerd(folder) as containerd:
        drop_caches(blobs)
        pull = time_command(containerd.ctr("image", "pull", "--plain-http", reference)).total
        seconds = []
        for number, code in enumerate(codes):
            words = ["run", "--rm", reference, f"bench{number}", "python3", "-c", code]
            seconds.append(pull + time_command(containerd.ctr(*words)).first_output)
        subprocess.run(containerd.ctr("image", "rm", reference), check=True, capture_output=True)
    return seconds


def pagein_start(folder: Path, reference: str, code: str, blobs: Path) -> float:
    """Run with an empty pagein root; seconds to first output."""
    drop_caches(blobs)
    command = [*PAGEIN, "run", "--rm", reference, "--", "python3", "-c", code]
    timing = time_command(command, {"PAGEIN_ROOT": str(folder)})
    shutil.rmtree(folder)
    return timing.first_output


def publish(layout: Path, image: str, reference: str) -> None:
    """Push an image as it is, and convert it there."""
    source, target = f"oci:{layout}:{image}", f"docker://{reference}"
    command = ["skopeo", "copy", "-q", "--dest-tls-verify=false", source, target]
    subprocess.run(command, check=True)
    done = subprocess.run(
        [*PAGEIN, "convert", "--json", reference], check=True, capture_output=True
    )
    print(image, "converted:", json.loads(done.stdout), flush=True)


def measure(folder: Path, reference: str, image: str, runs: int, blobs: Path) -> list[Series]:
    """Take turns; return containerd's and our series of each command."""
    commands = COMMANDS[image]
    theirs = [Series(f"{image}: {title}: containerd") for title in commands]
    ours = [Series(f"{image}: {title}: pagein") for title in commands]
    for _ in range(runs):
        seconds = containerd_starts(folder / "containerd", reference, commands.values(), blobs)
        for series, value in zip(theirs, seconds, strict=True):
            series.values.append(value)
        for series, code in zip(ours, commands.values(), strict=True):
            series.values.append(pagein_start(folder / "root", reference, code, blobs))
    for title, one, other in zip(commands, theirs, ours, strict=True):
        ratio = one.median / other.median
        print(f"{image:14} {title:14} containerd {one.cell()}  pagein {other.cell()}"
              f"  x{ratio:.1f}", flush=True)  # fmt: skip
    return [*theirs, *ours]


def main() -> None:
    """Read the command line and run all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=Path("/var/tmp/pagein-bench"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("names", nargs="*", default=list(COMMANDS), metavar="IMAGE")
    arguments = parser.parse_args()
    series: list[Series] = []
    with workspace() as folder, DockerRegistry(folder / "registry") as registry:
        for image in arguments.names:
            reference = f"{registry.host}/{image}:latest"
            publish(arguments.images / "layout", image, reference)
            series += measure(folder, reference, image, arguments.runs, registry.data)
            save("starts", series)


if __name__ == "__main__":
    main()
