"""What to fetch before it is asked for: forward reads grow a window of sectors, others get none.

Rule 1. A read continues a stream if it starts at the stream's end, or at most `GAP` past it (blocks
that the kernel had already). A re-read of what the stream has passed changes nothing.
Rule 2. A stream earns its first sector after `EVIDENCE` bytes, and a doubled window with each
sector that it enters.
Rule 3. A window is filled up when half of it is left: neighbours share a request.
Rule 4. A read that continues no stream begins one, in the place of the stream used longest ago.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GAP: Final = 256 << 10
EVIDENCE: Final = 512 << 10
"""More than one read: the kernel's largest device read by default is 128 KiB, at most 1 MiB."""

MAX_STREAMS: Final = 8
MAX_WINDOW: Final = 8
MAX_AHEAD: Final = 32 << 20
"""Bytes: with larger sectors the window has fewer."""


@dataclass(slots=True)
class _Stream:
    begin: int
    end: int
    window: int = 0
    fetched: int = -1  # the last sector asked for


class ReadAhead:
    """Watches the reads of one device. Not safe for threads: the caller locks."""

    def __init__(self, *, sector_size: int, sectors: int, max_window: int = MAX_WINDOW) -> None:
        self._shift = sector_size.bit_length() - 1
        self._sectors = sectors
        self._max_window = max(1, min(max_window, MAX_AHEAD // sector_size))
        self._streams: list[_Stream] = []  # last used first

    def observe(self, offset: int, length: int) -> range:
        """Note a read (bytes); return the sector indexes to fetch now, nearest first."""
        stop = offset + length
        for position, stream in enumerate(self._streams):
            if stream.end <= offset <= stream.end + GAP:
                if position:
                    self._streams.insert(0, self._streams.pop(position))
                return self._advance(stream, stop)
            if stream.begin <= offset < stream.end:
                if stop > stream.end:
                    return self._advance(stream, stop)
                return range(0)
        self._streams.insert(0, _Stream(offset, stop))
        del self._streams[MAX_STREAMS:]
        return range(0)

    def _advance(self, stream: _Stream, stop: int) -> range:
        was = (stream.end - 1) >> self._shift
        stream.end = stop
        here = (stop - 1) >> self._shift
        if stream.window == 0:
            if stop - stream.begin < EVIDENCE:
                return range(0)
            stream.window = 1
        elif here > was:
            stream.window = min(stream.window * 2, self._max_window)
        if stream.window > 1 and stream.fetched - here > stream.window // 2:
            return range(0)
        first = max(here, stream.fetched) + 1
        last = min(here + stream.window, self._sectors - 1)
        if first > last:
            return range(0)
        stream.fetched = last
        return range(first, last + 1)
