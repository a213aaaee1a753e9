"""A pool of threads for what releases the interpreter lock: hashing, zstd, file I/O."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Generic, TypeVar

from pagein.build.report import Stage, StageClock

Result = TypeVar("Result")


class Pool:
    """Threads that work beside the converting thread. One closing `with` ends them all."""

    def __init__(self, threads: int, clock: StageClock) -> None:
        self.threads = threads
        self.clock = clock
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="pagein-convert")

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def submit(self, task: Callable[[], Result]) -> Future[Result]:
        """Queue a task."""
        return self._executor.submit(task)

    @contextmanager
    def cpu(self, stage: Stage) -> Iterator[None]:
        """Count the processor time of the block, on whichever thread it runs."""
        start = time.thread_time()
        try:
            yield
        finally:
            self.clock.add(stage, time.thread_time() - start)


class InOrder(Generic[Result]):
    """Tasks whose results are taken in the order they were given, with a bound on those in flight.

    The bound keeps memory flat where the pool is slower than what feeds it.
    """

    def __init__(self, pool: Pool, limit: int, take: Callable[[Result], None]) -> None:
        self._pool = pool
        self._limit = limit
        self._take = take
        self._waiting: deque[Future[Result]] = deque()

    def __enter__(self) -> InOrder[Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def add(self, task: Callable[[], Result]) -> None:
        """Queue a task; waits for the oldest where too many are in flight."""
        self._waiting.append(self._pool.submit(task))
        while len(self._waiting) > self._limit or (self._waiting and self._waiting[0].done()):
            self._take_oldest()

    def finish(self) -> None:
        """Wait for all."""
        while self._waiting:
            self._take_oldest()

    def abandon(self) -> None:
        """Give up what has not begun; wait for what has, as it may use files about to be closed."""
        for future in self._waiting:
            future.cancel()
        wait(self._waiting)
        self._waiting.clear()

    def _take_oldest(self) -> None:
        future = self._waiting.popleft()
        if future.done():
            result = future.result()
        else:
            with self._pool.clock.stage(Stage.WAIT):
                result = future.result()
        self._take(result)
