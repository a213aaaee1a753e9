"""How long a read waits for a sector that is not here: p50, p99 and p99.9 for each link.

    python bench/misses.py --image scipy --links unlimited/0 1000/5 --reads 400

One thread reads 4 KiB at a random place of each sector, through the mounted tree, and times each
read; every sector once, in random order, until all are read or --reads is reached. The kernel's
read-ahead of random reads stays within the sector.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

from cells import Cells
from harness import workspace
from network import Link, Network
from publishing import PAGEIN, Published
from systems import Stage

SECTOR = 4 << 20


def places(tree: Path, seed: int) -> list[tuple[Path, int]]:
    """Return a file and an offset for each sector's worth of the large files of a tree, shuffled.

    A file of a sector or more starts on a sector's boundary (docs/format.md), so each piece of one
    is a sector that no other piece shares.
    """
    draw = random.Random(seed)
    found = []
    for folder, _, names in os.walk(tree):
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_symlink() or not path.is_file():
                continue
            size = path.stat().st_size
            if size >= SECTOR:
                for start in range(0, size - 4096, SECTOR):
                    last = min(start + SECTOR, size) - 4096
                    found.append((path, draw.randrange(start, last + 1) // 4096 * 4096))
    found.sort()
    draw.shuffle(found)
    return found


def percentile(values: list[float], share: float) -> float:
    """Return the value that a share (0 to 1) of all is not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def read_misses(tree: Path, reads: int, seed: int) -> list[float]:
    """Time single reads, in seconds."""
    seconds = []
    for path, offset in places(tree, seed)[:reads]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            began = time.perf_counter()
            os.pread(descriptor, 4096, offset)
            seconds.append(time.perf_counter() - began)
        finally:
            os.close(descriptor)
    return seconds


def one_run(stage: Stage, image: str, reads: int, seed: int) -> list[float]:
    """Mount with an empty cache, and read."""
    root, tree = stage.folder / "root", stage.folder / "tree"
    tree.mkdir()
    env = os.environ | {"PAGEIN_ROOT": str(root)}
    stage.chill(*stage.published.files("plain", image))
    reference = f"{stage.host}/plain/{image}:latest"
    words = [*PAGEIN, "--registry-http", stage.host, "mount", reference, tree]
    subprocess.run(words, check=True, env=env)
    try:
        return read_misses(tree, reads, seed)
    finally:
        subprocess.run([*PAGEIN, "umount", tree], check=True, env=env)
        shutil.rmtree(root, ignore_errors=True)
        tree.rmdir()


def main() -> None:
    """Measure each link; save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=Path("/var/tmp/pagein-bench"))
    parser.add_argument("--image", default="torch-cuda")
    parser.add_argument("--links", nargs="+", type=Link.parse, metavar="RATE/RTT",
                        default=[Link(), Link(1000, 5), Link(100, 20)])  # fmt: skip
    parser.add_argument("--reads", type=int, default=400, help="of one run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    cells, image = Cells("misses"), arguments.image
    with workspace() as folder, Network(arguments.images / "registry") as network:
        published = Published(arguments.images, network.registry.data, folder)
        published.plain(image, network.registry.host)
        for number in range(arguments.runs):
            for link in arguments.links:
                if not cells.wants(image, str(link), number=number, again=arguments.again):
                    continue
                with network.reached(link) as host:
                    stage = Stage(folder, arguments.images, network, published, host)
                    seconds = one_run(stage, image, arguments.reads, number)
                shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
                record = {key: percentile(seconds, share) for key, share in shares.items()}
                cells.add(record | {"reads": float(len(seconds))}, image, str(link))
                told = "  ".join(f"{key} {value * 1e3:.1f} ms" for key, value in record.items())
                print(f"{image} {link}: {len(seconds)} reads: {told}", flush=True)


if __name__ == "__main__":
    main()
