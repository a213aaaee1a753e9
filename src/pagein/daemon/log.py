"""The log of a serving process: one line a problem, never one a read.

A problem that repeats is written at its 1st, 2nd, 4th, 8th ... time, so that a registry that is
away for an hour fills no disk.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter

from pagein.events import (
    CacheWriteFailed,
    DeviceReadFailed,
    Event,
    FetchFailed,
    PulledClassically,
    SectorCorrupt,
    SnapshotterProblem,
)

_MOST_SEEN = 1000


class ProblemLog:
    """Writes problems to stderr. Observing is thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: Counter[str] = Counter()

    def observe(self, event: Event) -> None:
        """Write a line if the event is a problem that is due."""
        match event:
            case DeviceReadFailed():
                self._write("read failed", event.reason)
            case FetchFailed():
                self._write(f"fetch from {event.source} failed", event.reason)
            case SectorCorrupt():
                self._write("corrupt sector dropped", f"from {event.source}")
            case CacheWriteFailed():
                self._write("sector not kept", event.reason)
            case SnapshotterProblem():
                self._write(f"cannot {event.what}", event.reason)
            case PulledClassically():
                self._write(f"{event.reference} is pulled layer by layer", event.reason)

    def _write(self, what: str, reason: str) -> None:
        with self._lock:
            if len(self._seen) > _MOST_SEEN:
                self._seen.clear()
            self._seen[what] += 1
            count = self._seen[what]
        if count & (count - 1) == 0:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            times = f" (time {count})" if count > 1 else ""
            # In one write, and so in one piece: print() writes the end of the line separately.
            sys.stderr.write(f"{stamp} {what}{times}: {reason}\n")
            sys.stderr.flush()
