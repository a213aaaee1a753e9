"""Eviction, read-ahead, back-off, breaker and the order of fetches, against simple models."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pagein.engine.backoff import Backoff
from pagein.engine.breaker import HEALTHY, LONGEST_REST_S
from pagein.engine.coalesce import MOST_BYTES, runs
from pagein.engine.eviction import (
    ONE_USE_AGE_NS,
    TOUCH_PERIOD_NS,
    CacheEntry,
    after_use,
    scan_after,
    victims,
)
from pagein.engine.fetch_queue import FetchQueue, Ticket
from pagein.engine.readahead import GAP, MAX_AHEAD, MAX_WINDOW, ReadAhead
from pagein.events import Kind
from pagein.types import Digest, Encoding, SectorRef

SECTOR = 4 << 20

entries = st.lists(
    st.builds(
        CacheEntry,
        name=st.text("abcdef", min_size=1, max_size=6),
        size=st.integers(0, 100),
        last_ns=st.integers(0, 10 * ONE_USE_AGE_NS),
        previous_ns=st.integers(0, 10 * ONE_USE_AGE_NS),
    ),
    max_size=30,
    unique_by=lambda entry: entry.name,
)


@given(entries, st.integers(0, 2000))
def test_victims_are_just_enough_and_the_least_useful(held: list[CacheEntry], limit: int) -> None:
    gone = victims(held, to_bytes=limit)
    left = [entry for entry in held if entry not in gone]
    assert sum(entry.size for entry in left) <= limit
    if gone:
        assert sum(entry.size for entry in [*left, gone[-1]]) > limit
        assert all(one.worth < other.worth for one in gone for other in left)


@given(st.integers(1, 10**18), st.integers(1, 20), st.integers(1, 20))
def test_one_pass_over_an_image_spares_what_is_used_again(start: int, hot: int, cold: int) -> None:
    minute = TOUCH_PERIOD_NS
    start += ONE_USE_AGE_NS
    used_often = [CacheEntry(f"hot{n}", 1, start, start - minute) for n in range(hot)]
    passed = [CacheEntry(f"cold{n}", 1, start + minute, 0) for n in range(cold)]
    assert {entry.name[:4] for entry in victims(used_often + passed, to_bytes=hot)} == {"cold"}


def test_what_was_used_twice_long_ago_goes_before_what_is_used_today() -> None:
    old = CacheEntry("old", 1, ONE_USE_AGE_NS, ONE_USE_AGE_NS - TOUCH_PERIOD_NS)
    new = CacheEntry("new", 1, 9 * ONE_USE_AGE_NS, 0)
    assert victims([new, old], to_bytes=1) == [old]


@given(st.lists(st.integers(0, 10 * TOUCH_PERIOD_NS), min_size=1))
def test_uses_within_a_minute_count_as_one(steps: list[int]) -> None:
    last = previous = 0
    now = 100 * TOUCH_PERIOD_NS
    last = now
    for step in steps:
        now += step
        before = last
        last, previous = after_use(last, previous, now)
        assert last == now
        assert previous == before if step >= TOUCH_PERIOD_NS else previous != now or not step


@given(st.integers(0, 1 << 45))
def test_a_scan_is_due_before_a_cache_is_a_quarter_over(limit: int) -> None:
    assert scan_after(limit) <= limit // 4


@given(st.integers(1, 60), st.integers(1, 40), st.sampled_from([1, 2, 8, 32]))
def test_a_forward_reader_meets_every_sector_but_the_first_on_its_way(
    start: int, sectors: int, blocks: int
) -> None:
    """From the second sector on each was asked for before it is read, once, and in order."""
    step = blocks * (32 << 10)
    ahead = ReadAhead(sector_size=SECTOR, sectors=start + sectors)
    asked: list[int] = []
    for offset in range(start * SECTOR, (start + sectors) * SECTOR, step):
        here = (offset + step - 1) // SECTOR
        assert here == start or here in asked
        fetch = list(ahead.observe(offset, step))
        assert all(here < index <= here + MAX_WINDOW for index in fetch)
        asked += fetch
    assert asked == list(range(start + 1, start + sectors))


@given(
    st.lists(
        st.tuples(st.integers(0, 1000), st.integers(1, 256)), min_size=1, max_size=50, unique=True
    )
)
def test_reads_that_continue_nothing_fetch_nothing(reads: list[tuple[int, int]]) -> None:
    ahead = ReadAhead(sector_size=SECTOR, sectors=2000)
    ends: list[tuple[int, int]] = []
    for place, kib in reads:
        offset, length = place * SECTOR, kib << 10
        if any(begin <= offset <= end + GAP for begin, end in ends):
            continue
        ends.append((offset, offset + length))
        assert not ahead.observe(offset, length)


@given(
    st.sampled_from([256 << 10, 1 << 20, 4 << 20, 16 << 20]),
    st.lists(st.tuples(st.integers(0, 1 << 28), st.integers(1, 1 << 20)), max_size=200),
)
def test_whatever_is_read_the_window_stays_bounded_and_inside(
    size: int, reads: list[tuple[int, int]]
) -> None:
    count = (1 << 29) // size
    ahead = ReadAhead(sector_size=size, sectors=count)
    for offset, length in reads:
        fetch = ahead.observe(offset, length)
        here = (offset + length - 1) // size
        assert len(fetch) <= max(1, min(MAX_WINDOW, MAX_AHEAD // size))
        assert all(here < index < count for index in fetch)


def test_the_window_doubles_up_to_eight() -> None:
    ahead = ReadAhead(sector_size=SECTOR, sectors=100)
    fetched = [list(ahead.observe(offset, 1 << 20)) for offset in range(0, 5 * SECTOR, 1 << 20)]
    assert [run for run in fetched if run] == [
        [1],
        [2, 3],
        [4, 5, 6],
        [7, 8, 9, 10, 11],
    ]
    fetched = [
        list(ahead.observe(offset, 1 << 20)) for offset in range(5 * SECTOR, 12 * SECTOR, 1 << 20)
    ]
    assert [run for run in fetched if run] == [[12, 13, 14, 15], [16, 17, 18, 19]]


def test_two_readers_at_once_both_get_ahead() -> None:
    ahead = ReadAhead(sector_size=SECTOR, sectors=100)
    asked = set()
    for offset in range(0, SECTOR, 128 << 10):
        asked.update(ahead.observe(offset, 128 << 10))
        asked.update(ahead.observe(50 * SECTOR + offset, 128 << 10))
    assert asked == {1, 51}


stored = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(1, SECTOR), st.booleans()), max_size=30
)


@given(stored, st.integers(1, 8))
def test_runs_are_neighbours_in_one_pack_within_bounds_and_lose_nothing(
    layout: list[tuple[str, int, bool]], most: int
) -> None:
    ends = {"a": 0, "b": 0}
    refs = []
    for number, (pack, size, gap) in enumerate(layout):
        offset = ends[pack] + gap
        name, digest = Digest.of(pack.encode()), Digest.of(bytes([number]))
        refs.append(SectorRef(digest, SECTOR, Encoding.ZSTD, name, offset, size))
        ends[pack] = offset + size
    found = runs(refs, most_sectors=most)
    assert [ref for run in found for ref in run] == refs
    for run in found:
        assert 1 <= len(run) <= most
        assert run[-1].offset + run[-1].stored - run[0].offset <= MOST_BYTES
        assert len({ref.pack for ref in run}) == 1
        for one, other in itertools.pairwise(run):
            assert other.offset == one.offset + one.stored


@given(st.integers(1, 5000), st.floats(0, 1, exclude_max=True), st.floats(0, 1000))
def test_a_wait_is_bounded_and_never_under_what_the_peer_asked(
    failures: int, draw: float, asked: float
) -> None:
    backoff = Backoff(first_s=0.5, longest_s=8)
    assert 0 <= backoff.delay(failures, draw) <= 8
    assert asked <= backoff.delay(failures, draw, retry_after=asked) <= asked + 8


@given(st.integers(1, 3000), st.floats(0, 1e9))
def test_a_failing_source_rests_longer_but_never_for_good(failures: int, now: float) -> None:
    state = HEALTHY
    assert state.allows(now)
    for _ in range(failures):
        state = state.failed(now)
    assert not state.allows(now)
    assert state.allows(now + LONGEST_REST_S + 1)


actions = st.lists(
    st.one_of(st.sampled_from(list(Kind)), st.just("take"), st.integers(0, 20)), max_size=120
)


@given(actions, st.integers(1, 4), st.integers(1, 4))
def test_demand_never_waits_for_a_lower_kind(
    script: list[Kind | str | int], slots: int, demand_slots: int
) -> None:
    queue = FetchQueue(slots=slots, demand_slots=demand_slots)
    running: list[Ticket] = []
    for action in script:
        if isinstance(action, Kind):
            queue.push(Ticket(action, lambda: None, lambda: None))
        elif action == "take":
            waiting = {kind: queue.waiting(kind) for kind in Kind}
            demand = sum(ticket.kind is Kind.DEMAND for ticket in running)
            taken = queue.take()
            if taken is not None:
                running.append(taken)
            if waiting[Kind.DEMAND] and demand < demand_slots:
                assert taken is not None
                assert taken.kind is Kind.DEMAND
            assert sum(ticket.kind is not Kind.DEMAND for ticket in running) <= slots
        elif running:
            queue.ended(running.pop(action % len(running)))


def test_a_promoted_read_ahead_goes_first_and_background_yields_to_demand() -> None:
    queue = FetchQueue(slots=2, demand_slots=1)
    first, second, demand = (
        Ticket(kind, lambda: None, lambda: None)
        for kind in (Kind.READ_AHEAD, Kind.READ_AHEAD, Kind.DEMAND)
    )
    hydrate = [Ticket(Kind.HYDRATE, lambda: None, lambda: None) for _ in range(3)]
    for ticket in (first, second, *hydrate):
        queue.push(ticket)
    queue.promote(second, Kind.DEMAND)
    assert queue.take() is second
    queue.push(demand)
    assert queue.take() is first
    assert queue.take() is hydrate[0]
    assert queue.take() is None
    queue.ended(first)
    assert queue.take() is None, "one background fetch at a time while demand waits"
    queue.ended(second)
    assert queue.take() is demand
    queue.ended(demand)
    assert queue.take() is hydrate[1]
