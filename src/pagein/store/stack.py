"""The read path of one image, put together: single flight, cache, retries, mirrors, packs.

SingleFlight(Caching(Retrying(Failover(Pack, Pack, ...)))): retries go round all mirrors, so that
one deadline bounds them all, and a dead mirror costs no waits while another one answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

from pagein.engine.backoff import Backoff
from pagein.events import Observer, ignore
from pagein.store.caching import CachingSource
from pagein.store.failover import FailoverSource
from pagein.store.image import LazyImage
from pagein.store.pack import PackReader, PackSource
from pagein.store.pool import FetchPool
from pagein.store.prefetch import ShowDone, hydrate, require_kept
from pagein.store.retrying import RetryingSource
from pagein.store.single_flight import SingleFlightSource
from pagein.store.source import SectorCache
from pagein.types import SectorRef


@dataclass(frozen=True, slots=True)
class ReadThreads:
    """The threads of a read path: those that fetch, and the one that writes to the cache.

    One writer: a sector takes it 2 to 4 ms, and the disk has one head of line anyway.
    """

    fetching: FetchPool
    writing: ThreadPoolExecutor

    @classmethod
    def make(cls, *, workers: int = 4, demand_workers: int = 8) -> ReadThreads:
        """Return threads of their own; none runs before the first read."""
        return cls(
            FetchPool(workers=workers, demand_workers=demand_workers),
            ThreadPoolExecutor(1, thread_name_prefix="pagein-cache-writer"),
        )

    def close(self) -> None:
        """Let running fetches and cache writes end. Idempotent."""
        self.fetching.close()
        self.writing.shutdown(wait=True)


class ReadPath:
    """What a read of one image goes through. ``with`` or `close` ends its threads.

    ``repositories`` are asked in order: mirrors first. No thread runs before the first read.
    ``threads`` are those of several images: then they are the caller's to close.
    """

    def __init__(
        self,
        sectors: Sequence[SectorRef],
        sector_size: int,
        repositories: Sequence[PackReader],
        cache: SectorCache,
        *,
        workers: int = 4,
        threads: ReadThreads | None = None,
        read_timeout_s: float = 60.0,
        read_ahead: bool = True,
        hot_sectors: int = 0,
        backoff: Backoff | None = None,
        observer: Observer = ignore,
    ) -> None:
        self._cache = cache
        self._own = ReadThreads.make(workers=workers) if threads is None else None
        used = threads or self._own
        assert used is not None
        packs = [PackSource(repository, observer=observer) for repository in repositories]
        retrying = RetryingSource(
            FailoverSource(packs),
            backoff=backoff,
            timeout_s=read_timeout_s,
            pause=used.fetching.pause,
        )
        self.local = CachingSource(retrying, cache, observer=observer, defer=used.writing.submit)
        self.source = SingleFlightSource(self.local, used.fetching, timeout_s=read_timeout_s)
        self.image = LazyImage(
            sectors,
            sector_size,
            self.source,
            self.local,
            read_ahead=read_ahead,
            hot_sectors=hot_sectors,
        )

    def __enter__(self) -> ReadPath:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def hydrate(self, progress: ShowDone) -> int:
        """Have every sector in the cache; return the stored bytes of all. Ends the read path.

        Raises the first error of a source, or CacheError where the cache did not keep them all.
        """
        total = hydrate(self.image, progress)
        self.close()
        require_kept(self.image, set(self._cache.refs()))
        return total

    def close(self) -> None:
        """Let fetches and cache writes end that run on threads of its own. Idempotent."""
        if self._own is not None:
            self._own.close()
