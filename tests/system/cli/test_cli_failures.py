"""What goes wrong on a node: nobody converted, killed servers, dead registries, bad disks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from counting_proxy import CountingProxy
from node_image import BIG, PARTS
from node_under_test import NodeUnderTest, mounts_below, wait_until
from registry_site import Site

from pagein.testing.tree_snapshot import Seen, of_disk

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

FILES = {"big": BIG, **PARTS}


def read_afresh(path: Path) -> bytes:
    """Read a file through the device: what the kernel has cached of it is dropped first."""
    with path.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return opened.read()


def all_afresh(tree: Path) -> dict[str, bytes]:
    return {name: read_afresh(tree / "data" / name) for name in FILES}


def eio_or_bytes(path: Path) -> bytes | None:
    """Read a file; None where the kernel answers EIO, and nothing else may go wrong."""
    try:
        return read_afresh(path)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None


def only(node: NodeUnderTest) -> dict[str, int]:
    [mount] = node.status()
    return mount


def test_an_image_that_nobody_converted_is_converted_here_once(
    node: NodeUnderTest, proxy: CountingProxy, expected: dict[bytes, Seen]
) -> None:
    reference, target = f"{proxy.host}/plain:v1", node.target()
    said = node("mount", reference, target).stderr
    assert said == f"pagein: nobody has converted docker://{reference}; converting it here first\n"
    assert of_disk(str(target)) == expected
    node("umount", target)
    proxy.forget()
    again = node("mount", reference, target)
    assert (again.stdout, again.stderr) == ("", "")
    assert of_disk(str(target)) == expected
    node("umount", target)
    assert proxy.asked("/blobs/") == []


def test_a_container_of_an_image_that_nobody_converted_starts_all_the_same(
    site: Site, node: NodeUnderTest
) -> None:
    if shutil.which("runc") is None and shutil.which("crun") is None:
        pytest.skip("needs runc or crun")
    words = ("run", f"{site.registry.host}/plain:v1", "--", "cat", "/etc/group")
    first, second = node(*words), node(*words)
    assert first.stdout == second.stdout
    assert "alice:x:1000:" in first.stdout
    assert first.stderr.count("\n") == 1
    assert "nobody has converted" in first.stderr
    assert second.stderr == ""


def test_looking_into_an_image_that_nobody_converted_says_how_to(
    site: Site, node: NodeUnderTest
) -> None:
    reference = f"{site.registry.host}/plain:v1"
    line, hint = node.complaint("ls", reference, "/")
    assert line == f"docker://{reference} has not been converted"
    assert hint == f"pagein convert {reference}"


@pytest.mark.parametrize("command", ["mount", "umount"])
def test_the_leftovers_of_a_killed_server_are_swept_by_the_next_command(
    command: str, site: Site, node: NodeUnderTest, expected: dict[bytes, Seen]
) -> None:
    tree = node.mount(site.app)
    [server] = node.processes()
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: node.processes() == [])
    with pytest.raises(OSError, match=r"Input/output|not connected|aborted"):
        (tree / "data/big").read_bytes()
    assert node.status() == []
    if command == "umount":
        node("umount", tree)
        assert node.leftovers() == []
    node("mount", site.app, tree)
    assert of_disk(str(tree)) == expected
    node("umount", tree)


def test_a_killed_server_of_a_writable_mount_leaves_nothing_after_the_next_command(
    site: Site, node: NodeUnderTest
) -> None:
    tree = node.mount(site.app, "--rw")
    (tree / "data/new").write_bytes(b"new")
    [server] = node.processes()
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: node.processes() == [])
    node("umount", tree)
    assert node.leftovers() == []


def test_a_hydrated_image_needs_no_registry(
    node: NodeUnderTest, proxy: CountingProxy, expected: dict[bytes, Seen]
) -> None:
    reference = f"{proxy.host}/app:v1"
    node("pull", "--full", reference)
    proxy.stop()
    target = node.target()
    said = node("mount", reference, target).stderr
    assert said.count("\n") == 1
    assert f"starting docker://{reference} from what is here" in said
    assert of_disk(str(target)) == expected
    assert only(node)["sectors_fetched"] == 0
    node("umount", target)


def test_a_cold_sector_without_a_registry_is_an_error_until_it_is_back(
    node: NodeUnderTest, proxy: CountingProxy
) -> None:
    node.configure(read_timeout=1.0, request_timeout=1.0)
    with node.mounted(f"{proxy.host}/app:v1") as tree:
        assert read_afresh(tree / "data/part0") == PARTS["part0"]
        proxy.stop()
        began = time.monotonic()
        assert eio_or_bytes(tree / "data/part3") is None
        assert time.monotonic() - began < 20
        assert read_afresh(tree / "data/part0") == PARTS["part0"]
        assert only(node)["read_errors"] > 0
        proxy.start()
        wait_until(lambda: eio_or_bytes(tree / "data/part3") == PARTS["part3"])
        assert all_afresh(tree) == FILES


def test_a_registry_that_is_away_for_a_moment_only_delays_a_read(
    node: NodeUnderTest, proxy: CountingProxy
) -> None:
    with node.mounted(f"{proxy.host}/app:v1") as tree, ThreadPoolExecutor(1) as pool:
        proxy.stop()
        reading = pool.submit(read_afresh, tree / "data/part2")
        time.sleep(0.3)
        proxy.start()
        assert reading.result() == PARTS["part2"]


@contextlib.contextmanager
def one_byte_flipped(path: Path, place: int) -> Iterator[None]:
    with path.open("r+b") as opened:
        opened.seek(place)
        byte = opened.read(1)[0]
        try:
            opened.seek(place)
            opened.write(bytes([byte ^ 1]))
            opened.flush()
            yield
        finally:
            opened.seek(place)
            opened.write(bytes([byte]))


def test_a_flipped_bit_in_the_registry_is_an_error_and_never_other_bytes(
    site: Site, node: NodeUnderTest
) -> None:
    node.configure(read_timeout=2.0)
    packs = json.loads(node("inspect", "--json", site.app).stdout)["packs"]
    pack = site.blob(max(packs, key=lambda pack: pack["size"])["digest"])
    with node.mounted(site.app) as tree:
        with one_byte_flipped(pack, pack.stat().st_size // 2):
            found = {name: eio_or_bytes(tree / "data" / name) for name in FILES}
            assert None in found.values()
            assert all(data in (None, FILES[name]) for name, data in found.items())
            figures = only(node)
            assert figures["corrupt_sectors"] > 0
            assert figures["read_errors"] > 0
            done = node("check", "--deep", site.app, code=1)
            assert "sector" in done.stdout + done.stderr
        assert all_afresh(tree) == FILES
    assert node("cache", "verify").stdout.endswith(" 0 dropped\n")


def test_the_cache_may_be_deleted_under_a_mount(
    site: Site, node: NodeUnderTest, expected: dict[bytes, Seen]
) -> None:
    with node.mounted(site.app) as tree:
        assert read_afresh(tree / "data/part0") == PARTS["part0"]
        shutil.rmtree(node.root / "lib")
        assert all_afresh(tree) == FILES
        assert all_afresh(tree) == FILES
        assert only(node)["read_errors"] == 0
        assert json.loads(node("cache", "du", "--json").stdout)["sectors"] > 0
        shutil.rmtree(node.root / "lib")
        assert all_afresh(tree) == FILES
        assert of_disk(str(tree)) == expected


def test_a_damaged_sector_in_the_cache_is_fetched_again(site: Site, node: NodeUnderTest) -> None:
    node("pull", "--full", site.app)
    sectors = [path for path in (node.root / "lib/cache").rglob("*") if path.is_file()]
    for path in sectors:
        if path.stat().st_size > 1000:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 0x10
            path.write_bytes(data)
    with node.mounted(site.app) as tree:
        assert all_afresh(tree) == FILES
        assert only(node)["read_errors"] == 0
        assert only(node)["sectors_fetched"] > 0


def test_a_cache_that_is_too_small_slows_reads_but_never_fails_them(
    site: Site, node: NodeUnderTest
) -> None:
    node.configure(cache_size="1MiB")
    with node.mounted(site.app) as tree:
        with ThreadPoolExecutor(3) as pool:
            for found in pool.map(all_afresh, [tree] * 3):
                assert found == FILES
        figures = only(node)
        assert figures["evictions"] > 0
        assert figures["read_errors"] == 0
        # Between two looks at the whole cache a process may add a quarter of so small a limit.
        assert json.loads(node("cache", "du", "--json").stdout)["bytes"] <= 5 << 18


def test_a_full_disk_slows_reads_but_never_fails_them(site: Site, node: NodeUnderTest) -> None:
    cache = node.root / "lib/cache"
    cache.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "small", cache], check=True)
    try:
        with node.mounted(site.app) as tree:
            assert all_afresh(tree) == FILES
            assert all_afresh(tree) == FILES
            figures = only(node)
            assert figures["cache_errors"] > 0
            assert figures["read_errors"] == 0
    finally:
        subprocess.run(["umount", cache], check=True)


def test_a_mount_that_fails_on_the_way_leaves_nothing(site: Site, node: NodeUnderTest) -> None:
    run = node.root / "run"
    run.mkdir(parents=True)
    target = node.target()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k,nr_inodes=4", "tiny", run], check=True)
    try:
        line, _ = node.complaint("mount", site.app, target)
        assert line.endswith("No space left on device")
        assert mounts_below(target) == []
    finally:
        subprocess.run(["umount", run], check=True)
