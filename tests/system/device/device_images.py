"""Images to serve: from memory, from files, slow, and broken; and trees that mkfs.erofs made."""

import os
import random
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pagein.store.source import FileSlice, OpenSector
from pagein.types import Buffer


class MemoryImage:
    """All bytes at hand."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def pread(self, offset: int, length: int, /) -> Buffer:
        return memoryview(self.data)[offset : offset + length]

    def peek(self, offset: int, length: int, /) -> Buffer | FileSlice | None:
        return self.pread(offset, length)


class FileImage(MemoryImage):
    """All bytes in a file, as a cached sector would be."""

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(data)
        path.write_bytes(data)
        self.file = OpenSector(os.open(path, os.O_RDONLY), len(data))

    def peek(self, offset: int, length: int, /) -> FileSlice:
        return FileSlice(self.file, offset, length)


class MissImage(MemoryImage):
    """Nothing at hand: each read calls ``before`` in the thread that waits."""

    def __init__(self, data: bytes, before: Callable[[int], None] = lambda offset: None) -> None:
        super().__init__(data)
        self.before = before
        self.waiting = 0
        self.most_waiting = 0
        self._lock = threading.Lock()

    def peek(self, offset: int, length: int, /) -> None:
        return None

    def pread(self, offset: int, length: int, /) -> Buffer:
        with self._lock:
            self.waiting += 1
            self.most_waiting = max(self.most_waiting, self.waiting)
        try:
            self.before(offset)
        finally:
            with self._lock:
                self.waiting -= 1
        return super().pread(offset, length)


@dataclass(frozen=True)
class Tree:
    """Files by name, and the device that mkfs.erofs made of them: in one piece, or in two."""

    files: dict[str, bytes]
    flat: bytes
    metadata: bytes
    blob: bytes


def make_tree(folder: Path) -> Tree:
    source = random.Random(7)
    sizes = [0, 1, 4095, 4096, 4097, 65536, 300_001, 3 << 20]
    files = {f"file-{size}": source.randbytes(size) for size in sizes}
    files |= {f"dir/small-{number}": source.randbytes(1000 + number) for number in range(40)}
    for name, data in files.items():
        path = folder / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    mkfs(folder / "flat", folder / "tree")
    mkfs("--chunksize=4096", f"--blobdev={folder / 'blob'}", folder / "split", folder / "tree")
    flat, split, blob = ((folder / name).read_bytes() for name in ("flat", "split", "blob"))
    return Tree(files, flat, split, blob + bytes(-len(blob) % 4096))


def mkfs(*arguments: str | Path) -> None:
    subprocess.run(["mkfs.erofs", "--quiet", *arguments], check=True, capture_output=True)


def read_files(target: Path, names: list[str]) -> dict[str, bytes]:
    return {name: (target / name).read_bytes() for name in names}
