"""Which sectors to fetch before they are asked for.

Reads that go forward through the device grow a window of sectors ahead of them: 1, 2, 4, 8. A read
that continues no stream starts a new one and fetches nothing ahead, so random reads cost nothing.
A few streams are followed at once, since several readers share the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

STREAMS: Final = 16
MOST_AHEAD: Final = 8
"""Sectors of the largest window: 32 MiB of 4 MiB sectors, over 250 ms at 1 Gbit/s."""


@dataclass(slots=True)
class _Stream:
    sector: int
    window: int
    ahead: int  # first sector that was not yet asked for


class ReadAhead:
    """Follows the streams of one device. Not thread-safe: the caller holds a lock."""

    def __init__(self, sectors: int) -> None:
        self._sectors = sectors
        self._streams: list[_Stream] = []

    def observe(self, sector: int) -> range:
        """Note a read that ends in ``sector``; return the sectors to fetch ahead, maybe none."""
        for place, stream in enumerate(self._streams):
            if sector == stream.sector:
                return range(0)
            if stream.sector < sector <= max(stream.sector + 1, stream.ahead):
                self._streams.append(self._streams.pop(place))
                return self._advance(stream, sector)
        self._streams.append(_Stream(sector, 0, sector + 1))
        del self._streams[:-STREAMS]
        return range(0)

    def _advance(self, stream: _Stream, sector: int) -> range:
        stream.sector = sector
        stream.window = min(MOST_AHEAD, stream.window * 2 or 1)
        start = max(stream.ahead, sector + 1)
        stop = min(sector + 1 + stream.window, self._sectors)
        stream.ahead = max(start, stop)
        return range(start, stop)
