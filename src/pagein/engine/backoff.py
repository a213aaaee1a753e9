"""How long to wait before a source is asked again: exponential, with full jitter.

Full jitter (a uniform share of the bound) spreads the retries of many nodes best; see "Exponential
Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Bounds in seconds. ``first`` doubles with each try up to ``most``."""

    first: float = 0.1
    most: float = 5.0

    def delay(self, tries: int, jitter: float, retry_after: float | None) -> float:
        """Return the wait after ``tries`` failed tries (from 1); ``jitter`` is from 0 to 1.

        What the peer named in Retry-After is a floor: it is obeyed, never undercut.
        """
        bound = min(self.most, self.first * 2 ** min(tries - 1, 30))
        return max(bound * jitter, retry_after or 0.0)
