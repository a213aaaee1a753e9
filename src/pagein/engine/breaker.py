"""Whether a source is worth asking: closed (yes), open (not now), half-open (one try).

A source that failed several times in a row is left alone for a while that doubles each time; then
one request tries it. Times are seconds of any steady clock, and are passed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

THRESHOLD: Final = 3
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """The record of one source: failures in a row, and the time until which it is left alone."""

    failures: int = 0
    open_until: float = 0.0

    def allows(self, now: float) -> bool:
        """Whether the source may be asked now."""
        return now >= self.open_until

    def failed(self, now: float) -> Breaker:
        """Return the record after one more failure."""
        failures = self.failures + 1
        if failures < THRESHOLD:
            return Breaker(failures)
        pause = min(FIRST_PAUSE_S * 2 ** min(failures - THRESHOLD, 10), LONGEST_PAUSE_S)
        return Breaker(failures, now + pause)

    def succeeded(self) -> Breaker:
        """Return the record after an answer."""
        return Breaker()
