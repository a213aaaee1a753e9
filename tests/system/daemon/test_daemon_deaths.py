"""What a reader, a mount and a container go through when the daemon ends, or the machine does."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from counting_proxy import CountingProxy, Gate
from daemon_under_test import DaemonUnderTest, reboot
from node_image import BIG, PARTS
from node_under_test import mounts_below, wait_until

from pagein.testing.docker_registry import DockerRegistry

pytestmark = pytest.mark.root
WAIT_S = 30


@pytest.fixture
def gate(proxy: CountingProxy) -> Iterator[Gate]:
    gate = Gate(proxy)
    yield gate
    gate.opened.set()


@contextmanager
def reading(path: Path, gate: Gate) -> Iterator[list[bytes]]:
    """Have a file read by another process, which waits at the gate; it must end well."""
    found: list[bytes] = []
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as reader:
        assert gate.reached.wait(WAIT_S)
        yield found
        gate.opened.set()
        found.append(reader.communicate(timeout=WAIT_S)[0])
    assert reader.returncode == 0, (path.parents[2] / "daemon.log").read_text()


@pytest.mark.parametrize("after_s", [0.2, 0.25])
def test_a_mount_is_made_though_the_daemon_dies_over_it(
    after_s: float, daemon: DaemonUnderTest, registry: DockerRegistry
):
    node, target = daemon.node, daemon.node.target()
    before = daemon.pid
    with node.start("mount", f"{registry.host}/app:v1", target) as mounting:
        time.sleep(after_s)
        os.kill(before, signal.SIGKILL)
    assert mounting.returncode == 0
    assert (target / "data/part1").read_bytes() == PARTS["part1"]
    wait_until(daemon.answers)
    assert [one["target"] for one in node.status()] == [str(target)]
    node("umount", target)


def test_a_reader_does_not_notice_that_the_daemon_is_killed_again_and_again(
    daemon: DaemonUnderTest, proxy: CountingProxy, gate: Gate
):
    target = daemon.node.mount(f"{proxy.host}/app:v1", "--rw")
    with reading(target / "data/big", gate) as found:
        for _ in range(3):
            before = daemon.kill()
            wait_until(lambda before=before: daemon.answers() and daemon.pid != before)
            assert (target / "etc/passwd").stat().st_size > 0
    assert found == [BIG]
    daemon.node("umount", target)
    wait_until(daemon.is_idle)


def test_readers_wait_for_the_daemon_that_comes_after_one_that_was_stopped(
    daemon: DaemonUnderTest, proxy: CountingProxy, gate: Gate
):
    target = daemon.node.mount(f"{proxy.host}/app:v1")
    with reading(target / "data/big", gate) as found:
        assert daemon.stop() == 0
        assert mounts_below(target) == [str(target)]
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit((target / "data/part2").read_bytes)
            assert not late.done()
            daemon.start()
            gate.opened.set()
            assert late.result(WAIT_S) == PARTS["part2"]
    assert found == [BIG]
    assert [one["target"] for one in daemon.node.status()] == [str(target)]


def test_a_container_goes_on_through_a_death_of_the_daemon(
    daemon: DaemonUnderTest, proxy: CountingProxy
):
    script = "echo up; read line; cat /data/part3"
    with daemon.node.start(
        *("run", f"{proxy.host}/app:v1", "--", "sh", "-c", script),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=False,
    ) as container:
        assert container.stdout is not None
        assert container.stdout.readline() == b"up\n"
        before = daemon.kill()
        wait_until(lambda: daemon.answers() and daemon.pid != before)
        out, _ = container.communicate(b"go\n", timeout=WAIT_S)
    assert (container.returncode, out) == (0, PARTS["part3"])
    wait_until(lambda: daemon.status()["images"] == [])


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Close a process's input afterwards, whatever happens, and wait for its end."""
    try:
        yield
    finally:
        process.communicate(timeout=WAIT_S)


def test_mounts_come_back_where_nobody_kept_their_device(
    daemon: DaemonUnderTest, registry: DockerRegistry
):
    node, reference = daemon.node, f"{registry.host}/app:v1"
    plain, writable = node.mount(reference), node.mount(reference, "--rw")
    (writable / "kept").write_text("what was written")
    container = node.start(
        *("run", reference, "--", "sh", "-c", "echo up; read line"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with ended(container):
        assert container.stdout is not None
        assert container.stdout.readline() == "up\n"
        daemon.kill_both()
        with pytest.raises(OSError) as caught:
            (plain / "data/big").read_bytes()
        assert caught.value.errno == errno.EIO
        daemon.start()
        assert (plain / "data/big").read_bytes() == BIG
        assert (writable / "kept").read_text() == "what was written"
        (image,) = daemon.status()["daemon"]["lost"]
        assert any(Path(target).name in {"", "rootfs"} for _, target in image["users"])
        assert "has no server; restart it" in node("status").stdout
        assert "restart its container" in daemon.log.read_text()
    assert sorted(one["target"] for one in node.status()) == sorted(map(str, (plain, writable)))


def test_mounts_come_back_after_a_reboot_with_the_registry_down(
    daemon: DaemonUnderTest, proxy: CountingProxy
):
    node = daemon.node
    target = node.mount(f"{proxy.host}/app:v1")
    assert (target / "data/big").read_bytes() == BIG
    daemon.kill_both()
    proxy.stop()
    reboot(node)
    assert not (target / "data").exists()
    daemon.start()
    assert (target / "data/big").read_bytes() == BIG
    assert sorted(os.listdir(target / "data")) == ["big", *sorted(PARTS)]


def test_what_was_unmounted_while_no_daemon_ran_stays_unmounted(
    daemon: DaemonUnderTest, registry: DockerRegistry
):
    target = daemon.node.mount(f"{registry.host}/app:v1")
    other = daemon.node.mount(f"{registry.host}/app:v1", "--rw")
    assert daemon.stop() == 0
    subprocess.run(["umount", target], check=True)
    daemon.node("umount", other)
    daemon.start()
    status = daemon.status()
    assert (status["mounts"], status["images"]) == ([], [])
    assert mounts_below(daemon.node.folder) == []
    assert list((daemon.node.root / "lib/writable").iterdir()) == []


def test_the_holder_ends_with_the_last_mount(daemon: DaemonUnderTest, registry: DockerRegistry):
    target = daemon.node.mount(f"{registry.host}/app:v1")
    assert daemon.stop() == 0
    assert len(daemon.node.processes()) == 1
    started = time.monotonic()
    for mounted in reversed(mounts_below(daemon.node.folder)):
        subprocess.run(["umount", mounted], check=True)
    wait_until(lambda: daemon.node.processes() == [])
    assert time.monotonic() - started < WAIT_S
    assert mounts_below(target) == []
