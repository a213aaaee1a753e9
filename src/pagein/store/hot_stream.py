"""Brings the hot region of an image here, in its order, and shows each sector as it arrives.

Rule 1. Order first: sectors are shown as they lie in the hot region, which is the order of use.
Rule 2. A stream is a guess. It yields to demand (`engine.fetch_queue`), and where a source fails it
ends: what is then read is asked for by who reads it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from pagein.engine.coalesce import runs
from pagein.engine.pace import Pace
from pagein.engine.stream_depth import StreamDepth
from pagein.events import Kind
from pagein.store.image import LazyImage
from pagein.store.single_flight import Flight
from pagein.types import Buffer, Encoding, SectorRef

MOST_DEPTH: Final = 4
"""Requests of some 6 MB each: enough for 1 Gbit/s at a round trip of 200 ms (25 MB)."""

Show = Callable[[int, Buffer], None]
"""Called with the offset of a sector in the body, and its bytes."""


class HotStream:
    """Streams the first ``sectors`` sectors of an image's body. `run` is for one thread."""

    def __init__(
        self,
        image: LazyImage,
        sectors: int,
        show: Show,
        *,
        pace: Pace | None = None,
        pause: Callable[[float], bool],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._image = image
        self._show = show
        self._pace = pace or Pace(None)
        self._pause = pause
        self._monotonic = monotonic
        self._places: dict[str, list[int]] = {}
        wanted: dict[str, SectorRef] = {}
        for number, ref in enumerate(image.sectors[:sectors]):
            if ref.encoding is not Encoding.ZERO:
                self._places.setdefault(ref.digest.hex, []).append(number * image.sector_size)
                wanted.setdefault(ref.digest.hex, ref)
        self._waiting = deque(runs(wanted.values()))

    def run(self) -> bool:
        """Fetch and show all; False where a source failed, or ``pause`` (of 0 s) said to end."""
        depth = StreamDepth(MOST_DEPTH)
        under_way: deque[list[Flight]] = deque()
        depth.begin(self._monotonic())
        while self._waiting or under_way:
            while self._waiting and len(under_way) < depth.depth:
                run = self._waiting.popleft()
                under_way.append(self._image.source.begin_run(run, kind=Kind.PREFETCH))
            flights = under_way.popleft()
            if not all(map(self._shown, flights)):
                return False
            stored = sum(flight.ref.stored for flight in flights)
            depth.answered(stored, self._monotonic())
            if not self._pause(self._pace.wait_s(stored, self._monotonic())):
                return False
        return True

    def _shown(self, flight: Flight) -> bool:
        flight.done.wait()  # every flight lands: the retrying source has a deadline
        if flight.sector is None:
            return False
        for offset in self._places[flight.ref.digest.hex]:
            self._show(offset, flight.sector.data)
        return True
