"""Recording left on in the daemon: the first starts of an image, kept on the node or pushed."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_under_test import DaemonUnderTest
from node_under_test import NodeUnderTest, wait_until
from recorded_image import FILES, Place, dd, read_json, repository, touched_blocks

pytestmark = pytest.mark.root


@contextlib.contextmanager
def recording(node: NodeUnderTest, **settings: object) -> Iterator[DaemonUnderTest]:
    node.configure(**({"record_starts": 1, "record_seconds": 60.0} | settings))
    daemon = DaemonUnderTest(node)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.end()


def folder(node: NodeUnderTest, place: Place) -> Path:
    return node.root / "lib/profiles" / place.image.digests["app"].removeprefix("sha256:")


def written(node: NodeUnderTest, place: Place) -> list[dict[str, Any]]:
    return [read_json(path) for path in sorted(folder(node, place).glob("*.json"))]


def run(daemon: DaemonUnderTest, place: Place, script: str) -> None:
    daemon.node("run", place.app, "--", "sh", "-c", script)
    wait_until(lambda: daemon.status()["images"] == [])


def test_the_first_starts_are_recorded_and_no_others(place: Place, node: NodeUnderTest):
    with recording(node, record_starts=2) as daemon:
        for number in range(1, 4):
            run(daemon, place, dd("data/big", number * 10, 1))
            wanted = min(number, 2)
            wait_until(lambda wanted=wanted: len(written(node, place)) == wanted)
    profiles = written(node, place)
    found = sorted(touched_blocks(profile) for profile in profiles)
    assert found == [[("data/big", 10)], [("data/big", 20)]]
    assert {profile["read_ahead_kb"] for profile in profiles} == {0}
    assert {profile["source"] for profile in profiles} == {place.image.digests["app"]}
    assert {profile["reference"] for profile in profiles} == {f"docker://{place.app}"}
    assert {len(profile["command"]) for profile in profiles} == {0}
    with recording(node, record_starts=2) as daemon:  # it counts what was written before it began
        run(daemon, place, dd("data/big", 40, 1))
    assert len(written(node, place)) == 2


def test_a_recording_ends_when_its_time_is_up(place: Place, node: NodeUnderTest):
    with recording(node, record_seconds=1.0) as daemon:
        script = f"{dd('data/big', 1, 1)}; read wait; {dd('data/big', 2, 1)}"
        words = ("run", place.app, "--", "sh", "-c", script)
        child = node.start(*words, stdin=subprocess.PIPE)
        wait_until(lambda: written(node, place))
        assert child.poll() is None
        child.communicate("go on\n", timeout=30)
        wait_until(lambda: daemon.status()["images"] == [])
        (profile,) = written(node, place)
    assert touched_blocks(profile) == [("data/big", 1)]
    assert 1 <= profile["seconds"] < 10


def test_time_counts_from_the_first_read(place: Place, node: NodeUnderTest):
    with recording(node, record_seconds=0.3) as daemon:
        target = node.mount(place.app)
        time.sleep(0.7)
        assert written(node, place) == []
        assert (target / "data/small").read_bytes() == b"ten bytes."
        wait_until(lambda: written(node, place))
        node("umount", target)
        wait_until(lambda: daemon.status()["images"] == [])
    (profile,) = written(node, place)
    assert touched_blocks(profile) == [("data/small", 0)]


def read_ahead_kb(node: NodeUnderTest) -> set[int]:
    """What the kernel reads ahead on the trees that the daemon has mounted."""
    records = [read_json(path) for path in (node.root / "run/daemon/devices").glob("*.json")]
    names = [name for record in records for name in record["bdis"]]
    return {int(Path(f"/sys/class/bdi/{name}/read_ahead_kb").read_text()) for name in names}


def test_a_mount_that_was_recorded_gets_its_read_ahead_back(place: Place, node: NodeUnderTest):
    with recording(node, record_seconds=0.5, read_ahead_kb=192) as daemon:
        target = node.mount(place.app)
        assert read_ahead_kb(node) == {0}
        assert (target / "data/small").read_bytes() == b"ten bytes."
        wait_until(lambda: read_ahead_kb(node) == {192})
        wait_until(lambda: written(node, place))
        node("umount", target)
        wait_until(lambda: daemon.status()["images"] == [])


def test_what_a_dead_daemon_recorded_is_lost_and_its_mount_goes_on_as_any_other(
    place: Place, node: NodeUnderTest
):
    with recording(node, read_ahead_kb=192) as daemon:
        target = node.mount(place.app)
        assert (target / "data/small").read_bytes() == b"ten bytes."
        daemon.kill()
        wait_until(daemon.answers)
        assert read_ahead_kb(node) == {192}
        assert (target / "data/odd").read_bytes() == FILES["data/odd"]
        node("umount", target)
        wait_until(lambda: daemon.status()["images"] == [])
    assert written(node, place) == []


def test_mounts_that_share_a_device_are_one_start(place: Place, node: NodeUnderTest):
    with recording(node, record_starts=5) as daemon:
        targets = [node.mount(place.app), node.mount(place.app, "--rw")]
        for target in targets:
            assert (target / "data/small").read_bytes() == b"ten bytes."
        for target in targets:
            node("umount", target)
        wait_until(lambda: daemon.status()["images"] == [])
        wait_until(lambda: written(node, place))
    assert len(written(node, place)) == 1


def test_what_nobody_read_is_no_start(place: Place, node: NodeUnderTest):
    with recording(node) as daemon:
        node("umount", node.mount(place.app))
        wait_until(lambda: daemon.status()["images"] == [])
        run(daemon, place, dd("data/big", 3, 1))
        wait_until(lambda: written(node, place))
    (profile,) = written(node, place)
    assert touched_blocks(profile) == [("data/big", 3)]


def test_a_daemon_that_ends_keeps_what_it_recorded(place: Place, node: NodeUnderTest):
    with recording(node) as daemon:
        target = node.mount(place.app)
        assert (target / "data/small").read_bytes() == b"ten bytes."
        assert daemon.stop() == 0
        (profile,) = written(node, place)
        assert touched_blocks(profile) == [("data/small", 0)]


def test_profiles_are_put_beside_the_image(place: Place, node: NodeUnderTest):
    with recording(node, record_to="registry") as daemon:
        run(daemon, place, dd("data/big", 77, 2))
        wait_until(lambda: written(node, place))
        pulled = node.folder / "pulled"
        wait_until(
            lambda: node("profile", "pull", place.app, "-o", pulled, code=None).returncode == 0
        )
    assert ("data/big", 77) in touched_blocks(read_json(pulled))


def test_a_profile_that_cannot_be_written_costs_no_start(place: Place, node: NodeUnderTest):
    (node.root / "lib").mkdir(parents=True)
    (node.root / "lib/profiles").write_text("in the way")
    with recording(node) as daemon:
        run(daemon, place, dd("data/big", 3, 1))
        wait_until(lambda: "cannot record a start of docker://" in daemon.log.read_text())


def test_a_profile_that_cannot_be_pushed_is_kept_on_the_node(place: Place, node: NodeUnderTest):
    archive = node.folder / "app.tar"
    layout = place.image.layouts / "app"
    subprocess.run(["tar", "-C", layout, "-cf", archive, "."], check=True)
    with recording(node, record_to="registry") as daemon:
        node("run", f"oci-archive:{archive}", "--", "sh", "-c", dd("data/big", 3, 1))
        wait_until(lambda: "cannot record a start of oci-archive:" in daemon.log.read_text())
        assert "cannot be written to" in daemon.log.read_text()
        wait_until(lambda: daemon.status()["images"] == [])
    (profile,) = written(node, place)
    assert touched_blocks(profile) == [("data/big", 3)]


def test_an_image_with_a_hot_region_is_not_recorded(place: Place, node: NodeUnderTest):
    reference = repository(place, "hot")
    node("convert", reference)
    node("record", reference, "-o", node.folder / "profile", "--", "sh", "-c", "echo")
    node("optimize", reference, "--profile", node.folder / "profile")
    with recording(node) as daemon:
        node("run", reference, "--", "sh", "-c", dd("data/big", 3, 1))
        wait_until(lambda: daemon.status()["images"] == [])
    assert not (node.root / "lib/profiles").exists()


def test_nothing_is_recorded_unless_it_is_asked_for(place: Place, node: NodeUnderTest):
    with recording(node, record_starts=0) as daemon:
        run(daemon, place, dd("data/big", 3, 1))
    assert not (node.root / "lib/profiles").exists()
