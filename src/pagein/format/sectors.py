"""Where a layer's files lie in its sectors: pure arithmetic, so that it can be tested as such.

Large files (a sector or more) each start on a sector boundary, in path order. Small files follow,
in path order too, packed into sectors at 4096-byte boundaries. They come last, not in between,
because a large file would end the run of small ones around it with a half-empty sector.

Where does a sector of small files end? Filling each one to the brim would let one inserted file
move every file behind it, and change every sector up to the layer's end. So the end is chosen by
content: among the file ends in the sector's upper half, the one whose file has the smallest digest.
The same files around another start mostly find the same smallest digest, and from there on all is
as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pagein.format.tree import HOLE
from pagein.types import BLOCK_SIZE


class SmallFile(Protocol):
    """What placement needs to know of a file."""

    @property
    def size(self) -> int:
        """Length in bytes: more than 0, less than a sector."""
        ...

    @property
    def digest(self) -> bytes:
        """SHA-256 of the content: what the choice of sector ends hangs on."""
        ...


@dataclass(frozen=True, slots=True)
class PackedSector:
    """``files[first + i]`` lies at byte ``offsets[i]`` of the sector."""

    first: int
    offsets: tuple[int, ...]


def aligned(size: int, unit: int = BLOCK_SIZE) -> int:
    """Round ``size`` up to a multiple of ``unit``, a power of two."""
    return (size + unit - 1) & -unit


def pack_small_files(files: Sequence[SmallFile], sector_size: int) -> Iterator[PackedSector]:
    """Cut ``files``, which are in path order, into sectors."""
    first = 0
    while first < len(files):
        offsets = _fill(files, first, sector_size)
        following = first + len(offsets)
        if following < len(files):
            end = _best_end(files, first, offsets, sector_size)
            offsets = offsets[: end - first]
        yield PackedSector(first, tuple(offsets))
        first += len(offsets)


def _fill(files: Sequence[SmallFile], first: int, sector_size: int) -> list[int]:
    """Offsets of the files from ``first`` that fit into one sector."""
    offsets: list[int] = []
    used = 0
    for i in range(first, len(files)):
        if used + files[i].size > sector_size:
            break
        offsets.append(used)
        used += aligned(files[i].size)
    if not offsets:
        raise ValueError(f"a file of {files[first].size} bytes is not smaller than a sector")
    return offsets


def _best_end(files: Sequence[SmallFile], first: int, offsets: list[int], sector_size: int) -> int:
    """Index of the file that starts the next sector.

    Where no file ends in the upper half, because the next one is large, all that fit are taken.
    """
    best = first + len(offsets) - 1
    for i in range(best, first - 1, -1):
        if offsets[i - first] + files[i].size < sector_size // 2:
            break
        if files[i].digest < files[best].digest:
            best = i
    return best + 1


def holes_as_chunks(
    present: Sequence[int], first_sector: int, sector_size: int
) -> tuple[int, tuple[int, ...]]:
    """Map a large file of which some sectors are zeros: (chunk bits, body block or HOLE for each).

    The sectors that are there follow each other from body sector ``first_sector``.
    """
    blocks_per_sector = sector_size // BLOCK_SIZE
    blocks: list[int] = []
    block = first_sector * blocks_per_sector
    for there in present:
        blocks.append(block if there else HOLE)
        block += blocks_per_sector if there else 0
    return blocks_per_sector.bit_length() - 1, tuple(blocks)
