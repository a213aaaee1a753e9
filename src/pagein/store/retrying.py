"""Try again what may work later, with back-off and jitter, until the deadline."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence

from pagein.engine.backoff import Backoff
from pagein.errors import PageinError, RemoteUnavailableError
from pagein.events import Kind
from pagein.store.source import RunSource
from pagein.types import Sector, SectorRef

Pause = Callable[[float], bool]
"""Sleeps so many seconds; False: stop trying."""


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


class RetryingSource:
    """Asks again after a transient error. A read-ahead is only a guess and gets one try.

    ``timeout_s`` bounds the waits and when the last try begins; how long one try takes is the
    transport's to bound.
    """

    def __init__(
        self,
        upstream: RunSource,
        *,
        backoff: Backoff | None = None,
        timeout_s: float = 60.0,
        pause: Pause = _sleep,
        monotonic: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._upstream = upstream
        self._backoff = backoff or Backoff()
        self._timeout_s = timeout_s
        self._pause = pause
        self._monotonic = monotonic
        self._draw = draw

    def get(self, ref: SectorRef, /, *, kind: Kind = Kind.DEMAND) -> Sector:
        """Return the sector, or raise the last error."""
        deadline = self._monotonic() + self._timeout_s
        failures = 0
        while True:
            try:
                return self._upstream.get(ref, kind=kind)
            except PageinError as error:
                failures += 1
                if not error.transient or kind is Kind.READ_AHEAD:
                    raise
                wait = self._wait(error, failures)
                if self._monotonic() + wait >= deadline or not self._pause(wait):
                    raise

    def get_run(self, refs: Sequence[SectorRef], /, *, kind: Kind) -> Iterator[Sector]:
        """Try a run once: what does not come is asked for singly, and that is tried again."""
        return self._upstream.get_run(refs, kind=kind)

    def _wait(self, error: PageinError, failures: int) -> float:
        asked = error.retry_after if isinstance(error, RemoteUnavailableError) else None
        return self._backoff.delay(failures, self._draw(), retry_after=asked)
