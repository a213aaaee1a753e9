"""Whether to ask a source that failed of late: the pure part of a circuit breaker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST_REST_S: Final = 1.0
LONGEST_REST_S: Final = 60.0
"""A dead mirror costs one timeout a minute; one that came back is used within a minute."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """How one source has done. ``rests_until`` is a time of the caller's clock, in seconds."""

    failures: int = 0
    rests_until: float = 0.0

    def allows(self, now: float) -> bool:
        """Whether the source may be asked before others that are well."""
        return now >= self.rests_until

    def failed(self, now: float, *, retry_after: float | None = None) -> Breaker:
        """Return the state after a failure: a rest twice as long as the last one."""
        failures = self.failures + 1
        rest = min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** min(failures - 1, 60))
        return Breaker(failures, now + max(rest, min(retry_after or 0.0, LONGEST_REST_S)))


HEALTHY: Final = Breaker()
