"""Starts of an optimized image: what is read from the kernel's memory, and what happens if not."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from counting_proxy import Asked, CountingProxy, Gate
from daemon_under_test import DaemonUnderTest
from hot_image import HOT_BLOCKS
from node_under_test import NodeUnderTest, wait_until
from recorded_image import BLOCK, FILES

from pagein.testing.docker_registry import DockerRegistry

pytestmark = pytest.mark.root
WAIT_S = 30
BIG = FILES["data/big"]


def touch(path: Path, blocks: Iterable[int] = HOT_BLOCKS) -> None:
    """Touch single blocks, as page faults do, and hold them against what they must be."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        for block in blocks:
            assert os.pread(file, BLOCK, block * BLOCK) == block_of_big(block)
    finally:
        os.close(file)


def block_of_big(block: int) -> bytes:
    return BIG[block * BLOCK : (block + 1) * BLOCK]


def is_streamed(node: NodeUnderTest, reference: str) -> bool:
    """Whether the whole hot region is here."""
    facts = json.loads(node("inspect", "--json", reference).stdout)
    assert facts["hot_sectors"] > 1
    return figures(node)["sectors_fetched"] >= facts["hot_sectors"]


def figures(node: NodeUnderTest) -> dict[str, Any]:
    (only,) = node.status()
    return only


def ranges(proxy: CountingProxy) -> list[Asked]:
    return [one for one in proxy.asked("blobs") if one.span is not None]


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


@pytest.fixture
def gate(proxy: CountingProxy) -> Iterator[Gate]:
    gate = Gate(proxy)
    yield gate
    gate.opened.set()


def test_a_start_on_its_profile_reads_from_the_kernels_memory_alone(
    node: NodeUnderTest, registry: DockerRegistry
):
    app = f"{registry.host}/app:v1"
    with node.mounted(app) as target:
        wait_until(lambda: is_streamed(node, app))
        before = figures(node)
        touch(target / "data/big")
        after = figures(node)
    assert after["reads"] == before["reads"]
    assert after["bytes_fetched"] == before["bytes_fetched"]


def test_a_read_that_comes_before_its_sector_waits_for_it(
    node: NodeUnderTest, proxy: CountingProxy, gate: Gate
):
    with node.mounted(f"{proxy.host}/app:v1") as target:
        assert gate.reached.wait(WAIT_S)
        reader = threading.Thread(target=touch, args=(target / "data/big",))
        reader.start()
        reader.join(0.3)
        assert reader.is_alive()
        gate.opened.set()
        reader.join(WAIT_S)
        assert not reader.is_alive()
    asked = [one.span for one in ranges(proxy)]
    assert len(asked) == len(set(asked))


def test_what_the_kernel_has_dropped_comes_from_the_cache(
    node: NodeUnderTest, proxy: CountingProxy
):
    app = f"{proxy.host}/app:v1"
    with node.mounted(app) as target:
        wait_until(lambda: is_streamed(node, app))
        drop_caches()
        proxy.forget()
        touch(target / "data/big")
        assert ranges(proxy) == []
        assert (target / "data/big").read_bytes() == BIG


def test_nothing_is_fetched_unasked_where_that_is_what_was_asked_for(
    node: NodeUnderTest, proxy: CountingProxy
):
    with node.mounted(f"{proxy.host}/app:v1", "--prefetch", "none") as target:
        assert figures(node)["sectors_fetched"] == 0
        touch(target / "data/big", HOT_BLOCKS[:1])
        assert figures(node)["sectors_fetched"] == 1
    assert len(ranges(proxy)) == 1


