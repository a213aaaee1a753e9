"""Back-off and deadlines on a clock of the test's own; mirrors that fail, lie, or lack a pack."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pagein.engine.backoff import Backoff
from pagein.errors import (
    NotFoundError,
    PageinError,
    RemoteDeniedError,
    RemoteUnavailableError,
    SectorCorruptError,
)
from pagein.events import FetchFailed, Kind, SectorCorrupt, SectorFetched
from pagein.store.failover import FailoverSource
from pagein.store.pack import PackSource
from pagein.store.retrying import RetryingSource
from pagein.testing.contract_sources import PACK, REFS, SECTORS
from pagein.testing.faulty_source import BytesSource, FaultySource, PackFile, Step
from pagein.types import ByteRange


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def pause(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        self.now += seconds
        return True


def _down(retry_after: float | None = None) -> RemoteUnavailableError:
    return RemoteUnavailableError("no answer", retry_after=retry_after)


def _retrying(
    script: list[Step], clock: Clock, **more: float
) -> tuple[RetryingSource, FaultySource]:
    upstream = FaultySource(BytesSource(SECTORS), script)
    source = RetryingSource(
        upstream,
        backoff=Backoff(first_s=1, longest_s=4),
        pause=clock.pause,
        monotonic=clock.monotonic,
        draw=lambda: 0.5,
        **more,
    )
    return source, upstream


def test_what_may_work_later_is_tried_again_with_growing_waits() -> None:
    clock = Clock()
    source, upstream = _retrying([_down() for _ in range(5)], clock)
    assert source.get(REFS[0]).data == SECTORS[0]
    assert upstream.calls == 6
    assert clock.pauses == [0.5, 1, 2, 2, 2]


def test_a_time_that_the_peer_names_is_obeyed() -> None:
    clock = Clock()
    source, _ = _retrying([_down(retry_after=7)], clock)
    source.get(REFS[0])
    assert clock.pauses == [7.5]


def test_a_peer_that_asks_for_more_time_than_there_is_fails_at_once() -> None:
    clock = Clock()
    source, upstream = _retrying([_down(retry_after=3600)], clock)
    with pytest.raises(RemoteUnavailableError):
        source.get(REFS[0])
    assert (upstream.calls, clock.pauses) == (1, [])


def test_retries_end_at_the_deadline() -> None:
    clock = Clock()
    source, _ = _retrying([_down() for _ in range(99)], clock, timeout_s=10)
    with pytest.raises(RemoteUnavailableError, match="no answer"):
        source.get(REFS[0])
    assert 0 < sum(clock.pauses) < 10


@pytest.mark.parametrize(
    "error", [NotFoundError("no"), RemoteDeniedError("no"), SectorCorruptError("no")]
)
def test_what_time_does_not_mend_is_not_tried_again(error: PageinError) -> None:
    clock = Clock()
    source, upstream = _retrying([error], clock)
    with pytest.raises(type(error)):
        source.get(REFS[0])
    assert (upstream.calls, clock.pauses) == (1, [])


def test_a_read_ahead_gets_one_try() -> None:
    clock = Clock()
    source, upstream = _retrying([_down()], clock)
    with pytest.raises(RemoteUnavailableError):
        source.get(REFS[0], kind=Kind.READ_AHEAD)
    assert upstream.calls == 1


def test_a_closing_image_stops_the_retries() -> None:
    upstream = FaultySource(BytesSource(SECTORS), [_down()])
    source = RetryingSource(upstream, pause=lambda seconds: False)
    with pytest.raises(RemoteUnavailableError):
        source.get(REFS[0])


def test_mirrors_are_asked_in_order_and_a_failing_one_rests() -> None:
    clock = Clock()
    mirror = FaultySource(BytesSource(SECTORS), [_down(), _down()])
    origin = FaultySource(BytesSource(SECTORS))
    source = FailoverSource([mirror, origin], monotonic=clock.monotonic)
    for _ in range(3):
        assert source.get(REFS[0]).data == SECTORS[0]
    assert (mirror.calls, origin.calls) == (1, 3)
    clock.now += 1.5  # its first rest is over: it fails again, and now rests for two seconds
    source.get(REFS[0])
    clock.now += 1.5
    source.get(REFS[0])
    assert (mirror.calls, origin.calls) == (2, 5)
    clock.now += 1
    source.get(REFS[0])
    source.get(REFS[0])
    assert (mirror.calls, origin.calls) == (4, 5)


def test_when_all_rest_all_are_asked() -> None:
    clock = Clock()
    one = FaultySource(BytesSource(SECTORS), [_down()])
    two = FaultySource(BytesSource(SECTORS), [_down()])
    source = FailoverSource([one, two], monotonic=clock.monotonic)
    with pytest.raises(RemoteUnavailableError):
        source.get(REFS[0])
    assert source.get(REFS[0]).data == SECTORS[0]


def test_a_pack_that_a_mirror_lacks_does_not_spoil_its_other_packs() -> None:
    clock = Clock()
    other = REFS[0].__class__(
        REFS[1].digest, REFS[1].size, REFS[1].encoding, REFS[1].digest, 0, REFS[1].stored
    )
    mirror = FaultySource(BytesSource(SECTORS), [NotFoundError("this pack is not here")])
    origin = FaultySource(BytesSource(SECTORS))
    source = FailoverSource([mirror, origin], monotonic=clock.monotonic)
    source.get(REFS[0])
    source.get(REFS[0])
    assert (mirror.calls, origin.calls) == (1, 2)
    source.get(other)
    assert (mirror.calls, origin.calls) == (2, 2)


def test_a_transient_error_is_the_one_that_counts_when_all_fail() -> None:
    sources = [FaultySource(BytesSource(), [error]) for error in (_down(), NotFoundError("no"))]
    with pytest.raises(RemoteUnavailableError):
        FailoverSource(sources).get(REFS[0])


def test_a_lying_mirror_costs_an_event_and_never_a_wrong_byte(watcher) -> None:
    def flip(span: ByteRange, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1])

    liar = PackSource(PackFile([PACK], name="liar", damage=flip), observer=watcher)
    honest = PackSource(PackFile([PACK], name="honest"), observer=watcher)
    source = FailoverSource([liar, honest])
    for ref, data in zip(REFS, SECTORS, strict=True):
        assert source.get(ref).data == data
    assert watcher.of(SectorCorrupt) == [SectorCorrupt(REFS[0].digest, "liar")]
    assert [event.source for event in watcher.of(SectorFetched)] == ["honest"] * 4
    assert [event.stored for event in watcher.of(SectorFetched)] == [r.stored for r in REFS]


def test_a_bit_that_flips_once_on_the_way_is_fetched_again(watcher) -> None:
    flips = [True]

    def flip_once(span: ByteRange, data: bytes) -> bytes:
        return bytes([data[0] ^ 255]) + data[1:] if flips and flips.pop() else data

    pack = PackFile([PACK], damage=flip_once)
    source = FailoverSource([PackSource(pack, observer=watcher)])
    assert source.get(REFS[1]).data == SECTORS[1]
    assert len(watcher.of(SectorCorrupt)) == 1
    assert len(pack.reads) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda span, data: data[:-1],
        lambda span, data: data + b"x",
        lambda span, data: b"",
        lambda span, data: data[::-1],
        lambda span, data: bytes(len(data)),
    ],
)
def test_damaged_packs_end_in_one_error_and_never_in_bytes(
    damage: Callable[[ByteRange, bytes], bytes], watcher
) -> None:
    source = FailoverSource([PackSource(PackFile([PACK], damage=damage), observer=watcher)])
    for ref in REFS:
        with pytest.raises(SectorCorruptError):
            source.get(ref)
    assert len(watcher.of(SectorCorrupt)) == 2 * len(REFS)
    assert watcher.of(SectorFetched) == []


def test_every_failed_try_is_an_event(watcher) -> None:
    def refuse(span: ByteRange, data: bytes) -> bytes:
        raise _down()

    pack = PackSource(PackFile([PACK], name="a", damage=refuse), observer=watcher)
    with pytest.raises(RemoteUnavailableError):
        pack.get(REFS[0])
    assert watcher.of(FetchFailed) == [FetchFailed(REFS[0].digest, "a", "no answer", True)]
