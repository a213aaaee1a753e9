"""How long to wait before the next try: exponential, capped, with full jitter.

Full jitter (a uniform draw from zero to the bound) spreads the clients of a registry that comes
back best: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Bounds in seconds: ``first_s`` for the first wait, doubled each time up to ``longest_s``."""

    first_s: float = 0.2
    longest_s: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.first_s <= self.longest_s:
            raise ValueError(f"not a back-off: {self.first_s} to {self.longest_s} seconds")

    def bound(self, failures: int) -> float:
        """Return the longest wait after so many failures (1 or more), in seconds."""
        # 2 ** 1024 is not a float; the cap is reached long before 2 ** 60.
        return min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 60))

    def delay(self, failures: int, draw: float, *, retry_after: float | None = None) -> float:
        """Return the wait in seconds for a ``draw`` from [0, 1).

        Never shorter than what the peer asked for; a peer that names a time gets the jitter on
        top, so that its clients do not all come back at that very moment.
        """
        jitter = self.bound(failures) * draw
        return jitter if retry_after is None else max(retry_after, 0.0) + jitter
