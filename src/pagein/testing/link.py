"""An emulated network link: a rate shared by all connections, and a delay for each request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_DEBT_S: Final = 0.1
"""Oversleeping that later pieces of the same burst of answers may make good, at most."""

PIECE: Final = 32 << 10
"""Bytes sent between two looks at the clock."""


class Link:
    """``bits_per_s`` is None for no limit; ``latency_s`` is added before each answer.

    Time already promised is kept as one moment on the clock, so that errors of single sleeps do
    not add up; an idle link saves nothing for later.
    """

    def __init__(self, bits_per_s: float | None = None, latency_s: float = 0.0) -> None:
        self._seconds_per_byte = 8.0 / bits_per_s if bits_per_s else 0.0
        self._latency_s = latency_s
        self._free_at = 0.0
        self._answering = 0
        self._lock = threading.Lock()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Wait as long as a request takes to come back; then `carry` may be called."""
        if self._latency_s:
            time.sleep(self._latency_s)
        with self._lock:
            if self._answering == 0:
                self._free_at = max(self._free_at, time.monotonic())
            self._answering += 1
        try:
            yield
        finally:
            with self._lock:
                self._answering -= 1

    def carry(self, count: int) -> None:
        """Wait until ``count`` more bytes have passed the link."""
        if not self._seconds_per_byte:
            return
        with self._lock:
            now = time.monotonic()
            start = max(self._free_at, now - _DEBT_S)
            self._free_at = start + count * self._seconds_per_byte
            wait_s = self._free_at - now
        if wait_s > 0:
            time.sleep(wait_s)
