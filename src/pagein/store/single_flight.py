"""One fetch a sector, however many readers wait for it.

Rule 1. The fetch runs on a thread of the pool. Every reader waits with a deadline, also the first.
Rule 2. A fetch that dies wakes all who wait for it, with its error.
Rule 3. A reader does not pay for a lower kind: when a read-ahead fails that it had joined, it tries
for itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from pagein.engine.fetch_queue import Ticket, is_more_urgent
from pagein.errors import RemoteUnavailableError
from pagein.events import Kind
from pagein.store.pool import FetchPool
from pagein.store.source import SectorSource
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
        upstream: SectorSource,
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

    def backlog(self, kind: Kind) -> int:
        """Return how many fetches of a kind have not begun."""
        return self._pool.waiting(kind)

    def _fetch(self, flight: Flight) -> None:
        with self._lock:  # `begin` holds it until the ticket is there
            if flight.ticket is not None:
                flight.kind = flight.ticket.kind  # promoted while it waited
                # The ticket refers to this call, hence to the flight: a circle that would keep
                # 4 MiB until the garbage collector comes by.
                flight.ticket = None
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
            self._give_up(flight)
