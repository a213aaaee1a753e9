"""A sector cache in anonymous memory files: for tests, and for a look inside with no disk."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator

from pagein.errors import CacheFullError, NotFoundError
from pagein.events import Kind
from pagein.store.atomic import write_all
from pagein.store.source import OpenSector
from pagein.types import Sector, SectorRef


class MemoryCache:
    """Keeps the sectors used last, at most ``limit_bytes`` of them. Safe to use from any thread."""

    def __init__(self, *, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held: OrderedDict[str, OpenSector] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, ref: SectorRef, /, *, kind: Kind = Kind.DEMAND) -> Sector:
        """Return a sector. Raises NotFoundError when it is not held."""
        del kind
        file = self.open(ref)
        if file is None:
            raise NotFoundError(f"sector {ref.digest} is not in memory")
        return Sector.verify(ref, os.pread(file.fd, file.size, 0))

    def put(self, sector: Sector, /) -> None:
        """Keep a sector in the place of those used longest ago. Raises CacheFullError."""
        size = len(sector.data)
        if size > self._limit:
            raise CacheFullError(
                f"sector {sector.digest} is larger than the cache of {self._limit}"
            )
        descriptor = os.memfd_create("pagein-sector", os.MFD_CLOEXEC)
        file = OpenSector(descriptor, size)
        write_all(descriptor, sector.data)
        with self._lock:
            self._drop(sector.digest.hex)
            while self._bytes + size > self._limit:
                self._drop(next(iter(self._held)))
            self._held[sector.digest.hex] = file
            self._bytes += size

    def _drop(self, name: str) -> None:
        file = self._held.pop(name, None)
        if file is not None:
            self._bytes -= file.size

    def remove(self, ref: SectorRef, /) -> None:
        """Forget a sector; absent is no error."""
        with self._lock:
            self._drop(ref.digest.hex)

    def refs(self) -> Iterator[str]:
        """Yield the hex digest of every sector held."""
        with self._lock:
            names = list(self._held)
        yield from names

    def open(self, ref: SectorRef, /) -> OpenSector | None:
        """Return the sector as a file; None when it is not held."""
        with self._lock:
            file = self._held.get(ref.digest.hex)
            if file is not None:
                self._held.move_to_end(ref.digest.hex)
        return file

    def peek(self, ref: SectorRef, /) -> OpenSector | None:
        """Return the sector as a file: all that is held was verified."""
        return self.open(ref)
