"""``pagein status``, ``cache`` and ``pull`` as typed: what they say is what happened."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time

import pytest
from counting_proxy import CountingProxy
from node_image import BIG, PARTS
from node_under_test import NodeUnderTest
from registry_site import Site

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


def test_without_mounts_there_is_nothing_to_list(node: NodeUnderTest) -> None:
    assert node("status").stdout == "no mounts\n"
    assert node.status() == []


def test_a_mount_is_listed_with_what_it_is(site: Site, node: NodeUnderTest) -> None:
    facts = json.loads(node("inspect", "--json", site.app).stdout)
    with node.mounted(site.app) as tree, node.mounted(site.app, "--rw", "--backend", "loop") as rw:
        found = {mount["target"]: mount for mount in node.status()}
        one, two = found[str(tree)], found[str(rw)]
        assert (one["backend"], one["writable"]) == ("fuse", False)
        assert (two["backend"], two["writable"]) == ("loop", True)
        assert sorted([one["pid"], two["pid"]]) == sorted(node.processes())
        for mount in (one, two):
            assert mount["reference"] == f"docker://{site.app}"
            assert mount["size"] == facts["device_size"]
            assert mount["artifact"] == facts["artifact"]
            assert mount["index"] == facts["index"]
            assert abs(time.time() - mount["started"]) < 600


def test_figures_count_what_was_read_and_fetched(node: NodeUnderTest, proxy: CountingProxy) -> None:
    with node.mounted(f"{proxy.host}/app:v1") as tree:
        [before] = node.status()
        assert before["reads"] == before["bytes_fetched"] == 0
        assert before["hit_rate"] is None
        assert before["miss_p50_s"] is None
        proxy.forget()
        assert (tree / "data/big").read_bytes() == BIG
        assert (tree / "data/part1").read_bytes() == PARTS["part1"]
        [after] = node.status()
        spans = [one.span for one in proxy.asked("/blobs/") if one.span]
        assert after["bytes_fetched"] == sum(last - first + 1 for first, last in spans)
        assert after["bytes_uncompressed"] >= len(BIG)
        assert after["sectors_fetched"] >= 13
        assert after["read_bytes"] >= len(BIG) + len(PARTS["part1"])
        assert 0 <= after["hits"] <= after["reads"]
        assert after["hit_rate"] == after["hits"] / after["reads"]
        assert 0 < after["miss_p50_s"] <= after["miss_p99_s"] <= after["miss_p999_s"] < 60
        for name in ("read_errors", "fetch_errors", "corrupt_sectors", "cache_errors", "evictions"):
            assert after[name] == 0


def test_a_mount_of_a_hydrated_image_has_only_hits(site: Site, node: NodeUnderTest) -> None:
    assert node("pull", site.app).stdout.startswith(f"docker://{site.app}: startable, ")
    said = json.loads(node("pull", "--full", "--json", site.app).stdout)
    assert said["bytes_fetched"] > len(BIG)
    again = node("pull", "--full", site.app).stdout
    assert again == f"docker://{site.app}: hydrated, 0 B fetched\n"
    with node.mounted(site.app) as tree:
        assert (tree / "data/big").read_bytes() == BIG
        [mount] = node.status()
        assert mount["sectors_fetched"] == 0
        assert mount["read_errors"] == 0
        assert mount["reads"] > 0


def test_the_table_shows_a_line_for_each_mount(site: Site, node: NodeUnderTest) -> None:
    with node.mounted(site.app) as tree:
        (tree / "data/part2").read_bytes()
        title, line, *folded = node("status").stdout.splitlines()
        for word in ("image", "at", "hit rate", "miss p50", "miss p99", "miss p99.9", "errors"):
            assert word in title
        assert site.app in line
        assert "fuse" in line
        assert line.rstrip().endswith(" 0")
        assert tree.name in "".join([line, *folded])


def test_the_cache_is_counted_listed_and_emptied(site: Site, node: NodeUnderTest) -> None:
    assert json.loads(node("cache", "du", "--json").stdout)["bytes"] == 0
    node("pull", "--full", site.app)
    usage = json.loads(node("cache", "du", "--json").stdout)
    facts = json.loads(node("inspect", "--json", site.app).stdout)
    assert usage["sectors"] == facts["distinct_sectors"] == facts["cached_sectors"]
    assert usage["limit"] == 20 << 30
    assert usage["bytes"] >= len(BIG)
    assert node("cache", "du").stdout.endswith(f" in {usage['sectors']} sectors\n")
    listed = node("cache", "ls").stdout.split()
    assert listed == json.loads(node("cache", "ls", "--json").stdout)
    assert len(listed) == usage["sectors"]
    assert f"sha256:{hashlib.sha256(BIG[: 256 << 10]).hexdigest()}" in listed
    node("cache", "prune", "--to", "1MiB")
    left = json.loads(node("cache", "du", "--json").stdout)
    assert 0 < left["bytes"] <= 1 << 20
    assert node("cache", "prune").stdout.endswith(" freed\n")
    assert json.loads(node("cache", "du", "--json").stdout)["sectors"] == 0
    line, hint = node.complaint("cache", "prune", "--to", "a lot", code=2)
    assert (line, hint) == ("not a size: 'a lot'", "write for example 4MiB or 20GiB")


def test_the_cache_is_pruned_under_a_mount_without_harm(site: Site, node: NodeUnderTest) -> None:
    with node.mounted(site.app) as tree:
        assert (tree / "data/big").read_bytes() == BIG
        node("cache", "prune")
        assert (tree / "data/part0").read_bytes() == PARTS["part0"]
        with (tree / "data/big").open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert opened.read() == BIG
        [mount] = node.status()
        assert mount["read_errors"] == 0


def test_verify_finds_what_changed_on_the_disk_and_drops_it(
    site: Site, node: NodeUnderTest
) -> None:
    node("pull", "--full", site.app)
    sectors = json.loads(node("cache", "du", "--json").stdout)["sectors"]
    assert node("cache", "verify").stdout == f"{sectors} sectors checked, 0 dropped\n"
    name = random.Random(1).choice(node("cache", "ls").stdout.split()).removeprefix("sha256:")
    [file] = [path for path in (node.root / "lib/cache").rglob(f"*{name}*") if path.is_file()]
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    assert node("cache", "verify", code=1).stdout == f"{sectors} sectors checked, 1 dropped\n"
    assert node("cache", "verify").stdout == f"{sectors - 1} sectors checked, 0 dropped\n"
    assert f"sha256:{name}" not in node("cache", "ls").stdout.split()
