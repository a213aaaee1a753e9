"""From reads of a device to the file ranges that they touched: layouts, turned round."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pagein.format.erofs.read import ErofsReader
from pagein.format.profile import ProfiledFile, Touch
from pagein.format.reads import Read
from pagein.format.tree import HOLE, Chunked, Flat, NodeKind
from pagein.types import BLOCK_SIZE


class _Owner(NamedTuple):
    """Whose a block of the body is: a file, and which block of it."""

    path: bytes
    size: int
    block: int


def touched_files(
    reads: Iterable[Read], tree: ErofsReader
) -> tuple[tuple[ProfiledFile, ...], tuple[Touch, ...]]:
    """Return the files that were read, in order of first touch, and the touches.

    Times count from the first read. A block counts once, when it was first read. What belongs to
    no file (padding) is left out. A block that several files share is given to the first of them
    in path order, and a file with several names has the first of these. Neighbours in a file that
    come next to each other in the order are one touch. Raises FormatError for a broken tree.
    """
    blocks = _first_touches(reads)
    owners = _owners(tree, sorted(blocks))
    files: dict[tuple[bytes, int], int] = {}
    touches: list[Touch] = []
    for block, at_ms in blocks.items():
        owner = owners.get(block)
        if owner is None:
            continue
        number = files.setdefault((owner.path, owner.size), len(files))
        start = owner.block * BLOCK_SIZE
        length = min(BLOCK_SIZE, owner.size - start)
        last = touches[-1] if touches else None
        if last and last.file == number and last.offset + last.length == start:
            touches[-1] = Touch(number, last.offset, last.length + length, last.at_ms)
        else:
            touches.append(Touch(number, start, length, at_ms))
    return tuple(ProfiledFile.of(path, size) for path, size in files), tuple(touches)


def _first_touches(reads: Iterable[Read]) -> dict[int, int]:
    """Return each block that was read, in order, with its milliseconds after the first read."""
    found: dict[int, int] = {}
    ordered = sorted(reads, key=lambda read: read.seconds)  # two threads note two parts
    for seconds, offset, length in ordered:
        at_ms = int((seconds - ordered[0].seconds) * 1000)
        for block in range(offset // BLOCK_SIZE, -(-(offset + length) // BLOCK_SIZE)):
            found.setdefault(block, at_ms)
    return found


def _owners(tree: ErofsReader, blocks: Sequence[int]) -> dict[int, _Owner]:
    """Find the owner of each of these blocks, which are in ascending order.

    Each is given away once, and then skipped: the layouts of a hostile tree may all overlap.
    """
    owners: dict[int, _Owner] = {}
    free = list(range(len(blocks) + 1))  # position -> the next one that may have no owner yet
    seen: set[int] = set()
    for path, inode in tree.walk():
        if inode.kind is not NodeKind.FILE or inode.nid in seen:
            continue
        seen.add(inode.nid)
        for start, count, first in _runs(tree.layout(inode), inode.size):
            at = _next_free(free, bisect_left(blocks, start))
            while at < len(blocks) and blocks[at] < start + count:
                owners[blocks[at]] = _Owner(path, inode.size, first + blocks[at] - start)
                free[at] = at + 1
                at = _next_free(free, at)
    return owners


def _next_free(free: list[int], at: int) -> int:
    while free[at] != at:
        free[at] = free[free[at]]
        at = free[at]
    return at


def _runs(layout: Flat | Chunked | None, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield runs of a file: first body block, count, first block of the file.

    Chunks that follow each other in the body are one run.
    """
    total = -(-size // BLOCK_SIZE)
    if layout is None:
        return
    if isinstance(layout, Flat):
        yield layout.block, total, 0
        return
    per_chunk = 1 << layout.chunk_bits
    start = count = first = 0
    for index, block in enumerate(layout.blocks):
        if block == start + count and count:
            count += per_chunk
            continue
        if count:
            yield start, count, first
        start, first = block, index * per_chunk
        count = 0 if block == HOLE else per_chunk
    if count:
        yield start, min(count, total - first), first
