"""Finds the sectors of a base that a layer's small files can stay in, though some have changed.

Small files share sectors. A new version of one would bring its unchanged neighbours along: of the
`bench/versions.py` image 2.3 times the bytes that changed. So the neighbours stay where they are,
and what has changed is packed by itself.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pagein.build.base import Base
from pagein.build.pool import InOrder, Pool
from pagein.build.report import Stage
from pagein.build.spool import Spool, SpooledFile
from pagein.errors import FormatError, NotFoundError
from pagein.format.sectors import aligned, pack_small_files
from pagein.types import Digest

LIVE_SHARE: Final = 4
"""A sector stays while files take a quarter of it. It bounds what nobody reads of the sectors that
a node without the base fetches, however many versions follow each other."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """A sector of the base, and at which offset (bytes) it has which contents, by their SHA-256."""

    digest: Digest
    offsets: Mapping[bytes, int]


class Adoption:
    """One layer's search. ``base`` has at least one sector of small files, or finds nothing."""

    def __init__(self, base: Base, spool: Spool, pool: Pool, sector_size: int) -> None:
        self._base = base
        self._spool = spool
        self._pool = pool
        self._sector_size = sector_size
        self._limit = 2 * pool.threads + 2

    def find(self, files: Sequence[SpooledFile]) -> list[Adopted]:
        """Return sectors for ``files``, which are in path order and differ in content.

        Files in none of them must be stored.
        """
        if not self._base.sectors:
            return []
        found, rest = self._unchanged(files)
        return found + self._in_part(rest)

    def _unchanged(self, files: Sequence[SpooledFile]) -> tuple[list[Adopted], list[SpooledFile]]:
        """Return the sectors that these files make where the base has them; and all other files."""
        found: list[Adopted] = []
        rest: list[SpooledFile] = []

        def take(made: tuple[Digest, Sequence[SpooledFile], Sequence[int]]) -> None:
            digest, members, offsets = made
            if digest in self._base.rows:
                contents = (file.digest for file in members)
                found.append(Adopted(digest, dict(zip(contents, offsets, strict=True))))
            else:
                rest.extend(members)

        with InOrder(self._pool, self._limit, take) as work:
            for packed in pack_small_files(files, self._sector_size):
                members = files[packed.first : packed.first + len(packed.offsets)]
                work.add(self._hashing(members, packed.offsets))
            work.finish()
        return found, rest

    def _hashing(
        self, members: Sequence[SpooledFile], offsets: Sequence[int]
    ) -> Callable[[], tuple[Digest, Sequence[SpooledFile], Sequence[int]]]:
        read = self._spool.reader(members, self._sector_size)

        def digest() -> tuple[Digest, Sequence[SpooledFile], Sequence[int]]:
            data = read()
            with self._pool.cpu(Stage.HASH_CPU):
                return Digest.of(data), members, offsets

        return digest

    def _in_part(self, files: Sequence[SpooledFile]) -> list[Adopted]:
        """Return sectors of the base in which enough of ``files`` lie, by what their bytes say."""
        found: list[Adopted] = []
        wanted = {file.digest: file.size for file in files}

        def take(there: Adopted | None) -> None:
            if there is None:
                return
            kept = {content: at for content, at in there.offsets.items() if content in wanted}
            if self._is_enough(sum(aligned(wanted[content]) for content in kept)):
                found.append(Adopted(there.digest, kept))
                for content in kept:
                    del wanted[content]

        with InOrder(self._pool, self._limit, take) as work:
            for sector in self._candidates(files):
                work.add(lambda sector=sector: self._contents(sector))  # type: ignore[misc]
            work.finish()
        return found

    def _candidates(self, files: Sequence[SpooledFile]) -> list[Digest]:
        """Return the sectors that may do: going by paths and sizes, before any is fetched."""
        likely: Counter[Digest] = Counter()
        for file in files:
            home = self._base.homes.get(file.key)
            if home is not None and home.size == file.size:
                likely[home.sector] += aligned(file.size)
        return [sector for sector in self._base.sectors if self._is_enough(likely[sector])]

    def _is_enough(self, size: int) -> bool:
        return size * LIVE_SHARE >= self._sector_size

    def _contents(self, sector: Digest) -> Adopted | None:
        """On the pool: fetch a sector, and hash the files in it; None where it cannot be had."""
        try:
            data = memoryview(self._base.read(self._base.rows[sector]).data)
        except (NotFoundError, FormatError):
            return None
        offsets: dict[bytes, int] = {}
        reached = 0
        with self._pool.cpu(Stage.HASH_CPU):
            for at, size in sorted(self._base.sectors[sector].items()):
                # Files of a hostile base may lie across each other, a thousand to a sector.
                if at >= reached:
                    offsets[hashlib.sha256(data[at : at + size]).digest()] = at
                    reached = at + size
        return Adopted(sector, offsets)
