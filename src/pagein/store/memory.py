"""A sector cache in memory: for tests, and where there is no disk to write to."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator

from pagein.errors import NotFoundError
from pagein.events import Kind
from pagein.store.source import OpenSector
from pagein.types import Sector, SectorRef


class MemoryCache:
    """A `SectorCache` that holds the last ``sectors`` sectors. Safe to call from any thread."""

    def __init__(self, sectors: int) -> None:
        self._most = sectors
        self._lock = threading.Lock()
        self._held: OrderedDict[str, Sector] = OrderedDict()

    def get(self, ref: SectorRef, /, *, kind: Kind = Kind.DEMAND) -> Sector:
        """Return a sector held. Raises NotFoundError."""
        del kind
        with self._lock:
            found = self._held.get(ref.digest.hex)
            if found is None:
                raise NotFoundError(f"sector {ref.digest} is not in memory")
            self._held.move_to_end(ref.digest.hex)
        return found

    def put(self, sector: Sector, /) -> None:
        """Keep a sector; the one that was used longest ago goes."""
        with self._lock:
            self._held[sector.digest.hex] = sector
            self._held.move_to_end(sector.digest.hex)
            while len(self._held) > self._most:
                self._held.popitem(last=False)

    def remove(self, ref: SectorRef, /) -> None:
        """Forget the sector; absent is no error."""
        with self._lock:
            self._held.pop(ref.digest.hex, None)

    def refs(self) -> Iterator[str]:
        """Yield the hex digest of every sector held."""
        with self._lock:
            return iter(list(self._held))

    def peek(self, ref: SectorRef) -> OpenSector | None:
        """Return None: nothing here is open."""
        del ref
        return None

    def open(self, ref: SectorRef, /) -> OpenSector | None:
        """Return the sector as an anonymous file (memfd_create(2))."""
        try:
            sector = self.get(ref)
        except NotFoundError:
            return None
        descriptor = os.memfd_create(ref.digest.hex[:16])
        os.write(descriptor, sector.data)
        return OpenSector(descriptor, len(sector.data))
