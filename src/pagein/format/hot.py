"""The plan of a hot region: which blocks a start-up needs, in its order, and how files find them.

Rule 1. A data block has one copy, however many files share it.
Rule 2. A data sector that is touched nearly whole is taken whole: its digest is that of the data
        sector, so that it is stored once, in its layer's pack, and nothing of it is uploaded.
Rule 3. All other touched blocks are packed into sectors of copies, in order of first touch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from pagein.errors import FormatError
from pagein.format.block_runs import Move, Moves, Run, runs_of, trailing_zeros
from pagein.format.granule import choose_granule
from pagein.format.profile import Profile
from pagein.format.tree import HOLE, Chunked, Flat, Node, NodeKind, walk
from pagein.types import BLOCK_SIZE

WHOLE_EIGHTHS: Final = 7
"""Eighths of a data sector's blocks from which on all of it is taken."""

_MOST_PIECES: Final = 1 << 24
"""Pieces of sectors that touches may fall into: 64 GiB of single blocks. It bounds the time that a
profile of overlapping touches can take."""


@dataclass(frozen=True, slots=True)
class WholeSector:
    """A hot sector that is data sector ``number``, counted from 0."""

    number: int


@dataclass(frozen=True, slots=True)
class CopySector:
    """A hot sector of these data blocks, one after the other, and zeros up to its end."""

    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class ProfileMatch:
    """How much of a profile fits an image. ``absent`` files are not there as regular files,
    ``changed`` ones have another size; the bytes are those of the touches."""

    files: int
    absent: int
    changed: int
    bytes_taken: int
    bytes_skipped: int


@dataclass(frozen=True, slots=True)
class HotPlan:
    """The hot sectors in order, where files find their blocks then, and what was matched."""

    sectors: tuple[WholeSector | CopySector, ...]
    moves: Moves
    match: ProfileMatch


def plan_hot_region(root: Node, profile: Profile, *, sector_size: int) -> HotPlan:
    """Plan for a tree whose layouts are those of an image without a hot region.

    Touches of files that the tree does not have, or has in another size, are left out and counted.
    FormatError for touches that overlap beyond all reason.
    """
    files = [_find(root, file.path, file.size) for file in profile.files]
    taken = skipped = 0
    for touch in profile.touches:
        if isinstance(files[touch.file], _Touched):
            taken += touch.length
        else:
            skipped += touch.length
    match = ProfileMatch(
        files=sum(isinstance(file, _Touched) for file in files),
        absent=files.count(_ABSENT),
        changed=files.count(_CHANGED),
        bytes_taken=taken,
        bytes_skipped=skipped,
    )
    blocks = sector_size // BLOCK_SIZE
    order = _Order(blocks)
    for run, step in _in_order(profile, files):
        order.add(run, step)
    return HotPlan(*order.sectors(), match)


def lay_out(root: Node, moves: Moves) -> None:
    """Give each file of a tree without a hot region its layout in the image that has it."""
    done: set[int] = set()
    for _, node in walk(root):
        if node.layout is not None and id(node) not in done:
            done.add(id(node))
            node.layout = moves.layout(node.layout, node.size)


_ABSENT: Final = "absent"
_CHANGED: Final = "changed"


