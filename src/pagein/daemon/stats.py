"""What a mount has done so far: an observer of the event stream that keeps counts.

Latencies go into a histogram with buckets 20 % wide, so that a percentile is right within 20 %
at a fixed cost of memory, however long the mount lives.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from typing import Any

from pagein.events import (
    CacheWriteFailed,
    DeviceRead,
    DeviceReadFailed,
    Event,
    FetchFailed,
    SectorCorrupt,
    SectorEvicted,
    SectorFetched,
)

_FIRST_S = 1e-5
_RATIO = 1.2
_BUCKETS = 96  # 10 microseconds * 1.2 ** 95 is over 5 minutes


@dataclass(slots=True)
class LatencyHistogram:
    """Counts by latency, in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * _BUCKETS)

    def add(self, seconds: float) -> None:
        """Count one latency."""
        place = math.log(max(seconds, _FIRST_S) / _FIRST_S, _RATIO)
        self.counts[min(int(place), _BUCKETS - 1)] += 1

    def percentile(self, share: float) -> float | None:
        """Upper bound of the bucket that holds the given share (0 to 1); None when empty."""
        total = sum(self.counts)
        if not total:
            return None
        wanted = max(1, math.ceil(total * share))
        seen = 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if seen >= wanted:
                return float(_FIRST_S * _RATIO ** (bucket + 1))
        return None  # pragma: no cover - the loop always reaches the total


class MountStats:
    """Counters of one mount. Observing is thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._misses = LatencyHistogram()
        self._counts: dict[str, int] = dict.fromkeys(
            (
                "reads",
                "read_bytes",
                "hits",
                "read_errors",
                "sectors_fetched",
                "bytes_fetched",
                "bytes_uncompressed",
                "fetch_errors",
                "corrupt_sectors",
                "cache_errors",
                "evictions",
            ),
            0,
        )

    def observe(self, event: Event) -> None:
        """Count one event."""
        with self._lock:
            match event:
                case DeviceRead():
                    self._add(reads=1, read_bytes=event.length, hits=int(event.hit))
                    if not event.hit:
                        self._misses.add(event.seconds)
                case SectorFetched():
                    self._add(
                        sectors_fetched=1, bytes_fetched=event.stored, bytes_uncompressed=event.size
                    )
                case DeviceReadFailed():
                    self._add(read_errors=1)
                case FetchFailed():
                    self._add(fetch_errors=1)
                case SectorCorrupt():
                    self._add(corrupt_sectors=1)
                case CacheWriteFailed():
                    self._add(cache_errors=1)
                case SectorEvicted():
                    self._add(evictions=1)

    def _add(self, **more: int) -> None:
        for name, count in more.items():
            self._counts[name] += count

    def snapshot(self) -> dict[str, Any]:
        """Return all counts, the hit rate (0 to 1) and miss latencies in seconds, for JSON."""
        with self._lock:
            counts: dict[str, Any] = dict(self._counts)
            misses = {
                f"miss_p{name}_s": self._misses.percentile(share)
                for name, share in (("50", 0.5), ("99", 0.99), ("999", 0.999))
            }
        reads = counts["reads"]
        counts["hit_rate"] = counts["hits"] / reads if reads else None
        return counts | misses
