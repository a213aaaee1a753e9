"""How long to wait so that a background fetch keeps to a rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_SAVED_S: Final = 1.0
"""What an idle second earns may be used later; more would be a burst."""


@dataclass(slots=True)
class Pace:
    """At most ``bytes_per_s``; None is no limit. Not safe for threads."""

    bytes_per_s: float | None
    _free_at: float = 0.0

    def wait_s(self, count: int, now: float) -> float:
        """Note that ``count`` bytes were fetched; return the seconds to wait before the next."""
        if not self.bytes_per_s:
            return 0.0
        start = max(self._free_at, now - _SAVED_S)
        self._free_at = start + count / self.bytes_per_s
        return max(0.0, self._free_at - now)
