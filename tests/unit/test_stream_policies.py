"""How deep a stream goes, and how fast: on links that the test makes up."""

from __future__ import annotations

import pytest

from pagein.engine.pace import Pace
from pagein.engine.stream_depth import StreamDepth

RUN = 8_000_000


def stream_over(bytes_per_s: float, round_trip_s: float, *, requests: int, most: int = 8) -> int:
    """Send requests over a link that shares its rate; return the depth at the end."""
    depth, now = StreamDepth(most), 0.0
    depth.begin(now)
    for _ in range(requests):
        one_at_a_time = RUN / bytes_per_s + round_trip_s
        now += max(RUN / bytes_per_s, one_at_a_time / depth.depth)
        depth.answered(RUN, now)
    return depth.depth


def test_a_slow_link_is_full_with_one_request_and_gets_one_to_spare():
    assert stream_over(25e6, 0.001, requests=100) == 2


def test_a_long_way_gets_as_many_requests_as_fill_it():
    # 8 MB take 64 ms at 1 Gbit/s; at a round trip of 200 ms, 4.1 requests fill the link.
    assert stream_over(125e6, 0.2, requests=100) == 5


def test_a_stream_is_never_deeper_than_it_may_be():
    assert stream_over(1e9, 10.0, requests=1000, most=4) == 4


def test_a_stream_begins_with_one_request():
    assert StreamDepth(4).depth == 1


@pytest.mark.parametrize("rate", [1e6, 3e7])
def test_a_paced_fetch_keeps_to_its_rate(rate: float):
    pace, now = Pace(rate), 100.0
    for _ in range(50):
        now += pace.wait_s(RUN, now)
    assert 50 * RUN / rate - 1.01 <= now - 100 <= 50 * RUN / rate + 0.01


def test_an_idle_hour_is_not_made_up_for_in_a_burst():
    pace = Pace(1e6)
    pace.wait_s(1, 0.0)
    assert sum(pace.wait_s(1_000_000, 3600.0) > 0 for _ in range(10)) == 9


def test_without_a_rate_nothing_waits():
    assert Pace(None).wait_s(1 << 40, 0.0) == 0
