"""Threads that fetch, the most urgent first.

Rule 1. `FetchQueue` decides; this file only has the threads and the lock.
Rule 2. The lock is held for queue work, never across a fetch.
Rule 3. Threads start when there is work, so that a process can fork before its first read.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

from pagein.engine.fetch_queue import FetchQueue, Ticket
from pagein.events import Kind

_IDLE_S: Final = 30.0
_LONGEST_END_S: Final = 5.0
"""A fetch that hangs on a dead peer does not keep a program from ending; its thread is a daemon."""


class FetchPool:
    """Runs fetches. ``workers`` is for all but demand, which has ``demand_workers`` of its own.

    Safe to use from any thread. ``with`` owns the threads.
    """

    def __init__(self, *, workers: int = 4, demand_workers: int = 8) -> None:
        self._queue = FetchQueue(slots=workers, demand_slots=demand_workers)
        self._changed = threading.Condition()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._closed = False

    def __enter__(self) -> FetchPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def submit(
        self, kind: Kind, run: Callable[[], None], give_up: Callable[[], None]
    ) -> Ticket | None:
        """Queue a fetch; None when the pool is closed or has no thread. ``run`` must not raise.

        ``give_up`` is called instead of ``run`` when the pool closes first.
        """
        ticket = Ticket(kind, run, give_up)
        with self._changed:
            if self._closed:
                return None
            self._queue.push(ticket)
            self._wake()
            if not self._threads:  # no thread could be started at all
                self._queue.discard(ticket)
                return None
        return ticket

    def promote(self, ticket: Ticket, kind: Kind) -> None:
        """Make a waiting fetch more urgent."""
        with self._changed:
            self._queue.promote(ticket, kind)
            self._wake()

    def discard(self, ticket: Ticket) -> bool:
        """Drop a waiting fetch; False when it runs already, or has run."""
        with self._changed:
            return self._queue.discard(ticket)

    def waiting(self, kind: Kind) -> int:
        """Return how many fetches of a kind have not begun."""
        with self._changed:
            return self._queue.waiting(kind)

    def pause(self, seconds: float) -> bool:
        """Sleep, at most until the pool closes; False when it has closed."""
        until = time.monotonic() + seconds
        with self._changed:
            while not self._closed and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            return not self._closed

    @property
    def is_closed(self) -> bool:
        """Whether the pool was closed: what runs should come to its end."""
        return self._closed

    def close(self) -> None:
        """Give up what waits, let what runs end, and end the threads. Idempotent."""
        with self._changed:
            self._closed = True
            dropped = self._queue.drain()
            threads = list(self._threads)
            self._changed.notify_all()
        for ticket in dropped:
            ticket.give_up()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(_LONGEST_END_S)

    def _wake(self) -> None:
        """Let one more thread look at the queue. The caller holds the lock."""
        if self._idle:
            self._changed.notify_all()
            return
        if len(self._threads) >= self._queue.slots + self._queue.demand_slots:
            return  # the next thread that ends a fetch takes it
        # A process that ends must not wait for a read-ahead: hence daemon.
        thread = threading.Thread(target=self._work, name="pagein-fetch", daemon=True)
        with contextlib.suppress(RuntimeError):  # no more threads here: those there are go on
            thread.start()
            self._threads.add(thread)

    def _work(self) -> None:
        while (ticket := self._next()) is not None:
            try:
                ticket.run()
            finally:
                with self._changed:
                    self._queue.ended(ticket)
                    self._changed.notify_all()
            del ticket  # an idle thread must not hold on to a sector

    def _next(self) -> Ticket | None:
        """Wait for a fetch to start; None: this thread has nothing to do and ends."""
        until = time.monotonic() + _IDLE_S
        with self._changed:
            while not self._closed:
                ticket = self._queue.take()
                if ticket is not None:
                    if self._queue.has_next():  # one notice may have stood for two fetches
                        self._wake()
                    return ticket
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._idle += 1
                try:
                    self._changed.wait(left)
                finally:
                    self._idle -= 1
            self._threads.discard(threading.current_thread())
            return None
