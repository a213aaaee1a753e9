"""Run every benchmark, and write the tables of docs/benchmarks.md from what they saved.

    python bench/run.py [--images DIR] [--runs 5] [--quick] [--tables-only]

Builds the images first where they are not there yet: 4 GB of downloads, 25 GB of disk. The sweeps
go on where they were interrupted. --quick runs the small images and the sweeps once, in 10 minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from images import IMAGES
from tables import write_tables

HERE = Path(__file__).parent
BIG = ("torch", "torch-other", "transformer")
QUICK = ("debian", "perl", "node", "nginx", "redis", "flask")


def bench(script: str, *words: str) -> None:
    """Run one script of this folder, and stop where it fails."""
    print(f"\n== {script} {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, HERE / script, *words], check=True)


def quick(images: list[str]) -> None:
    """Run what shows that all of it works."""
    bench("images.py", "--out", images[1], "debian-python", "perl", "node", "nginx", "redis",
          "flask")  # fmt: skip
    once = [*images, "--runs", "1"]
    bench("coldstart.py", *once, "--minutes", "6", "--links", "1000/5", "--", *QUICK)
    bench("share.py", *once, "--image", "flask", "--shares", "10", "100")
    bench("misses.py", *once, "--image", "node", "--reads", "50")
    bench("together.py", *once, "--counts", "1", "8")


def sweeps(images: list[str], runs: list[str]) -> None:
    """Run the matrix of cold starts, and what changes one thing at a time."""
    bench("images.py", "--out", images[1], *IMAGES)
    bench("coldstart.py", *images, *runs)
    bench("coldstart.py", *images, *runs, "--links", "1000/5", "unlimited/0", "200/5", "--", *BIG)
    trips = ["1000/1", "1000/20", "1000/100", "1000/200"]
    bench("coldstart.py", *images, *runs, "--links", *trips, "--", "python", "flask")
    bench("share.py", *images, "--links", "100/5", "1000/5", "unlimited/0")
    bench("misses.py", *images)
    bench("together.py", *images, *runs)


def others(images: list[str], runs: list[str]) -> None:
    """Run what looks at single parts."""
    bench("pods.py", *images, *runs, "--imports", "debian-python", "scipy", "torch-cuda")
    bench("daemon_memory.py")
    bench("device_reads.py", "--rounds", runs[1])
    bench("fetch_path.py", *runs)
    bench("convert.py", "--image", f"{images[1]}/layout:torch-cuda", "--jobs", "2")
    bench("versions.py", *images)
    bench("command.py", *images)


def main() -> None:
    """Read the command line and run all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=Path("/var/tmp/pagein-bench"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small images, one run each")
    parser.add_argument("--tables-only", action="store_true", help="only rewrite the page")
    arguments = parser.parse_args()
    images, runs = ["--images", str(arguments.images)], ["--runs", str(arguments.runs)]
    if arguments.quick:
        quick(images)
    elif not arguments.tables_only:
        sweeps(images, runs)
        others(images, runs)
    write_tables()


if __name__ == "__main__":
    main()
