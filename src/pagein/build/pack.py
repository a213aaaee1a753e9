"""Writes a layer's pack: sectors hashed and compressed on the pool, appended as they arrived."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pagein.build.growing import GrowingPack
from pagein.build.pool import InOrder, Pool
from pagein.build.report import Stage
from pagein.format.codec import encode_sector
from pagein.types import Buffer, Digest, Encoding, Sector, SectorRef

OnSector = Callable[[Sector], None]
"""Gets the uncompressed bytes of a sector met for the first time, on any of the pool's threads."""

OnLarge = Callable[[GrowingPack], None]
"""Gets a pack that became so large that it is worth sending before it is finished."""

_IN_FLIGHT_BYTES = 192 << 20

_LARGE = 64 << 20
"""Bytes of a pack that are worth sending before one can ask whether the registry has them."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a sector is stored: ``pack`` counts the packs of this conversion."""

    pack: int
    encoding: Encoding
    offset: int
    stored: int


@dataclass(frozen=True, slots=True)
class _Encoded:
    digest: Digest
    encoding: Encoding
    payload: Buffer | None


@dataclass(frozen=True, slots=True)
class Pack:
    """A finished pack file."""

    path: Path
    digest: Digest
    size: int


class SectorShelf:
    """Every sector of one conversion: a sector met again is not stored again.

    Nor is one that ``base`` has: the rows of artifacts whose packs the destination holds.
    """

    def __init__(self, sector_size: int, base: Mapping[Digest, SectorRef] | None = None) -> None:
        self.sector_size = sector_size
        self._base = base or {}
        self.zero = Digest.of(bytes(sector_size))
        self.locations: dict[Digest, Location] = {}
        self._refs: dict[Digest, SectorRef] = {
            self.zero: SectorRef(self.zero, sector_size, Encoding.ZERO)
        }

    def __contains__(self, digest: Digest) -> bool:
        """Whether the sector is stored already."""
        return digest in self.locations or digest in self._base

    def ref(self, digest: Digest, packs: list[Digest]) -> SectorRef:
        """Row of the sector table, once the digests of the packs are known."""
        if digest in self._base and digest != self.zero:
            return self._base[digest]
        if digest not in self._refs:
            at = self.locations[digest]
            self._refs[digest] = SectorRef(
                digest, self.sector_size, at.encoding, packs[at.pack], at.offset, at.stored
            )
        return self._refs[digest]


class PackWriter:
    """One pack. Not thread-safe: used by the converting thread."""

    def __init__(
        self,
        path: Path,
        number: int,
        shelf: SectorShelf,
        pool: Pool,
        *,
        level: int,
        on_sector: OnSector | None,
        on_large: OnLarge | None = None,
    ) -> None:
        self._growing = GrowingPack(path)
        self._on_large = on_large
        self._path = path
        self._number = number
        self._shelf = shelf
        self._pool = pool
        self._level = level
        self._on_sector = on_sector
        self._zeros = bytes(shelf.sector_size)
        self._hash = hashlib.sha256()
        self._size = 0
        self._file = path.open("wb", buffering=0)
        self.digests: list[Digest] = []
        """Of the sectors added, in that order, once `drain` was called."""
        room = max(1, _IN_FLIGHT_BYTES // shelf.sector_size)
        limit = min(room, 2 * pool.threads + 2)
        self._work: InOrder[_Encoded] = InOrder(pool, limit, self._append)
        self._added = 0

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._work.abandon()
        self._growing.abandon()
        self._file.close()

    def add(self, data: Callable[[], Buffer]) -> int:
        """Queue a sector, whose bytes ``data`` makes on the pool; returns its number here."""
        self._work.add(lambda: self._encode(data()))
        self._added += 1
        return self._added - 1

    def drain(self) -> None:
        """Wait until all sectors added have a digest."""
        self._work.finish()

    def finish(self) -> Pack | None:
        """Close the pack; None, and no file, where no sector had to be stored."""
        self.drain()
        self._file.close()
        if not self._size:
            self._path.unlink()
            return None
        pack = Pack(self._path, Digest(self._hash.hexdigest()), self._size)
        self._growing.finish(pack.digest)
        return pack

    def _encode(self, data: Buffer) -> _Encoded:
        """On the pool: name the sector, and compress it unless it is stored already."""
        with self._pool.cpu(Stage.HASH_CPU):
            # A comparison is memcmp: it ends at the first byte that differs.
            if data == self._zeros:
                return _Encoded(self._shelf.zero, Encoding.ZERO, None)
            digest = Digest.of(data)
        # What the converting thread adds meanwhile is looked up again when this is appended; here
        # it only saves work.
        if digest in self._shelf:
            return _Encoded(digest, Encoding.RAW, None)
        with self._pool.cpu(Stage.ENCODE_CPU):
            encoding, payload = encode_sector(data, level=self._level)
        if self._on_sector is not None:
            self._on_sector(Sector(digest, data))
        return _Encoded(digest, encoding, payload)

    def _append(self, sector: _Encoded) -> None:
        self.digests.append(sector.digest)
        if sector.payload is None or sector.digest in self._shelf:
            return
        view = memoryview(sector.payload)
        at = Location(self._number, sector.encoding, self._size, len(view))
        while view:
            view = view[self._file.write(view) :]
        self._hash.update(sector.payload)
        self._size += at.stored
        self._growing.grew(self._size)
        if self._on_large is not None and self._size - at.stored < _LARGE <= self._size:
            self._on_large(self._growing)
        self._shelf.locations[sector.digest] = at
