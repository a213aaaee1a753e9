"""The daemon's pure parts: names, figures, and what it reads from its environment."""

from __future__ import annotations

import pytest

from pagein.daemon.attachments import id_of
from pagein.daemon.config import Config
from pagein.daemon.image_mounts import cached_usage
from pagein.daemon.metrics import write_metrics
from pagein.daemon.mount_request import fingerprint
from pagein.daemon.notify import Notifier, take_descriptors, watchdog_period_s
from pagein.errors import UsageError
from pagein.snapshotter.values import Usage
from pagein.types import Digest, Encoding, ImageName, SectorRef

INDEX = Digest.of(b"index")
PACK = Digest.of(b"pack")


def test_an_image_has_one_id_in_a_repository_and_another_elsewhere():
    one = id_of(ImageName.parse("host/app:v1"), INDEX)
    assert len(one) == 20
    assert id_of(ImageName.parse("host/app:v2"), INDEX) == one
    assert id_of(ImageName.parse(f"host/app@{INDEX}"), INDEX) == one
    others = {
        id_of(ImageName.parse("host/other:v1"), INDEX),
        id_of(ImageName.parse("other.host/app:v1"), INDEX),
        id_of(ImageName.parse("oci:/app:v1"), INDEX),
        id_of(ImageName.parse("host/app:v1"), PACK),
        id_of(ImageName.parse("host/app:v1"), INDEX, "loop"),
    }
    assert len(others - {one}) == 5


def test_descriptors_are_taken_once_and_only_by_whom_they_are_for():
    given = {"LISTEN_PID": "7", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a", "OTHER": "x"}
    for_another = dict(given)
    assert take_descriptors(for_another, 8) == {}
    assert for_another == {"OTHER": "x"}
    assert take_descriptors(given | {"LISTEN_FDS": "many"}, 7) == {}
    assert take_descriptors({}, 7) == {}


@pytest.mark.parametrize(
    ("environment", "period_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_hears_of_us_twice_as_often_as_it_asks(
    environment: dict[str, str], period_s: float | None
):
    assert watchdog_period_s(environment, 7) == period_s


def test_who_is_not_listened_to_says_nothing():
    environment = {"NOTIFY_SOCKET": ""}
    notifier = Notifier.from_environment(environment)
    assert not notifier.listened_to
    assert environment == {}
    notifier.ready("well")
    notifier.store("a", [1])
    with pytest.raises(UsageError, match="not a name"):
        notifier.store("a:b", [1])
    with pytest.raises(UsageError, match="not an address"):
        Notifier("relative")


def test_another_configuration_has_another_fingerprint():
    assert fingerprint(Config()) == fingerprint(Config(cache_size="20GiB"))
    assert fingerprint(Config()) != fingerprint(Config(cache_size="21GiB"))


def test_usage_counts_what_the_cache_holds_once():
    def ref(name: bytes) -> SectorRef:
        return SectorRef(Digest.of(name), 100, Encoding.ZSTD, PACK, 0, 10)

    zero = SectorRef(Digest.of(b"zero"), 100, Encoding.ZERO)
    held = frozenset({ref(b"a").digest.hex, ref(b"b").digest.hex, zero.digest.hex})
    sectors = (ref(b"a"), zero, ref(b"a"), ref(b"c"), ref(b"b"))
    assert cached_usage(sectors, held) == Usage(200, 2)


def test_figures_are_written_as_prometheus_reads_them():
    text = write_metrics(
        {"reads": 3, "mounts": 1}, [({"image": 'a"b\\c\n'}, {"reads": 2, "hit_rate": None})]
    )
    assert text.splitlines() == [
        "# HELP pagein_reads_total Reads of devices by the kernel.",
        "# TYPE pagein_reads_total counter",
        "pagein_reads_total 3",
        "# HELP pagein_image_reads_total Reads of devices by the kernel.",
        "# TYPE pagein_image_reads_total counter",
        'pagein_image_reads_total{image="a\\"b\\\\c\\n"} 2',
        "# HELP pagein_mounts Mounts of users and containers.",
        "# TYPE pagein_mounts gauge",
        "pagein_mounts 1",
    ]
