"""Threads that wait for bytes and write the replies; there are none while nothing waits.

`ThreadPoolExecutor` keeps each thread that it ever had: with fifty images in one process,
thousands.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

_IDLE_S: Final = 5.0


class ReplyPool:
    """At most ``most`` threads, which end when they are idle. Safe to use from any thread."""

    def __init__(self, most: int, *, idle_s: float = _IDLE_S) -> None:
        self._most = most
        self._idle_s = idle_s
        self._changed = threading.Condition()
        self._waiting: deque[Callable[[], None]] = deque()
        self._threads = 0
        self._idle = 0
        self._finished = False

    def submit(self, work: Callable[..., None], *arguments: Any) -> None:
        """Run ``work`` soon; it must not raise.

        Raises RuntimeError where not one thread can be started.
        """
        with self._changed:
            self._waiting.append(partial(work, *arguments))
            if self._idle >= len(self._waiting):
                self._changed.notify()
                return
            if self._threads >= self._most:
                return  # the next thread that is done takes it
            thread = threading.Thread(target=self._run, name="demand", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                if not self._threads:
                    self._waiting.pop()
                    raise
                return
            self._threads += 1

    def _run(self) -> None:
        while (work := self._next()) is not None:
            work()
            del work  # an idle thread must not hold on to a sector

    def _next(self) -> Callable[[], None] | None:
        until = time.monotonic() + self._idle_s
        with self._changed:
            while not self._waiting:
                left = until - time.monotonic()
                if left <= 0 or self._finished:
                    self._threads -= 1
                    self._changed.notify_all()  # `finish` waits for the last
                    return None
                self._idle += 1
                try:
                    self._changed.wait(left)
                finally:
                    self._idle -= 1
            return self._waiting.popleft()

    def finish(self) -> None:
        """Drop what has not begun, and wait for what has."""
        with self._changed:
            self._waiting.clear()
            self._finished = True
            self._changed.notify_all()
            while self._threads:
                self._changed.wait()
