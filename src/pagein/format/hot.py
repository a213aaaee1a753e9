"""Where a file's blocks lie once some of them have copies in the hot region: pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pagein.format.tree import HOLE, Chunked, Flat
from pagein.types import BLOCK_SIZE

_MAX_BITS: Final = 31


def block_addresses(layout: Flat | Chunked, size: int) -> list[int]:
    """Return the body block of each block of a file of ``size`` bytes, HOLE where there is none."""
    count = -(-size // BLOCK_SIZE)
    if isinstance(layout, Flat):
        return list(range(layout.block, layout.block + count))
    step = 1 << layout.chunk_bits
    blocks: list[int] = []
    for start in layout.blocks:
        here = min(step, count - len(blocks))
        blocks += [HOLE] * here if start == HOLE else range(start, start + here)
    return blocks


def moved(blocks: Sequence[int], copies: Mapping[int, int], hot_blocks: int) -> list[int]:
    """Return new body blocks: those in ``copies`` at their hot block, others ``hot_blocks`` on."""
    return [HOLE if block == HOLE else copies.get(block, block + hot_blocks) for block in blocks]


def coarsest(blocks: Sequence[int], hot_blocks: int) -> Chunked:
    """Return the map of a file's blocks with the largest chunks; each lies inside one part.

    ``hot_blocks`` is where the hot region ends and the layer data begins, in body blocks.
    """
    bits = min(_MAX_BITS, max(0, len(blocks) - 1).bit_length())
    for index in range(1, len(blocks)):
        here, last = blocks[index], blocks[index - 1]
        follows = here == (HOLE if last == HOLE else last + 1) and here != hot_blocks
        if not follows:  # a chunk must start here: its size divides the index
            bits = min(bits, (index & -index).bit_length() - 1)
    return Chunked(bits, tuple(blocks[:: 1 << bits]))
