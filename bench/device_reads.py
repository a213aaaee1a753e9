"""Local reads through EROFS on the FUSE server: sequential, and many small files.

All sectors are files in the page cache; EROFS's own page cache is cold. The tree is in the form
that a conversion gives it: metadata in one file, content in a device. Prints a line for each
variant, which are interleaved, with the median of the rounds (and all of them).

    python bench/device_reads.py --folder /var/tmp --rounds 5

Needs root and 3 GB of disk.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import Series, drop_caches, save
from pagein.device import fuse_server
from pagein.device.mount import learn_size, mount_erofs, unmount
from pagein.events import DeviceReadFailed, Event
from pagein.format.erofs.write import write_metadata
from pagein.format.tree import Flat, Node, NodeKind
from pagein.store.source import FileSlice, OpenSector
from pagein.testing.trees import directory
from pagein.types import BLOCK_SIZE

SECTOR = 4 << 20
BIG = 1 << 30
SMALL_FILES = 3000


@dataclass(frozen=True)
class Variant:
    """How the device is served."""

    read_ahead_kb: int
    splice: bool = True
    readers: int = 1

    def __str__(self) -> str:
        how = "splice" if self.splice else "writev"
        return f"ra {self.read_ahead_kb:4} {how} {self.readers} reader"


class CachedImage:
    """Sectors as files in a folder, all open: what a full cache looks like to the server."""

    def __init__(self, device: Path, folder: Path) -> None:
        self.size = device.stat().st_size
        self.sectors: list[OpenSector] = []
        with device.open("rb") as source:
            for number in range(-(-self.size // SECTOR)):
                path = folder / str(number)
                path.write_bytes(source.read(SECTOR))
                self.sectors.append(OpenSector(os.open(path, os.O_RDONLY), path.stat().st_size))

    def peek(self, offset: int, length: int, /) -> FileSlice | None:
        number, within = divmod(offset, SECTOR)
        if within + length > SECTOR:
            return None
        return FileSlice(self.sectors[number], within, length)

    def pread(self, offset: int, length: int, /) -> bytes:
        pieces = []
        while length:
            number, within = divmod(offset, SECTOR)
            count = min(length, SECTOR - within)
            pieces.append(os.pread(self.sectors[number].fd, count, within))
            offset, length = offset + count, length - count
        return b"".join(pieces)

    def warm(self) -> None:
        """Read every sector into the page cache."""
        for sector in self.sectors:
            os.pread(sector.fd, sector.size, 0)


def make_device(path: Path) -> Node:
    """Write one big and many small files behind one another; return the tree that names them."""
    source = random.Random(1)
    root, small = directory(), directory()
    root.children = {b"big": Node(NodeKind.FILE, size=BIG, layout=Flat(0)), b"small": small}
    with path.open("wb") as device:
        for _ in range(BIG >> 20):
            device.write(source.randbytes(1 << 20))
        for number in range(SMALL_FILES):
            content = source.randbytes(source.randint(1, 65535))
            node = Node(NodeKind.FILE, size=len(content), layout=Flat(device.tell() // BLOCK_SIZE))
            folder = small.children.setdefault(b"%d" % (number % 50), directory())
            folder.children[b"%d" % number] = node
            device.write(content + bytes(-len(content) % BLOCK_SIZE))
        device.truncate(device.tell() + -device.tell() % SECTOR)
    return root


def complain(event: Event) -> None:
    if isinstance(event, DeviceReadFailed):
        print(event, file=sys.stderr)


@contextmanager
def mounted(image: CachedImage, variant: Variant, scratch: Path) -> Iterator[Path]:
    """Serve the device as `variant` says, and mount the tree."""
    node, target = scratch / "node", scratch / "target"
    node.touch()
    target.mkdir(exist_ok=True)
    descriptor = fuse_server.open_fuse_device()
    server = fuse_server.FuseServer(
        descriptor,
        image,
        observer=complain,
        splice=variant.splice,
        reader_threads=variant.readers,
    )
    fuse_server.mount_fuse_file(descriptor, node)
    thread = threading.Thread(target=server.serve)
    thread.start()
    learn_size(node)
    mount_erofs(scratch / "metadata", target, [node], read_ahead_kb=variant.read_ahead_kb)
    unmount(node, lazy=True)
    try:
        yield target
    finally:
        unmount(target)
        thread.join()


READ_ALL = """
import sys, time
buffer = bytearray(1 << 20)
began = time.perf_counter()
with open(sys.argv[1], 'rb', buffering=0) as file:
    while file.readinto(buffer):
        pass
print(time.perf_counter() - began)
"""

READ_SMALL = """
import os, random, sys, time
paths = [os.path.join(d, n) for d, _, names in os.walk(sys.argv[1]) for n in names]
random.Random(2).shuffle(paths)
for path in paths:
    began = time.perf_counter_ns()
    descriptor = os.open(path, os.O_RDONLY)
    while os.read(descriptor, 1 << 17):
        pass
    os.close(descriptor)
    print(time.perf_counter_ns() - began)
"""


def in_other_process(code: str, path: Path) -> list[float]:
    """Run a reader as a process of its own: in ours it would share the interpreter lock."""
    result = subprocess.run(
        ["python3", "-I", "-c", code, path], check=True, stdout=subprocess.PIPE, text=True
    )
    return [float(line) for line in result.stdout.split()]


def cold(image: CachedImage) -> None:
    """Empty EROFS's page cache, and fill the one of the sectors."""
    drop_caches()
    image.warm()


def main() -> None:
    """Read the command line and run all rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--read-ahead", default="256", metavar="KB,...")
    parser.add_argument("--readers", default="2", metavar="N,...")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="pagein-bench-", dir=options.folder))
    try:
        device = scratch / "device"
        root = make_device(device)
        blocks = device.stat().st_size // BLOCK_SIZE
        metadata = write_metadata(root, sector_size=SECTOR, hot_blocks=0, data_blocks=blocks)
        (scratch / "metadata").write_bytes(metadata)
        (scratch / "sectors").mkdir()
        image = CachedImage(device, scratch / "sectors")
        device.unlink()
        kilobytes = [int(text) for text in options.read_ahead.split(",")]
        readers = [int(text) for text in options.readers.split(",")]
        variants = [
            Variant(*values) for values in itertools.product(kilobytes, (True, False), readers)
        ]
        print(save("device_reads", measure(image, variants, options.rounds, scratch)))
    finally:
        shutil.rmtree(scratch)


def measure(
    image: CachedImage, variants: list[Variant], rounds: int, scratch: Path
) -> list[Series]:
    """Run the rounds, variant by variant in each."""
    speeds = {variant: Series(f"sequential, {variant}", "MB/s") for variant in variants}
    smalls = {variant: Series(f"small file, {variant}", "us") for variant in variants}
    for number in range(rounds):
        for variant in variants:
            with mounted(image, variant, scratch) as target:
                cold(image)
                seconds = in_other_process(READ_ALL, target / "big")[0]
                speeds[variant].values.append(BIG / 1e6 / seconds)
                cold(image)
                times = in_other_process(READ_SMALL, target / "small")
                smalls[variant].values.append(statistics.median(times) / 1000)
        print(f"round {number + 1} of {rounds}")
        for variant in variants:
            print(f"{variant}: {speeds[variant].cell()} MB/s, {smalls[variant].cell()} us")
        sys.stdout.flush()
    return [*speeds.values(), *smalls.values()]


if __name__ == "__main__":
    main()
