"""The source and cache contracts, for every implementation and wrapper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pagein.store.caching import CachingSource
from pagein.store.directory import DirectoryCache
from pagein.store.failover import FailoverSource
from pagein.store.layout import LayoutRepository
from pagein.store.memory import MemoryCache
from pagein.store.pack import PackSource
from pagein.store.pool import FetchPool
from pagein.store.retrying import RetryingSource
from pagein.store.single_flight import SingleFlightSource
from pagein.store.source import SectorCache, SectorSource
from pagein.store.stack import ReadPath
from pagein.testing.contract_sources import (
    PACK,
    REFS,
    SECTORS,
    SectorCacheContract,
    SectorSourceContract,
)
from pagein.testing.faulty_source import BytesSource, FaultySource, PackFile
from pagein.types import MIN_SECTOR_SIZE, Digest


class TestBytes(SectorSourceContract):
    @pytest.fixture
    def source(self) -> SectorSource:
        return BytesSource(SECTORS)


class TestFaultyWithoutFaults(SectorSourceContract):
    @pytest.fixture
    def source(self) -> SectorSource:
        return FaultySource(BytesSource(SECTORS))


class TestPack(SectorSourceContract):
    @pytest.fixture
    def source(self) -> SectorSource:
        return PackSource(PackFile([PACK]))


class TestPackOfALayout(SectorSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> SectorSource:
        layout = LayoutRepository(tmp_path / "layout")
        layout.put_blob(Digest.of(PACK), PACK)
        return PackSource(layout)


class TestCaching(SectorSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> SectorSource:
        cache = DirectoryCache(tmp_path, limit_bytes=64 << 20)
        return CachingSource(BytesSource(SECTORS), cache)


class TestRetrying(SectorSourceContract):
    @pytest.fixture
    def source(self) -> SectorSource:
        return RetryingSource(BytesSource(SECTORS))


class TestFailover(SectorSourceContract):
    @pytest.fixture
    def source(self) -> SectorSource:
        return FailoverSource([BytesSource(SECTORS[:2]), BytesSource(SECTORS[1:])])


class TestSingleFlight(SectorSourceContract):
    @pytest.fixture
    def source(self) -> Iterator[SectorSource]:
        with FetchPool(workers=2, demand_workers=2) as pool:
            yield SingleFlightSource(BytesSource(SECTORS), pool, timeout_s=30)


class TestReadPath(SectorSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> Iterator[SectorSource]:
        cache = DirectoryCache(tmp_path, limit_bytes=64 << 20)
        with ReadPath(REFS, MIN_SECTOR_SIZE, [PackFile([PACK])], cache) as path:
            yield path.source


class TestMemoryCache(SectorCacheContract):
    @pytest.fixture
    def cache(self) -> SectorCache:
        return MemoryCache(limit_bytes=64 << 20)


class TestDirectoryCache(SectorCacheContract):
    @pytest.fixture
    def cache(self, tmp_path: Path) -> SectorCache:
        return DirectoryCache(tmp_path / "cache", limit_bytes=64 << 20)


class TestDirectoryCacheWithFewOpenFiles(SectorCacheContract):
    @pytest.fixture
    def cache(self, tmp_path: Path) -> SectorCache:
        return DirectoryCache(tmp_path / "cache", limit_bytes=64 << 20, open_files=1)
