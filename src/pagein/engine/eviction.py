"""Which sectors leave a full cache: LRU-2, from two times a file.

LRU-2 (O'Neil, O'Neil, Weikum 1993) orders by the time of the use *before* the last one, so that
reading an image through once does not push out what is used again and again. Uses within
`TOUCH_PERIOD_NS` count as one (the paper's correlated references).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

TOUCH_PERIOD_NS: Final = 60 * 10**9

ONE_USE_AGE_NS: Final = 24 * 3600 * 10**9
"""A sector used once counts as if it had been used one day before too. Plain LRU-2 would keep a
sector that was used twice a year ago before everything that was used once today."""

KEEP_SHARE: Final = 0.9
"""Evict down to this share of the limit, so that not every put evicts."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One sector held. ``last_ns`` and ``previous_ns`` are its last two uses (0: none), in
    nanoseconds; ``size`` is what it takes on disk, in bytes."""

    name: str
    size: int
    last_ns: int
    previous_ns: int

    @property
    def worth(self) -> tuple[int, int, str]:
        """Sort key, the least useful first."""
        return (max(self.previous_ns, self.last_ns - ONE_USE_AGE_NS), self.last_ns, self.name)


def victims(entries: Iterable[CacheEntry], *, to_bytes: int) -> list[CacheEntry]:
    """Return the least useful entries, as few as bring the total to ``to_bytes`` or less."""
    held = list(entries)
    excess = sum(entry.size for entry in held) - to_bytes
    chosen: list[CacheEntry] = []
    if excess <= 0:
        return chosen
    for entry in sorted(held, key=lambda entry: entry.worth):
        chosen.append(entry)
        excess -= entry.size
        if excess <= 0:
            break
    return chosen


def after_use(last_ns: int, previous_ns: int, now_ns: int) -> tuple[int, int]:
    """Return the two times (last, previous) of an entry that is used ``now_ns``."""
    if now_ns - last_ns < TOUCH_PERIOD_NS:
        return max(now_ns, last_ns), previous_ns
    return now_ns, last_ns


def scan_after(limit_bytes: int) -> int:
    """Return how many bytes one process may add before it looks at the whole cache again.

    A scan of 5000 files takes about 20 ms. A thirty-second of the limit, at least 64 MiB, but never
    more than a quarter, so that a small cache stays near its limit.
    """
    return min(max(limit_bytes // 32, 64 << 20), limit_bytes // 4)