class _Touched:
    """A file that the profile names: how long it is, and the runs that its blocks lie in."""

    def __init__(self, layout: Flat | Chunked | None, size: int) -> None:
        self.blocks = -(-size // BLOCK_SIZE)
        self._runs = list(runs_of(layout, size)) if layout is not None else []
        self._starts = [0, *accumulate(run.length for run in self._runs)]

    def between(self, first: int, stop: int) -> Iterator[Run]:
        """Yield where file blocks ``[first, stop)`` lie, holes left out."""
        number = bisect_right(self._starts, first) - 1
        while first < stop:
            run, start = self._runs[number], self._starts[number]
            end = min(stop, start + run.length)
            if run.block != HOLE:
                yield Run(run.block + first - start, end - first)
            first, number = end, number + 1


def _find(root: Node, path: bytes, size: int) -> _Touched | str:
    node: Node | None = root
    for name in path.split(b"/"):
        node = node.children.get(name) if node is not None else None
    if node is None or node.kind is not NodeKind.FILE:
        return _ABSENT
    return _Touched(node.layout, size) if node.size == size else _CHANGED


def _in_order(profile: Profile, files: list[_Touched | str]) -> Iterator[tuple[Run, int]]:
    """Yield the data blocks that the touches need, in order, with those that are taken along; and
    how many blocks of the file are to stay together."""
    ordered: list[tuple[_Touched, int, int]] = []
    spans: dict[_Touched, list[tuple[int, int]]] = {}
    for number, offset, length, _ in profile.touches:
        file = files[number]
        if isinstance(file, _Touched):
            first, stop = offset // BLOCK_SIZE, -(-(offset + length) // BLOCK_SIZE)
            spans.setdefault(file, []).append((first, stop))
            ordered.append((file, first, stop))
    steps = {file: 1 << choose_granule(found, file.blocks) for file, found in spans.items()}
    for file, first, stop in ordered:
        step = steps[file]
        for run in file.between(first & -step, min(file.blocks, (stop + step - 1) & -step)):
            yield run, step


class _Order:
    """Data blocks in order of first touch, by pieces of data sectors of ``size`` blocks."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._pieces: list[tuple[Run, int]] = []
        self._seen: dict[int, int] = {}
        self._left = _MOST_PIECES

    def add(self, run: Run, step: int) -> None:
        """Note those blocks of a run that are new; ``step`` of them are to stay together."""
        block, stop = run.block, run.block + run.length
        while block < stop:
            sector, at = divmod(block, self._size)
            count = min(stop - block, self._size - at)
            self._left -= 1
            if self._left < 0:
                raise FormatError(
                    f"the profile touches more than {_MOST_PIECES} pieces of sectors",
                    field="touches",
                )
            seen = self._seen.get(sector, 0)
            mask = ((1 << count) - 1) << at
            new = mask & ~seen
            if new:
                self._seen[sector] = seen | mask
                self._pieces += ((run, step) for run in _set_bits(new, sector * self._size))
            block += count

    def sectors(self) -> tuple[tuple[WholeSector | CopySector, ...], Moves]:
        """Return the hot sectors in order, and where each block went."""
        whole = {
            sector
            for sector, seen in self._seen.items()
            if seen.bit_count() * 8 >= self._size * WHOLE_EIGHTHS
        }
        filling = _Filling(self._size)
        for run, step in self._pieces:
            sector = run.block // self._size
            if sector in whole:
                filling.take_whole(sector)
            else:
                filling.copy(run, step)
        return filling.result()


class _Filling:
    """Hot sectors of ``size`` blocks, in the order in which the first block of each was met."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._sectors: list[int | list[Run]] = []
        self._whole: set[int] = set()
        self._moves: list[Move] = []
        self._copies: list[Run] = []
        self._start = 0
        self._used = size

    def take_whole(self, sector: int) -> None:
        """Take a data sector, unless it is taken."""
        if sector in self._whole:
            return
        self._whole.add(sector)
        hot = len(self._sectors) * self._size
        self._moves.append(Move(sector * self._size, hot, self._size))
        self._sectors.append(sector)

    def copy(self, run: Run, step: int) -> None:
        """Copy blocks behind those copied before; ``step`` of them into one sector, at most.

        Where a sector ends, the next one of copies may lie elsewhere. A chunk cannot go on there,
        and one that is cut would make all of its file's chunks smaller.
        """
        block, left = run
        while left:
            count = self._size - self._used
            if count < left:
                count -= count % step
            count = min(count, left)
            if not count:
                self._copies, self._used = [], 0
                self._start = len(self._sectors) * self._size
                self._sectors.append(self._copies)
                continue
            self._copies.append(Run(block, count))
            self._moves.append(Move(block, self._start + self._used, count))
            block, left, self._used = block + count, left - count, self._used + count

    def result(self) -> tuple[tuple[WholeSector | CopySector, ...], Moves]:
        """Return the sectors, and where each block went."""
        sectors = tuple(
            WholeSector(one) if isinstance(one, int) else CopySector(tuple(one))
            for one in self._sectors
        )
        return sectors, Moves.of(self._moves, len(sectors) * self._size)


def _set_bits(bits: int, first: int) -> Iterator[Run]:
    """Yield the runs of set bits, the lowest of which stands for block ``first``."""
    while bits:
        gap = trailing_zeros(bits)
        bits >>= gap
        count = trailing_zeros(~bits)
        yield Run(first + gap, count)
        bits >>= count
        first += gap + count
