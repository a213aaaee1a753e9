"""What to drop from a full cache: LRU-2 (O'Neil, O'Neil and Weikum, SIGMOD 1993).

The sector whose use *before the last* is oldest goes first. A sector used once counts as never used
before, so one pass over a large image pushes out its own sectors, not those that every start needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

KEEP_SHARE: Final = 0.9
"""An eviction goes down to this share of the limit, so that the next one is not due at once."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One sector held: bytes on disk, last use and the use before it (0: none), in ns."""

    name: str
    size: int
    last_use: int
    use_before: int


def victims(entries: Iterable[CacheEntry], limit: int) -> list[CacheEntry]:
    """Return what to drop so that at most ``limit`` bytes stay; the first to drop comes first."""
    ordered = sorted(entries, key=lambda entry: (entry.use_before, entry.last_use, entry.name))
    total = sum(entry.size for entry in ordered)
    dropped: list[CacheEntry] = []
    for entry in ordered:
        if total <= limit:
            break
        dropped.append(entry)
        total -= entry.size
    return dropped
