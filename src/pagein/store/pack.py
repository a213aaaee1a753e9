"""Sectors out of the packs of a repository: one range request each, unpacked and verified."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from pagein.errors import FormatError, PageinError, SectorCorruptError
from pagein.events import FetchFailed, Kind, Observer, SectorCorrupt, SectorFetched, ignore
from pagein.format.codec import decode_sector
from pagein.types import Buffer, ByteRange, Digest, Encoding, Sector, SectorRef


class PackReader(Protocol):
    """The part of a `Repository` that sectors are read through."""

    @property
    def name(self) -> str:
        """How errors and metrics call this place."""
        ...

    def read_range(self, digest: Digest, span: ByteRange, /) -> Buffer:
        """Return exactly ``span.length`` bytes of a blob, unverified."""
        ...


class PackSource:
    """Reads sectors from one repository. One try; no retry here."""

    def __init__(
        self,
        repository: PackReader,
        *,
        observer: Observer = ignore,
        name: str | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._repository = repository
        self._observer = observer
        self._monotonic = monotonic
        self.name = name or repository.name

    def get(self, ref: SectorRef, /, *, kind: Kind = Kind.DEMAND) -> Sector:
        """Fetch, unpack and verify. Bytes that do not unpack are corrupt too: another source may
        have the right ones."""
        began = self._monotonic()
        try:
            sector = self._fetch(ref)
        except FormatError as error:
            self._observer(SectorCorrupt(ref.digest, self.name))
            raise SectorCorruptError(f"{self.name}: {error}") from None
        except PageinError as error:
            self._observer(FetchFailed(ref.digest, self.name, str(error), error.transient))
            raise
        seconds = self._monotonic() - began
        self._observer(SectorFetched(ref.digest, ref.stored, ref.size, seconds, kind, self.name))
        return sector

    def get_run(self, refs: Sequence[SectorRef], /, *, kind: Kind) -> Iterator[Sector]:
        """Fetch neighbours with one range request.

        The first whose bytes are wrong ends the run with FormatError: asked for singly it becomes
        an event.
        """
        began = self._monotonic()
        first, last = refs[0], refs[-1]
        if first.pack is None:
            return
        span = ByteRange(first.offset, last.offset + last.stored - first.offset)
        try:
            stored = memoryview(self._repository.read_range(first.pack, span))
        except PageinError as error:
            self._observer(FetchFailed(first.digest, self.name, str(error), error.transient))
            raise
        for ref in refs:
            start = ref.offset - first.offset
            data = decode_sector(ref, stored[start : start + ref.stored])
            if ref.encoding is Encoding.RAW:
                data = bytes(data)  # a view would keep the whole run in memory
            sector = Sector.verify(ref, data)
            seconds = self._monotonic() - began
            self._observer(
                SectorFetched(ref.digest, ref.stored, ref.size, seconds, kind, self.name)
            )
            yield sector

    def _fetch(self, ref: SectorRef) -> Sector:
        if ref.pack is None:
            raise FormatError(f"sector {ref.digest} is zero and has no pack", field="pack")
        stored = self._repository.read_range(ref.pack, ByteRange(ref.offset, ref.stored))
        return Sector.verify(ref, decode_sector(ref, stored))
