"""One fetch a sector; deadlines; what happens when the fetch dies."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pagein.errors import NotFoundError, RemoteUnavailableError, SectorCorruptError
from pagein.events import Kind
from pagein.store.pool import FetchPool
from pagein.store.single_flight import Flight, SingleFlightSource
from pagein.testing.contract_sources import REFS, SECTORS
from pagein.testing.faulty_source import BytesSource, FaultySource

Eventually = Callable[[Callable[[], bool]], None]


@pytest.fixture
def pool() -> Iterator[FetchPool]:
    with FetchPool(workers=1, demand_workers=2) as made:
        yield made


def test_sixty_four_readers_cost_one_fetch(pool: FetchPool, eventually: Eventually) -> None:
    held = threading.Event()
    upstream = FaultySource(BytesSource(SECTORS), [lambda: held.wait(20) and None])
    source = SingleFlightSource(upstream, pool, timeout_s=20)
    flight = source.begin(REFS[0], kind=Kind.DEMAND)
    with ThreadPoolExecutor(64) as readers:
        answers = [readers.submit(source.get, REFS[0]) for _ in range(64)]
        eventually(lambda: len(flight.done._cond._waiters) == 64)  # type: ignore[attr-defined]
        held.set()
        assert {bytes(answer.result(20).data) for answer in answers} == {SECTORS[0]}
    assert upstream.calls == 1


def test_all_who_wait_while_it_runs_share_one_fetch(pool: FetchPool) -> None:
    held = threading.Event()
    upstream = FaultySource(BytesSource(SECTORS), [lambda: held.wait(20) and None])
    source = SingleFlightSource(upstream, pool, timeout_s=20)
    flights = [source.begin(REFS[0], kind=Kind.DEMAND) for _ in range(64)]
    held.set()
    for flight in flights:
        assert flight.done.wait(20)
    assert len(set(map(id, flights))) == 1
    assert upstream.calls == 1


def test_a_fetch_that_dies_wakes_everyone_with_its_error_and_the_next_read_tries_again(
    pool: FetchPool,
) -> None:
    held = threading.Event()

    def die() -> None:
        held.wait(20)
        raise ZeroDivisionError("a bug")

    source = SingleFlightSource(FaultySource(BytesSource(SECTORS), [die]), pool, timeout_s=20)
    with ThreadPoolExecutor(8) as readers:
        first = source.begin(REFS[0], kind=Kind.DEMAND)
        answers = [readers.submit(source.get, REFS[0]) for _ in range(8)]
        held.set()
        first.done.wait(20)
        for answer in answers:
            with contextlib.suppress(ZeroDivisionError):
                assert answer.result(20).data == SECTORS[0]  # came after the death
    assert isinstance(first.error, ZeroDivisionError)
    assert source.get(REFS[0]).data == SECTORS[0]


def test_a_reader_waits_no_longer_than_its_deadline_and_a_later_read_starts_afresh(
    pool: FetchPool,
) -> None:
    stuck = threading.Event()
    upstream = FaultySource(BytesSource(SECTORS), [lambda: stuck.wait(20) and None])
    source = SingleFlightSource(upstream, pool, timeout_s=0.05)
    with pytest.raises(RemoteUnavailableError, match=r"did not arrive within 0.05 s"):
        source.get(REFS[0])
    source._timeout_s = 20
    assert source.get(REFS[0]).data == SECTORS[0]
    stuck.set()


def test_demand_goes_ahead_of_queued_read_ahead_and_promotes_its_own_sector(
    pool: FetchPool, eventually: Eventually
) -> None:
    held = threading.Event()
    bytes_source = BytesSource(SECTORS)
    upstream = FaultySource(bytes_source, [lambda: held.wait(20) and None])
    source = SingleFlightSource(upstream, pool, timeout_s=20)
    source.begin(REFS[0], kind=Kind.READ_AHEAD)  # takes the only slot of its kind
    eventually(lambda: upstream.calls == 1)
    queued = [source.begin(ref, kind=Kind.READ_AHEAD) for ref in REFS[1:]]
    assert source.get(REFS[3]).data == SECTORS[3]
    assert [flight.done.is_set() for flight in queued] == [False, False, True]
    assert bytes_source.asked == [(REFS[3].digest.hex, Kind.DEMAND)]
    held.set()
    assert all(flight.done.wait(20) for flight in queued)


def test_a_reader_that_joined_a_failing_read_ahead_tries_for_itself(
    pool: FetchPool, eventually: Eventually
) -> None:
    held = threading.Event()

    def fail() -> None:
        held.wait(20)
        raise RemoteUnavailableError("the read-ahead got one try")

    upstream = FaultySource(BytesSource(SECTORS), [fail])
    source = SingleFlightSource(upstream, pool, timeout_s=20)
    source.begin(REFS[0], kind=Kind.READ_AHEAD)
    eventually(lambda: upstream.calls == 1)  # one that waits would become the reader's own
    with ThreadPoolExecutor(1) as reader:
        answer = reader.submit(source.get, REFS[0])
        held.set()
        assert answer.result(20).data == SECTORS[0]


def test_closing_the_pool_wakes_who_waits_for_what_never_began(eventually: Eventually) -> None:
    pool = FetchPool(workers=1, demand_workers=1)
    held = threading.Event()
    upstream = FaultySource(BytesSource(SECTORS), [lambda: held.wait(20) and None])
    source = SingleFlightSource(upstream, pool, timeout_s=20)
    running = source.begin(REFS[0], kind=Kind.HYDRATE)
    eventually(lambda: upstream.calls == 1)
    waiting = source.begin(REFS[1], kind=Kind.HYDRATE)
    threading.Timer(0.05, held.set).start()
    pool.close()
    assert isinstance(waiting.error, RemoteUnavailableError)
    assert running.sector is not None
    with pytest.raises(RemoteUnavailableError, match="being closed"):
        source.get(REFS[2])


def test_hundreds_of_fetches_of_every_kind_all_land(pool: FetchPool) -> None:
    source = SingleFlightSource(BytesSource(SECTORS[:2]), pool, timeout_s=20)
    kinds = list(Kind)
    flights = [source.begin(REFS[n % 4], kind=kinds[n % 4]) for n in range(400)]
    for flight in flights:
        assert flight.done.wait(20)
        assert (flight.sector is not None) != isinstance(flight.error, NotFoundError)


def test_a_run_lands_sector_by_sector_and_what_fails_in_it_is_asked_for_singly(
    pool: FetchPool,
) -> None:
    upstream = FaultySource(BytesSource(SECTORS), [None, SectorCorruptError("a bit flipped")])
    source = SingleFlightSource(upstream, pool, timeout_s=20)
    flights = source.begin_run(REFS, kind=Kind.HYDRATE)
    assert all(flight.done.wait(20) for flight in flights)
    assert [flight.sector.data for flight in flights if flight.sector] == list(SECTORS)
    assert upstream.calls == 5


def test_a_read_ahead_run_gets_one_try_and_its_reader_tries_for_itself(
    pool: FetchPool, eventually: Eventually
) -> None:
    held = threading.Event()

    def fail() -> None:
        held.wait(20)
        raise RemoteUnavailableError("no answer")

    upstream = FaultySource(BytesSource(SECTORS), [fail])
    source = SingleFlightSource(upstream, pool, timeout_s=20)
    flights = source.begin_run(REFS, kind=Kind.READ_AHEAD)
    eventually(lambda: upstream.calls == 1)
    with ThreadPoolExecutor(1) as reader:
        answer = reader.submit(source.get, REFS[2])
        held.set()
        assert answer.result(20).data == SECTORS[2]
    assert all(flight.done.wait(20) for flight in flights)
    assert all(isinstance(flight.error, RemoteUnavailableError) for flight in flights)
    assert upstream.calls == 2


def test_a_sector_that_is_under_way_is_not_fetched_again_by_a_run(pool: FetchPool) -> None:
    held = threading.Event()
    upstream = FaultySource(BytesSource(SECTORS), [lambda: held.wait(20) and None])
    source = SingleFlightSource(upstream, pool, timeout_s=20)
    first = source.begin(REFS[1], kind=Kind.DEMAND)
    flights = source.begin_run(REFS, kind=Kind.READ_AHEAD)
    held.set()
    assert all(flight.done.wait(20) for flight in flights)
    assert flights[1] is first
    assert upstream.calls == 4


def test_a_landed_sector_is_freed_with_its_last_reader(
    pool: FetchPool, eventually: Eventually
) -> None:
    source = SingleFlightSource(BytesSource(SECTORS), pool, timeout_s=20)
    gc.collect()
    gc.disable()  # a circle of references would keep 4 MiB for each fetch until it runs
    try:
        for ref in REFS:
            source.get(ref)
        eventually(lambda: not any(isinstance(each, Flight) for each in gc.get_objects()))
    finally:
        gc.enable()
