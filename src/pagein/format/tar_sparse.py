"""Sparse maps of tar archives: old GNU, and PAX 0.0, 0.1 and 1.0 (GNU tar manual, appendix D).

A map is ``((offset, length), ...)`` of stored runs, ascending and not overlapping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from pagein.errors import FormatError
from pagein.format.tar_fields import decimal, number

MAX_SEGMENTS: Final = 1 << 17
"""More runs than this in one file is refused: the map is held in memory."""

SparseMap = tuple[tuple[int, int], ...]

_BLOCK = 512
_PAIR = 24
_HEADER_MAP, _HEADER_PAIRS, _HEADER_MORE = 386, 4, 482
_EXTENSION_PAIRS, _EXTENSION_MORE = 21, 504


def gnu_map(header: bytes, read_block: Callable[[], bytes]) -> list[tuple[int, int]]:
    """Read the map in an ``S`` header and the extension blocks that follow it."""
    segments = _pairs(header, _HEADER_MAP, _HEADER_PAIRS)
    more = header[_HEADER_MORE]
    while more:
        block = read_block()
        segments += _pairs(block, 0, _EXTENSION_PAIRS)
        _bound(len(segments))
        more = block[_EXTENSION_MORE]
    return segments


def _pairs(block: bytes, start: int, count: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for at in range(start, start + count * _PAIR, _PAIR):
        if not block[at] or not block[at + 12]:
            break
        found.append((number(block[at : at + 12]), number(block[at + 12 : at + 24])))
    return found


def pax_map_0(records: Iterable[tuple[bytes, bytes]]) -> list[tuple[int, int]] | None:
    """Read a format 0.0 (repeated offset and numbytes) or 0.1 (one list) map from PAX records."""
    numbers: list[int] = []
    present = False
    for key, value in records:
        if key == b"GNU.sparse.map":
            present = True
            numbers = [decimal(part, "GNU.sparse.map") for part in value.split(b",") if part]
        elif key == b"GNU.sparse.numblocks":
            present = True
        elif key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            present = True
            if (key == b"GNU.sparse.numbytes") != bool(len(numbers) % 2):
                raise FormatError("sparse map out of step", field="GNU.sparse")
            numbers.append(decimal(value, "GNU.sparse"))
    return _paired(numbers) if present else None


def pax_map_1(read_block: Callable[[], bytes]) -> list[tuple[int, int]]:
    """Read a format 1.0 map from the blocks at the head of the file's data."""
    lines: list[bytes] = []
    rest = b""
    wanted = 1
    while len(lines) < wanted:
        *whole, rest = (rest + read_block()).split(b"\n")
        if not lines and whole:
            wanted = 1 + 2 * _bound(decimal(whole[0], "GNU.sparse"))
        elif len(rest) > _BLOCK:
            raise FormatError("sparse map has no line ends", field="GNU.sparse")
        lines += whole
    return _paired([decimal(line, "GNU.sparse") for line in lines[1:wanted]])


def _paired(numbers: list[int]) -> list[tuple[int, int]]:
    if len(numbers) % 2:
        raise FormatError("sparse map out of step", field="GNU.sparse")
    _bound(len(numbers) // 2)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _bound(count: int) -> int:
    if count > MAX_SEGMENTS:
        raise FormatError(f"sparse map with more than {MAX_SEGMENTS} runs", field="GNU.sparse")
    return count


def checked(segments: Iterable[tuple[int, int]], size: int, stored: int) -> SparseMap:
    """Drop empty runs; refuse runs that overlap, pass ``size``, or do not add up to ``stored``."""
    kept: list[tuple[int, int]] = []
    end = total = 0
    for offset, length in segments:
        if offset < end or length < 0 or offset + length > size:
            raise FormatError("sparse map out of order or out of bounds", field="GNU.sparse")
        end = offset + length
        total += length
        if length:
            kept.append((offset, length))
    if total != stored:
        raise FormatError(
            f"sparse map names {total} bytes, the archive stores {stored}", field="GNU.sparse"
        )
    return tuple(kept)
