"""A cache in front of a source. What is fetched is handed on first, and written behind.

Rule 1. A cache that fails costs speed, never a read.
Rule 2. A sector is in `_unwritten` from before its reader has it until it can be read from the
cache: no moment in between at which it would be fetched twice.
Rule 3. What could not be kept stays in memory for a while: a full disk must not fetch 4 MiB again
for each 128 KiB that the kernel reads of them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from pagein.engine.coalesce import runs
from pagein.errors import CacheError, NotFoundError
from pagein.events import CacheWriteFailed, Kind, Observer, ignore
from pagein.store.source import OpenSector, RunSource, SectorCache
from pagein.types import Sector, SectorRef

MOST_UNWRITTEN: Final = 8
"""Sectors (32 MiB) that wait for the disk; beyond it who fetches also writes, and so slows down."""

MOST_UNKEPT: Final = 64 << 20
"""Bytes: the read-ahead window of two streams, or it would fetch every sector twice."""

Defer = Callable[[Callable[[], None]], object]
"""Runs a write soon, on a thread of its own."""


def _at_once(write: Callable[[], None]) -> None:
    write()


class CachingSource:
    """Answers from ``cache``, else from ``upstream``, and fills the cache.

    Safe to call from any thread. ``defer`` takes the writes; without it they are made at once.
    """

    def __init__(
        self,
        upstream: RunSource,
        cache: SectorCache,
        *,
        observer: Observer = ignore,
        defer: Defer = _at_once,
    ) -> None:
        self._upstream = upstream
        self._cache = cache
        self._observer = observer
        self._defer = defer
        self._lock = threading.Lock()
        self._unwritten: dict[str, Sector] = {}
        self._unkept: OrderedDict[str, Sector] = OrderedDict()
        self._unkept_bytes = 0

    def peek(self, ref: SectorRef, /) -> OpenSector | Sector | None:
        """Return the sector if it is verified and on this machine; never waits for a source."""
        return self._cache.peek(ref) or self._held(ref)

    def _held(self, ref: SectorRef) -> Sector | None:
        if not self._unwritten and not self._unkept:
            return None
        name = ref.digest.hex
        with self._lock:
            if name in self._unkept:
                self._unkept.move_to_end(name)
            return self._unwritten.get(name) or self._unkept.get(name)

    def get(self, ref: SectorRef, /, *, kind: Kind = Kind.DEMAND) -> Sector:
        """Return the sector from memory, disk or upstream. Raises what upstream raises."""
        sector = self._local(ref, kind)
        if sector is None:
            sector = self._upstream.get(ref, kind=kind)
            self._keep(sector)
        return sector

    def get_run(self, refs: Sequence[SectorRef], /, *, kind: Kind) -> Iterator[Sector]:
        """Yield what is here, then what upstream has of the rest, and keep that.

        The disk is asked, too: that `peek` knows nothing of a sector only means that this process
        has not verified it yet.
        """
        missing = []
        for ref in refs:
            sector = self._local(ref, kind)
            if sector is None:
                missing.append(ref)
            else:
                yield sector
        for run in runs(missing):
            for sector in self._upstream.get_run(run, kind=kind):
                self._keep(sector)
                yield sector

    def _local(self, ref: SectorRef, kind: Kind) -> Sector | None:
        held = self._held(ref)
        if held is not None:
            return held
        try:
            return self._cache.get(ref, kind=kind)
        except NotFoundError:
            return None
        except CacheError as error:
            self._observer(CacheWriteFailed(ref.digest, str(error)))
            return None

    def _keep(self, sector: Sector) -> None:
        with self._lock:
            self._unwritten[sector.digest.hex] = sector
            crowded = len(self._unwritten) > MOST_UNWRITTEN
        if not crowded:
            try:
                self._defer(lambda: self._write(sector))
            except RuntimeError:  # the writer was shut down: the image is being closed
                crowded = True
        if crowded:
            self._write(sector)

    def _write(self, sector: Sector) -> None:
        failure: str | None = None
        try:
            self._cache.put(sector)
        except CacheError as error:
            failure = str(error)
        except Exception as error:
            failure = f"unexpected {type(error).__name__}: {error}"
        with self._lock:
            self._unwritten.pop(sector.digest.hex, None)
            if failure is not None:
                self._hold(sector)
        if failure is not None:
            self._observer(CacheWriteFailed(sector.digest, failure))

    def _hold(self, sector: Sector) -> None:
        if sector.digest.hex not in self._unkept:
            self._unkept_bytes += len(sector.data)
        self._unkept[sector.digest.hex] = sector
        while self._unkept_bytes > MOST_UNKEPT:
            _, oldest = self._unkept.popitem(last=False)
            self._unkept_bytes -= len(oldest.data)
