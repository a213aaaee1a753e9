"""What every `SectorSource` and `SectorCache` must do, as tests to subclass.

A source's test class overrides the fixture ``source``: one that holds `SECTORS`. A cache's
subclasses `SectorCacheContract` and overrides ``cache``: an empty one with room for all of them.
"""

from __future__ import annotations

import os
import random
import threading

import pytest

from pagein.errors import NotFoundError, SectorCorruptError
from pagein.events import Kind
from pagein.format.codec import encode_sector
from pagein.store.source import SectorCache, SectorSource
from pagein.types import MIN_SECTOR_SIZE, Digest, Encoding, Sector, SectorRef

_draw = random.Random(11)  # noqa: S311 bytes, not a secret
_HALF = MIN_SECTOR_SIZE // 2

SECTORS = (
    _draw.randbytes(MIN_SECTOR_SIZE),
    _draw.randbytes(64) * (MIN_SECTOR_SIZE // 64),
    _draw.randbytes(_HALF + 1) + bytes(_HALF - 1),
    bytes(_HALF) + _draw.randbytes(5000) + bytes(_HALF - 5000),
)


def packed(sectors: tuple[bytes, ...]) -> tuple[bytes, tuple[SectorRef, ...]]:
    """Return a pack of sectors, and the references to them. A zero sector takes no room."""
    stored = [encode_sector(data, level=3) for data in sectors]
    pack = b"".join(bytes(kept) for _, kept in stored)
    name, offset, refs = Digest.of(pack), 0, []
    for data, (encoding, kept) in zip(sectors, stored, strict=True):
        zero = encoding is Encoding.ZERO
        where = (None, 0, 0) if zero else (name, offset, len(kept))
        refs.append(SectorRef(Digest.of(data), len(data), encoding, *where))
        offset += len(kept)
    return pack, tuple(refs)


PACK, REFS = packed(SECTORS)
ABSENT = SectorRef(
    Digest.of(b"nobody has this"), MIN_SECTOR_SIZE, Encoding.ZSTD, Digest.of(b"no pack"), 0, 100
)


class SectorSourceContract:
    """Reading, whatever lies behind it."""

    @pytest.fixture
    def source(self) -> SectorSource:
        """Return a source that holds `SECTORS`."""
        raise NotImplementedError

    @pytest.mark.parametrize("kind", list(Kind))
    def test_every_sector_comes_back_as_it_was(self, source: SectorSource, kind: Kind) -> None:
        """Whatever the kind."""
        for ref, data in zip(REFS, SECTORS, strict=True):
            sector = source.get(ref, kind=kind)
            assert (sector.digest, bytes(sector.data)) == (ref.digest, data)

    def test_an_absent_sector_is_not_found(self, source: SectorSource) -> None:
        """It is no other error, and the source goes on."""
        with pytest.raises(NotFoundError):
            source.get(ABSENT)
        assert source.get(REFS[0]).data == SECTORS[0]

    def test_a_sector_is_never_passed_off_as_another(self, source: SectorSource) -> None:
        """The digest decides, whatever the place says that it is asked for."""
        place = REFS[0]
        wrong = SectorRef(
            ABSENT.digest, place.size, place.encoding, place.pack, place.offset, place.stored
        )
        with pytest.raises((NotFoundError, SectorCorruptError)):
            source.get(wrong)

    def test_many_threads_read_at_once(self, source: SectorSource) -> None:
        """Each gets the bytes that it asked for."""
        wrong: list[object] = []

        def read(seed: int) -> None:
            draw = random.Random(seed)  # noqa: S311 a shuffle, not a secret
            for _ in range(20):
                index = draw.randrange(len(REFS))
                try:
                    if source.get(REFS[index]).data != SECTORS[index]:
                        wrong.append(index)
                except Exception as error:
                    wrong.append(error)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


class SectorCacheContract(SectorSourceContract):
    """Filling, forgetting, and files."""

    @pytest.fixture
    def cache(self) -> SectorCache:
        """Return an empty cache."""
        raise NotImplementedError

    @pytest.fixture
    def source(self, cache: SectorCache) -> SectorSource:
        """Return the cache, filled."""
        for ref, data in zip(REFS, SECTORS, strict=True):
            cache.put(Sector.verify(ref, data))
        return cache

    def test_an_empty_cache_has_nothing(self, cache: SectorCache) -> None:
        """Nor does asking make it have something."""
        assert cache.open(REFS[0]) is None
        assert cache.peek(REFS[0]) is None
        assert list(cache.refs()) == []

    def test_a_kept_sector_is_listed_and_can_be_opened(self, cache: SectorCache) -> None:
        """The file has exactly the sector's bytes."""
        for ref, data in zip(REFS, SECTORS, strict=True):
            cache.put(Sector.verify(ref, data))
            cache.put(Sector.verify(ref, memoryview(data)))  # twice is no error
            for opened in (cache.peek(ref), cache.open(ref)):
                assert opened is not None
                assert opened.size == len(data)
                assert os.pread(opened.fd, len(data) + 1, 0) == data
        assert sorted(cache.refs()) == sorted(ref.digest.hex for ref in REFS)

    def test_a_removed_sector_is_gone_but_open_files_stay_readable(
        self, cache: SectorCache
    ) -> None:
        """A reader is never cut off."""
        cache.put(Sector.verify(REFS[0], SECTORS[0]))
        opened = cache.open(REFS[0])
        cache.remove(REFS[0])
        cache.remove(REFS[0])
        assert cache.peek(REFS[0]) is None
        assert cache.open(REFS[0]) is None
        with pytest.raises(NotFoundError):
            cache.get(REFS[0])
        assert opened is not None
        assert os.pread(opened.fd, opened.size, 0) == SECTORS[0]
