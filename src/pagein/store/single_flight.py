"""One fetch a sector, however many readers wait for it.

Rule 1. The fetch runs on a thread of the pool. Every reader waits with a deadline, also the first.
Rule 2. A fetch that dies wakes all who wait for it, with its error.
Rule 3. A reader does not pay for a lower kind: when a read-ahead fails that it had joined, it tries
for itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from pagein.engine.fetch_queue import Ticket, is_more_urgent
from pagein.errors import RemoteUnavailableError
from pagein.events import Kind
from pagein.store.pool import FetchPool
from pagein.store.source import RunSource
from pagein.types import Sector, SectorRef


class Flight:
    """A sector on its way. ``done`` is set once ``sector`` or ``error`` is."""

    __slots__ = ("done", "error", "kind", "ref", "sector", "ticket")

    def __init__(self, ref: SectorRef, kind: Kind) -> None:
        self.ref = ref
        self.kind = kind
        self.done = threading.Event()
        self.sector: Sector | None = None
        self.error: BaseException | None = None
        self.ticket: Ticket | None = None


class SingleFlightSource:
    """Joins the reads of one sector. ``timeout_s`` bounds how long each reader waits."""

    def __init__(
        self,
        upstream: RunSource,
        pool: FetchPool,
        *,
        timeout_s: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstream = upstream
        self._pool = pool
        self._timeout_s = timeout_s
        self._monotonic = monotonic
        self._flights: dict[str, Flight] = {}
        self._lock = threading.Lock()

    def get(self, ref: SectorRef, /, *, kind: Kind = Kind.DEMAND) -> Sector:
        """Return the sector. Raises what the fetch raised, or RemoteUnavailableError when it took
        too long."""
        deadline = self._monotonic() + self._timeout_s
        while True:
            flight = self.begin(ref, kind=kind)
            if not flight.done.wait(max(0.0, deadline - self._monotonic())):
                self._abandon(flight)
                raise RemoteUnavailableError(
                    f"sector {ref.digest} did not arrive within {self._timeout_s:g} s"
                )
            if flight.sector is not None:
                return flight.sector
            assert flight.error is not None
            if not is_more_urgent(kind, flight.kind):
                raise flight.error.with_traceback(None)

    def begin(self, ref: SectorRef, /, *, kind: Kind) -> Flight:
        """Start fetching, or join the fetch that is under way; does not wait."""
        with self._lock:
            flight = self._flights.get(ref.digest.hex)
            if flight is not None:
                if flight.ticket is not None and is_more_urgent(kind, flight.ticket.kind):
                    self._pool.promote(flight.ticket, kind)
                return flight
            flight = Flight(ref, kind)
            # Inside the lock, so that nobody joins a flight that cannot be promoted yet; the pool
            # never calls back while it holds its own lock.
            flight.ticket = self._pool.submit(
                kind, partial(self._fetch, flight), partial(self._give_up, flight)
            )
            if flight.ticket is not None:
                self._flights[ref.digest.hex] = flight
        if flight.ticket is None:
            self._give_up(flight)
        return flight

    def begin_run(self, refs: Sequence[SectorRef], /, *, kind: Kind) -> list[Flight]:
        """Start fetching neighbours in a pack together; join those that are under way."""
        names = {ref.digest.hex for ref in refs}
        with self._lock:
            alone = len(names) < 2 or len(names) < len(refs) or not names.isdisjoint(self._flights)
            flights = [] if alone else self._begin_together(refs, kind)
        if alone:
            return [self.begin(ref, kind=kind) for ref in refs]
        if flights[0].ticket is None:
            self._give_up_all(flights)
        return flights

    def _begin_together(self, refs: Sequence[SectorRef], kind: Kind) -> list[Flight]:
        flights = [Flight(ref, kind) for ref in refs]
        ticket = self._pool.submit(
            kind, partial(self._fetch_run, flights), partial(self._give_up_all, flights)
        )
        if ticket is not None:
            for flight in flights:
                flight.ticket = ticket
                self._flights[flight.ref.digest.hex] = flight
        return flights

    def _fetch_run(self, flights: list[Flight]) -> None:
        self._depart(flights)
        kind = flights[0].kind
        left = {flight.ref.digest.hex: flight for flight in flights}
        try:
            for sector in self._upstream.get_run([flight.ref for flight in flights], kind=kind):
                flight = left.pop(sector.digest.hex)
                flight.sector = sector
                self._land(flight)
                if self._pool.is_closed:  # nobody waits: the image's end must not wait either
                    self._give_up_all(list(left.values()))
                    return
        except BaseException as error:
            if kind is Kind.READ_AHEAD and getattr(error, "transient", False):
                for flight in left.values():  # one try is all that a guess is worth
                    flight.error = error
                    self._land(flight)
                return
        for flight in left.values():  # asked for singly, each finds its bytes or its error
            self._fetch(flight)

    def _depart(self, flights: Sequence[Flight]) -> None:
        """Settle the kind that a fetch runs as."""
        with self._lock:  # `begin` holds it until the ticket is there
            for flight in flights:
                if flight.ticket is not None:
                    flight.kind = flight.ticket.kind  # promoted while it waited
                    # The ticket refers to this call, hence to the flight: a circle that would
                    # keep 4 MiB until the garbage collector comes by.
                    flight.ticket = None

    def _give_up_all(self, flights: Sequence[Flight]) -> None:
        for flight in flights:
            self._give_up(flight)

    def backlog(self, kind: Kind) -> int:
        """Return how many fetches of a kind have not begun."""
        return self._pool.waiting(kind)

    def _fetch(self, flight: Flight) -> None:
        self._depart([flight])
        try:
            flight.sector = self._upstream.get(flight.ref, kind=flight.kind)
        except BaseException as error:  # whoever waits must hear of it, whatever it is
            flight.error = error
        finally:
            self._land(flight)

    def _give_up(self, flight: Flight) -> None:
        flight.error = RemoteUnavailableError(
            f"sector {flight.ref.digest} is no longer fetched: the image is being closed"
        )
        flight.kind = Kind.DEMAND  # nobody should try again
        flight.ticket = None
        self._land(flight)

    def _land(self, flight: Flight) -> None:
        self._forget(flight)
        flight.done.set()

    def _forget(self, flight: Flight) -> None:
        with self._lock:
            if self._flights.get(flight.ref.digest.hex) is flight:
                del self._flights[flight.ref.digest.hex]

    def _abandon(self, flight: Flight) -> None:
        """Let the next read start afresh: this fetch may hang on a dead connection for long."""
        self._forget(flight)
        ticket = flight.ticket
        if ticket is not None and self._pool.discard(ticket):
            ticket.give_up()
