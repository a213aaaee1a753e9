"""The protocols of the read path. Wrappers (single flight, caching, retrying, failover)
implement what they wrap."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pagein.events import Kind
from pagein.types import Sector, SectorRef


class SectorSource(Protocol):
    """Something sectors can be read from. Safe to call from any thread; blocks until it has an
    answer.

    Raises NotFoundError, SectorCorruptError or RemoteError. What it returns is verified.
    ``kind`` says why the sector is wanted: demand goes before read-ahead before prefetch before
    hydration.
    """

    def get(self, ref: SectorRef, /, *, kind: Kind = Kind.DEMAND) -> Sector:
        """Return the sector that ``ref`` names."""
        ...


class RunSource(SectorSource, Protocol):
    """A source that can fetch neighbours in a pack with one request."""

    def get_run(self, refs: Sequence[SectorRef], /, *, kind: Kind) -> Iterator[Sector]:
        """Yield the sectors of a run (`engine.coalesce`) as they are verified, some or all.

        One try. After an error, or for what was left out, the caller asks singly.
        """
        ...


class OpenSector:
    """A verified sector as an open file: the first ``size`` bytes of ``fd`` are the sector.

    Closed when the last reference goes, so that a descriptor number is never re-used under a
    reader.
    """

    __slots__ = ("fd", "size")

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size

    def __del__(self) -> None:
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class FileSlice:
    """``length`` bytes from ``offset`` of an open sector: what a reply can be spliced from."""

    file: OpenSector
    offset: int
    length: int

    def read(self) -> bytes | None:
        """Return the bytes; None where the file is not what it was."""
        try:
            data = os.pread(self.file.fd, self.length, self.offset)
        except OSError:
            return None
        return data if len(data) == self.length else None


class SectorCache(SectorSource, Protocol):
    """A source that can be filled. A sector is wholly there or absent, also after a crash."""

    def put(self, sector: Sector, /) -> None:
        """Keep the sector. Raises CacheError if it could not be kept; nothing half-written is
        left."""
        ...

    def remove(self, ref: SectorRef, /) -> None:
        """Forget the sector; absent is no error."""
        ...

    def refs(self) -> Iterator[str]:
        """Yield the hex digest of every sector held."""
        ...

    def open(self, ref: SectorRef, /) -> OpenSector | None:
        """Return the sector as a file, verified by this process at least once; None if absent.

        The cache keeps a bounded set of open files; one that a caller holds stays readable.
        """
        ...

    def peek(self, ref: SectorRef, /) -> OpenSector | None:
        """Like `open`, but quick: None also when the sector would have to be verified first."""
        ...
