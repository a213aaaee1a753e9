"""Where a file's blocks lie, as runs: how runs move to a hot region, and become a chunk map again.

Runs and not blocks: a model of 70 GB is 18 million blocks, and mostly one run.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from pagein.format.tree import HOLE, Chunked, Flat
from pagein.types import BLOCK_SIZE

_MAX_BITS: Final = 31
"""Binary logarithm of the blocks of the largest chunk: EROFS keeps it in five bits."""


class Run(NamedTuple):
    """``length`` blocks that follow each other from ``block``, or as many blocks of a hole."""

    block: int
    length: int


class Move(NamedTuple):
    """``length`` blocks from data block ``block`` have copies from hot block ``hot``."""

    block: int
    hot: int
    length: int


def runs_of(layout: Flat | Chunked, size: int) -> Iterator[Run]:
    """Yield the runs of a file of ``size`` bytes in its order, each as long as can be."""
    left = -(-size // BLOCK_SIZE)
    if isinstance(layout, Flat):
        yield Run(layout.block, left)
        return
    step = 1 << layout.chunk_bits
    last = Run(HOLE, 0)
    for block in layout.blocks:
        count = min(step, left)
        left -= count
        if last.length and block == _after(last):
            last = Run(last.block, last.length + count)
            continue
        if last.length:
            yield last
        last = Run(block, count)
    yield last


def _after(run: Run) -> int:
    return HOLE if run.block == HOLE else run.block + run.length


def coarsest(runs: Iterable[Run]) -> Flat | Chunked:
    """Return the layout of a file in these runs with the largest chunks: none spans two runs."""
    found = list(runs)
    if len(found) == 1 and found[0].block != HOLE:
        return Flat(found[0].block)
    total = sum(run.length for run in found)
    bits = min(_MAX_BITS, max(0, total - 1).bit_length())
    start = 0
    for run in found[:-1]:
        start += run.length  # a chunk must start here: its size divides the place
        bits = min(bits, trailing_zeros(start))
    step = 1 << bits
    blocks: list[int] = []
    for run in found:
        if run.block == HOLE:
            blocks += [HOLE] * -(-run.length // step)
        else:
            blocks += range(run.block, run.block + run.length, step)
    return Chunked(bits, tuple(blocks))


def trailing_zeros(number: int) -> int:
    """Return how often 2 divides ``number``, which is not 0."""
    return (number & -number).bit_length() - 1


@dataclass(frozen=True, slots=True)
class Moves:
    """Which data blocks have copies, and where: ``moves`` in order of data blocks, none twice.

    ``hot_blocks`` is the length of the hot region: so far do all other blocks shift.
    """

    moves: tuple[Move, ...]
    starts: tuple[int, ...]
    hot_blocks: int

    @classmethod
    def of(cls, moves: Iterable[Move], hot_blocks: int) -> Moves:
        """Put moves in order, and join those that continue each other on both sides."""
        joined: list[Move] = []
        for move in sorted(moves):
            last = joined[-1] if joined else None
            if (
                last is not None
                and last.block + last.length == move.block
                and last.hot + last.length == move.hot
            ):
                joined[-1] = Move(last.block, last.hot, last.length + move.length)
            else:
                joined.append(move)
        return cls(tuple(joined), tuple(move.block for move in joined), hot_blocks)

    def layout(self, layout: Flat | Chunked, size: int) -> Flat | Chunked:
        """Return where a file lies now that lay at ``layout`` when there was no hot region."""
        old = list(runs_of(layout, size))
        new = list(self._moved(old))
        if any(0 <= run.block < self.hot_blocks for run in new):
            return coarsest(new)
        if isinstance(layout, Flat):
            return Flat(layout.block + self.hot_blocks)
        shift = self.hot_blocks
        return Chunked(
            layout.chunk_bits, tuple(b if b == HOLE else b + shift for b in layout.blocks)
        )

    def _moved(self, runs: Iterable[Run]) -> Iterator[Run]:
        """Yield new body blocks. Pieces that meet in one part are joined."""
        last: Run | None = None
        for run in runs:
            for piece in self._split(run):
                joins = (
                    last is not None
                    and piece.block == _after(last)
                    and piece.block != self.hot_blocks  # there the layer data begins
                )
                if last is not None and joins:
                    last = Run(last.block, last.length + piece.length)
                    continue
                if last is not None:
                    yield last
                last = piece
        if last is not None:
            yield last

    def _split(self, run: Run) -> Iterator[Run]:
        if run.block == HOLE:
            yield run
            return
        at, stop = run.block, run.block + run.length
        number = max(0, bisect_right(self.starts, at) - 1)
        while at < stop:
            while number < len(self.moves) and self._ends(number) <= at:
                number += 1
            move = self.moves[number] if number < len(self.moves) else None
            if move is None or move.block >= stop:
                yield Run(at + self.hot_blocks, stop - at)
                return
            if move.block > at:
                yield Run(at + self.hot_blocks, move.block - at)
                at = move.block
            count = min(stop, move.block + move.length) - at
            yield Run(move.hot + at - move.block, count)
            at += count

    def _ends(self, number: int) -> int:
        return self.moves[number].block + self.moves[number].length
