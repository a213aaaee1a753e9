"""Which fetch goes next: demand, read-ahead, prefetch, hydration.

Rule 1. Demand has slots of its own: it never waits for a lower kind to end.
Rule 2. While a demand fetch waits or runs, prefetch and hydration start one fetch at a time: they
share the link with it.
Rule 3. A waiting fetch can be promoted. One that runs keeps the kind it began with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pagein.events import Kind

ORDER: Final = tuple(Kind)
"""Most urgent first."""

_YIELDING: Final = frozenset({Kind.PREFETCH, Kind.HYDRATE})


def is_more_urgent(one: Kind, other: Kind) -> bool:
    """Whether ``one`` goes before ``other``."""
    return ORDER.index(one) < ORDER.index(other)


@dataclass(eq=False, slots=True)
class Ticket:
    """One fetch that waits or runs. ``run`` does it; ``give_up`` tells those who wait for it."""

    kind: Kind
    run: Callable[[], None]
    give_up: Callable[[], None]


@dataclass(slots=True)
class FetchQueue:
    """Waiting and running fetches. Not safe for threads: the caller locks."""

    slots: int
    demand_slots: int
    _waiting: dict[Kind, dict[Ticket, None]] = field(
        default_factory=lambda: {kind: {} for kind in ORDER}
    )
    _running: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(ORDER, 0))

    def push(self, ticket: Ticket) -> None:
        """Let a fetch wait for its turn, behind those of its kind."""
        self._waiting[ticket.kind][ticket] = None

    def promote(self, ticket: Ticket, kind: Kind) -> None:
        """Move a waiting fetch to a more urgent kind; nothing happens to one that runs."""
        if is_more_urgent(kind, ticket.kind) and self.discard(ticket):
            ticket.kind = kind
            self.push(ticket)

    def discard(self, ticket: Ticket) -> bool:
        """Take a waiting fetch out; False when it does not wait."""
        if ticket not in self._waiting[ticket.kind]:
            return False
        del self._waiting[ticket.kind][ticket]
        return True

    def waiting(self, kind: Kind) -> int:
        """Return how many fetches of a kind wait."""
        return len(self._waiting[kind])

    def take(self) -> Ticket | None:
        """Return the fetch to start now, counted as running until `ended`; None: not yet."""
        kind = self._next_kind()
        if kind is None:
            return None
        ticket = next(iter(self._waiting[kind]))
        del self._waiting[kind][ticket]
        self._running[kind] += 1
        return ticket

    def has_next(self) -> bool:
        """Whether `take` would return one."""
        return self._next_kind() is not None

    def _next_kind(self) -> Kind | None:
        return next((k for k in ORDER if self._waiting[k] and self._may_start(k)), None)

    def _may_start(self, kind: Kind) -> bool:
        demand = self._running[Kind.DEMAND]
        background = sum(self._running.values()) - demand
        if kind is Kind.DEMAND:
            return demand < self.demand_slots
        if background >= self.slots:
            return False
        if kind in _YIELDING and (demand or self._waiting[Kind.DEMAND]):
            return not any(self._running[other] for other in _YIELDING)
        return True

    def ended(self, ticket: Ticket) -> None:
        """Free the slot of a fetch that `take` returned."""
        self._running[ticket.kind] -= 1

    def drain(self) -> list[Ticket]:
        """Take out all that waits."""
        waiting = [ticket for lane in self._waiting.values() for ticket in lane]
        for lane in self._waiting.values():
            lane.clear()
        return waiting
