"""Sectors out of the packs of a repository: one range request each, unpacked and verified."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol

from pagein.errors import FormatError, PageinError, SectorCorruptError
from pagein.events import FetchFailed, Kind, Observer, SectorCorrupt, SectorFetched, ignore
from pagein.format.codec import decode_sector
from pagein.store.repository import RangeStream
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
        pack = refs[0].pack
        if pack is None:
            return
        pieces = self._pieces(pack, [ByteRange(ref.offset, ref.stored) for ref in refs])
        try:
            for ref in refs:
                sector = self._unpacked(ref, next(pieces))
                seconds = self._monotonic() - began
                self._observer(
                    SectorFetched(ref.digest, ref.stored, ref.size, seconds, kind, self.name)
                )
                yield sector
        except FormatError:
            raise
        except PageinError as error:
            self._observer(FetchFailed(refs[0].digest, self.name, str(error), error.transient))
            raise
        finally:
            pieces.close()

    def _pieces(self, pack: Digest, spans: list[ByteRange]) -> Generator[Buffer, None, None]:
        """Yield the stored bytes of neighbours, as they come where the place is far away."""
        if isinstance(self._repository, RangeStream):
            yield from self._repository.read_ranges(pack, spans)
            return
        first = spans[0].start
        whole = self._repository.read_range(pack, ByteRange(first, spans[-1].stop - first))
        for span in spans:
            yield memoryview(whole)[span.start - first : span.stop - first]

    @staticmethod
    def _unpacked(ref: SectorRef, stored: Buffer) -> Sector:
        data = decode_sector(ref, stored)
        if ref.encoding is Encoding.RAW and isinstance(data, memoryview):
            data = bytes(data)  # a view would keep the whole run in memory
        return Sector.verify(ref, data)

    def _fetch(self, ref: SectorRef) -> Sector:
        if ref.pack is None:
            raise FormatError(f"sector {ref.digest} is zero and has no pack", field="pack")
        stored = self._repository.read_range(ref.pack, ByteRange(ref.offset, ref.stored))
        return Sector.verify(ref, decode_sector(ref, stored))