@pytest.mark.parametrize(
    "option", [("--prefetch", "all"), ("--hydrate", "after=100ms,rate=100MiB")]
)
def test_the_rest_follows_where_all_is_to_be_here(
    option: tuple[str, str], node: NodeUnderTest, proxy: CountingProxy
):
    app = f"{proxy.host}/app:v1"
    with node.mounted(app, *option) as target:
        wanted = json.loads(node("inspect", "--json", app).stdout)["distinct_sectors"]
        wait_until(lambda: figures(node)["sectors_fetched"] == wanted)
        proxy.stop()
        drop_caches()
        assert (target / "data/big").read_bytes() == BIG
        assert (target / "data/odd").read_bytes() == FILES["data/odd"]


def test_a_rate_holds_the_stream_back(node: NodeUnderTest, registry: DockerRegistry):
    app = f"{registry.host}/app:v1"
    with node.mounted(app, "--prefetch-rate", "1KiB") as target:
        assert not is_streamed(node, app)
        touch(target / "data/big")  # readers do not wait for the stream
        assert figures(node)["hits"] < figures(node)["reads"]


def erofs_read_aheads() -> dict[str, int]:
    return {
        path.parent.name: int(path.read_text())
        for path in Path("/sys/class/bdi").glob("erofs-*/read_ahead_kb")
    }


def test_a_start_keeps_the_read_ahead_that_its_profile_was_recorded_with(
    node: NodeUnderTest, registry: DockerRegistry
):
    others = erofs_read_aheads()
    with node.mounted(f"{registry.host}/app:v1"):
        (bdi,) = set(erofs_read_aheads()) - set(others)
        assert erofs_read_aheads()[bdi] == 0


@pytest.mark.slow
def test_a_start_that_is_over_gets_the_read_ahead_of_every_day(
    node: NodeUnderTest, registry: DockerRegistry
):
    others = erofs_read_aheads()
    with node.mounted(f"{registry.host}/app:v1") as target:
        (bdi,) = set(erofs_read_aheads()) - set(others)
        time.sleep(29)
        assert erofs_read_aheads()[bdi] == 0
        wait_until(lambda: erofs_read_aheads()[bdi] == 256)
        touch(target / "data/big", range(768))


def test_a_start_that_leaves_its_profile_does_not_read_page_by_page(
    node: NodeUnderTest, registry: DockerRegistry
):
    app = f"{registry.host}/app:v1"
    with node.mounted(app) as target:
        wait_until(lambda: is_streamed(node, app))
        before = figures(node)["reads"]
        assert (target / "data/big").read_bytes() == BIG
        after = figures(node)["reads"]
    cold = len(BIG) // BLOCK - len(HOT_BLOCKS)
    assert 0 < after - before < cold // 4


def test_a_loop_device_of_an_optimized_image_reads_right(
    node: NodeUnderTest, registry: DockerRegistry
):
    with node.mounted(f"{registry.host}/app:v1", "--backend", "loop") as target:
        touch(target / "data/big")
        assert (target / "data/big").read_bytes() == BIG


def test_a_container_starts_from_an_optimized_image(node: NodeUnderTest, registry: DockerRegistry):
    done = node("run", "--rm", f"{registry.host}/app:v1", "--", "sh", "-c", "cat /data/small")
    assert done.stdout == FILES["data/small"].decode()


def test_a_daemon_that_dies_over_a_start_costs_its_readers_nothing(
    daemon: DaemonUnderTest, proxy: CountingProxy, gate: Gate
):
    others = erofs_read_aheads()
    target = daemon.node.mount(f"{proxy.host}/app:v1")
    assert gate.reached.wait(WAIT_S)
    (bdi,) = set(erofs_read_aheads()) - set(others)
    with subprocess.Popen(["cat", target / "data/big"], stdout=subprocess.PIPE) as reader:
        before = daemon.kill()
        wait_until(lambda: daemon.answers() and daemon.pid != before)
        gate.opened.set()
        assert reader.communicate(timeout=WAIT_S)[0] == BIG
    # The next daemon knows nothing of the start: it is over.
    wait_until(lambda: erofs_read_aheads()[bdi] == 256)
    daemon.node("umount", target)
