"""How much of an image is read: lazily after a start, against containerd with the same reads.

    python bench/share.py --image scipy --links 1000/5 --shares 1 10 25 50 80 100

Whole files, chosen at random with a fixed seed until the share of the image's bytes is reached, are
read once by one process in that order. Time counts from the pull or the mount. ``full`` is
`pagein pull --full` against containerd's pull alone.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

from cells import Cells, Record
from harness import Containerd, workspace
from network import Link, Network
from publishing import PAGEIN, Published
from systems import Stage

READER = """\
import sys
for name in open(sys.argv[2], errors='surrogateescape').read().split('\\0'):
    with open(f'{sys.argv[1]}/{name}', 'rb', buffering=0) as stream:
        while stream.read(1 << 20): pass
"""
SHARES = (1, 10, 25, 50, 80, 100)


def choose_files(tree: Path, share: int) -> list[str]:
    """Return files of a tree, in the order in which to read them, that have a share of its bytes.

    ``share`` is in percent. Hard links count once.
    """
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    for folder, _, names in os.walk(tree):
        for name in names:
            path = Path(folder, name)
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_size and found.st_ino not in seen:
                seen.add(found.st_ino)
                sizes[str(path.relative_to(tree))] = found.st_size
    order = sorted(sizes)
    random.Random(1).shuffle(order)
    wanted, chosen, total = sum(sizes.values()) * share / 100, [], 0
    for name in order:
        if total >= wanted:
            break
        chosen.append(name)
        total += sizes[name]
    return chosen


def read_all(tree: Path, listed: Path) -> None:
    """Read the listed files below a tree, in a process of its own."""
    subprocess.run([sys.executable, "-S", "-c", READER, tree, listed], check=True)


def containerd(stage: Stage, image: str, listed: Path | None) -> Record:
    """Pull, mount the snapshot that a container would have, read."""
    figures: Record = {}
    reference = f"{stage.host}/plain/{image}:latest"
    with Containerd(stage.folder / "containerd") as daemon:
        stage.chill(*stage.published.files("source", image))
        tree = stage.folder / "containerd" / "tree"
        tree.mkdir()
        with stage.metered(figures):
            began = time.perf_counter()
            pull = daemon.ctr("image", "pull", "--plain-http", reference)
            subprocess.run(pull, check=True, capture_output=True)
            figures["mount"] = time.perf_counter() - began
            if listed is not None:
                mount = daemon.ctr("image", "mount", reference, str(tree))
                subprocess.run(mount, check=True, capture_output=True)
                read_all(tree, listed)
            figures["ready"] = time.perf_counter() - began
        subprocess.run(["umount", tree], check=False, capture_output=True)
    return figures


def pagein(stage: Stage, image: str, listed: Path | None) -> Record:
    """Mount and read; or fetch all."""
    figures: Record = {}
    reference = f"{stage.host}/plain/{image}:latest"
    root, tree = stage.folder / "root", stage.folder / "tree"
    tree.mkdir()
    words = [*PAGEIN, "--registry-http", stage.host]
    env = os.environ | {"PAGEIN_ROOT": str(root)}
    stage.chill(*stage.published.files("plain", image))
    try:
        with stage.metered(figures):
            began = time.perf_counter()
            if listed is None:
                subprocess.run([*words, "pull", "--full", reference], check=True, env=env,
                               capture_output=True)  # fmt: skip
            else:
                subprocess.run([*words, "mount", reference, tree], check=True, env=env)
                figures["mount"] = time.perf_counter() - began
                read_all(tree, listed)
            figures["ready"] = time.perf_counter() - began
    finally:
        if listed is not None:
            subprocess.run([*PAGEIN, "umount", tree], check=False, env=env)
        shutil.rmtree(root, ignore_errors=True)
        tree.rmdir()
    return figures


def main() -> None:
    """Take turns; save each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=Path("/var/tmp/pagein-bench"))
    parser.add_argument("--image", default="scipy")
    parser.add_argument("--links", nargs="+", type=Link.parse, metavar="RATE/RTT",
                        default=[Link(1000, 5)])  # fmt: skip
    parser.add_argument("--shares", nargs="*", type=int, default=[*SHARES], metavar="PERCENT")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    cells, image = Cells("share"), arguments.image
    with workspace() as folder, Network(arguments.images / "registry") as network:
        published = Published(arguments.images, network.registry.data, folder)
        published.plain(image, network.registry.host)
        listed: dict[str, Path | None] = {"full": None}
        for share in arguments.shares:
            chosen = choose_files(arguments.images / "trees" / image, share)
            file = listed[f"{share} %"] = folder / f"{share}.list"
            assert file is not None
            file.write_bytes("\0".join(chosen).encode("utf-8", "surrogateescape"))
        for number in range(arguments.runs):
            for link in arguments.links:
                for what, files in listed.items():
                    for start in (containerd, pagein)[:: 1 if number % 2 == 0 else -1]:
                        name = (image, str(link), what, start.__name__)
                        if not cells.wants(*name, number=number, again=arguments.again):
                            continue
                        with network.reached(link) as host:
                            stage = Stage(folder, arguments.images, network, published, host)
                            record = start(stage, image, files)
                        cells.add(record, *name)
                        print(*name, f"{record['ready']:.2f} s", flush=True)


if __name__ == "__main__":
    main()
