"""How many requests of a stream to have under way at once.

One request after another leaves the link idle for a round trip each; more than the link can carry
only delay the bytes that are needed first. Neither bandwidth nor round trip is known beforehand, so
the depth grows for as long as growing pays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

GAIN: Final = 1.15
"""A deeper stream must be that much faster, or it is not made deeper again: less is noise."""


@dataclass(slots=True)
class StreamDepth:
    """``depth`` requests may be under way, ``most`` at most. Not safe for threads."""

    most: int
    depth: int = 1
    _best: float = 0.0
    _answers: int = 0
    _bytes: int = 0
    _since: float | None = field(default=None)

    def begin(self, now: float) -> None:
        """Note when (seconds) the first request was sent."""
        self._since = now

    def answered(self, stored: int, now: float) -> None:
        """Note that a request of ``stored`` bytes was answered whole."""
        self._answers += 1
        self._bytes += stored
        if self._answers < self.depth or self._since is None:
            return
        rate = self._bytes / max(now - self._since, 1e-6)
        if rate >= self._best * GAIN:
            self._best = rate
            self.depth = min(self.most, self.depth + 1)
        self._answers, self._bytes, self._since = 0, 0, now
