"""The body of a device as a run of bytes: which sectors a read needs, and where they are now."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Final, Protocol

from pagein.engine.coalesce import runs
from pagein.engine.readahead import ReadAhead
from pagein.errors import FormatError, UsageError
from pagein.events import Kind
from pagein.store.single_flight import Flight
from pagein.store.source import FileSlice, OpenSector, SectorSource
from pagein.types import Buffer, Encoding, Sector, SectorRef, is_sector_size

_ZEROS: Final = memoryview(bytes(1 << 20))
"""As much as the kernel ever reads at once."""

_MOST_QUEUED: Final = 16
"""Read-aheads that wait; more would be for readers that have gone elsewhere by then."""


class LocalSectors(Protocol):
    """Knows at once which sectors are on this machine."""

    def peek(self, ref: SectorRef, /) -> OpenSector | Sector | None:
        """Return the sector without waiting for a source, or None."""
        ...


class StartableSource(SectorSource, Protocol):
    """A source that can also be told to start fetching."""

    def begin(self, ref: SectorRef, /, *, kind: Kind) -> Flight:
        """Start fetching, or join the fetch that is under way; does not wait."""
        ...

    def begin_run(self, refs: Sequence[SectorRef], /, *, kind: Kind) -> list[Flight]:
        """Start fetching neighbours in a pack together; does not wait."""
        ...

    def backlog(self, kind: Kind) -> int:
        """Return how many fetches of a kind have not begun."""
        ...


class LazyImage:
    """A `BlockImage` over a sector table. Safe to call from any thread."""

    def __init__(
        self,
        sectors: Sequence[SectorRef],
        sector_size: int,
        source: StartableSource,
        local: LocalSectors,
        *,
        read_ahead: bool = True,
        hot_sectors: int = 0,
    ) -> None:
        if not is_sector_size(sector_size):
            raise FormatError(f"not a sector size: {sector_size}", field="sector_size")
        self.sectors = sectors
        self.sector_size = sector_size
        self.source = source
        self.local = local
        self._shift = sector_size.bit_length() - 1
        self._mask = sector_size - 1
        self._size = len(sectors) * sector_size
        # A hot region comes by itself, in order. Whoever reads to its end has no use for what lies
        # behind it.
        self._ahead_from = hot_sectors * sector_size
        self._ahead = (
            ReadAhead(sector_size=sector_size, sectors=len(sectors)) if read_ahead else None
        )
        self._ahead_lock = threading.Lock()

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._size

    def peek(self, offset: int, length: int, /) -> Buffer | FileSlice | None:
        """Return the bytes, or where they lie, if no source must be waited for; else None."""
        self._check(offset, length)
        self._look_ahead(offset, length)
        within = offset & self._mask
        if within + length > self.sector_size:
            return self._peek_across(offset, length)
        ref = self.sectors[offset >> self._shift]
        if ref.encoding is Encoding.ZERO:
            return _zeros(length)
        found = self.local.peek(ref)
        if isinstance(found, OpenSector):
            return FileSlice(found, within, length)
        return None if found is None else memoryview(found.data)[within : within + length]

    def _peek_across(self, offset: int, length: int) -> Buffer | None:
        pieces: list[Buffer] = []
        for ref, within, count in self._spans(offset, length):
            piece = self._local_piece(ref, within, count)
            if piece is None:
                return None
            pieces.append(piece)
        return b"".join(pieces)

    def pread(self, offset: int, length: int, /) -> Buffer:
        """Return exactly ``length`` bytes; waits for a source. Raises PageinError."""
        self._check(offset, length)
        self._look_ahead(offset, length)
        spans = list(self._spans(offset, length))
        for ref, _, _ in spans[1:]:  # the fetches of one read run side by side
            if ref.encoding is not Encoding.ZERO and self.local.peek(ref) is None:
                self.source.begin(ref, kind=Kind.DEMAND)
        pieces = [self._piece(*span) for span in spans]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, ref: SectorRef, within: int, count: int) -> Buffer:
        piece = self._local_piece(ref, within, count)
        if piece is None:
            piece = memoryview(self.source.get(ref).data)[within : within + count]
        return piece

    def _local_piece(self, ref: SectorRef, within: int, count: int) -> Buffer | None:
        """Return bytes of one sector; None: not here, or the disk fails to give what it has."""
        if ref.encoding is Encoding.ZERO:
            return _zeros(count)
        found = self.local.peek(ref)
        if found is None:
            return None
        if isinstance(found, Sector):
            return memoryview(found.data)[within : within + count]
        try:
            data = os.pread(found.fd, count, within)
        except OSError:
            return None
        return data if len(data) == count else None

    def _spans(self, offset: int, length: int) -> list[tuple[SectorRef, int, int]]:
        spans = []
        while length:
            within = offset & self._mask
            count = min(length, self.sector_size - within)
            spans.append((self.sectors[offset >> self._shift], within, count))
            offset += count
            length -= count
        return spans

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length <= 0 or offset + length > self._size:
            raise UsageError(f"a read of {length} bytes at {offset} is outside the device")

    def _look_ahead(self, offset: int, length: int) -> None:
        """Start fetching what a forward reader will want. Only a hint: never waits."""
        if self._ahead is None or offset < self._ahead_from:
            return
        if not self._ahead_lock.acquire(blocking=False):
            return
        try:
            wanted = self._ahead.observe(offset, length)
        finally:
            self._ahead_lock.release()
        refs = [self.sectors[index] for index in wanted]
        for run in runs(
            ref
            for ref in refs
            if ref.encoding is not Encoding.ZERO and self.local.peek(ref) is None
        ):
            if self.source.backlog(Kind.READ_AHEAD) >= _MOST_QUEUED:
                return
            self.source.begin_run(run, kind=Kind.READ_AHEAD)


def _zeros(length: int) -> Buffer:
    return _ZEROS[:length] if length <= len(_ZEROS) else bytes(length)
