"""Run every benchmark, and write the tables of docs/benchmarks.md from what they saved.

    python bench/run.py [--images DIR] [--runs 5] [--tables-only]

Builds the images first where they are not there yet: 4 GB of downloads, 30 GB of disk.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tables import write_tables

HERE = Path(__file__).parent


def bench(script: str, *words: str) -> None:
    """Run one script of this folder, and stop where it fails."""
    print(f"\n== {script} {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, HERE / script, *words], check=True)


def main() -> None:
    """Read the command line and run all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=Path("/var/tmp/pagein-bench"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tables-only", action="store_true", help="only rewrite the page")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        images, runs = ["--images", str(arguments.images)], ["--runs", str(arguments.runs)]
        bench("images.py", "--out", str(arguments.images), "debian-python", "scipy", "torch-cuda")
        bench("starts.py", *images, *runs)
        bench("pods.py", *images, *runs, "--imports")
        bench("daemon_memory.py")
        bench("device_reads.py", "--rounds", str(arguments.runs))
        bench("fetch_path.py", *runs)
        bench("convert.py", "--image", f"{arguments.images}/layout:torch-cuda", "--jobs", "2")
        bench("versions.py", *images)
        bench("command.py", *images)
    write_tables()


if __name__ == "__main__":
    main()
