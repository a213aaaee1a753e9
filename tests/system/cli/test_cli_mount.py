"""``pagein mount`` and ``umount`` as typed: real registry, real kernel, umoci's trees."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
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


def link_counts(root: Path) -> dict[bytes, int]:
    """Link counts of all but folders, whose count each file system has its own way with."""
    top = os.fsencode(root)
    found = {}
    for folder, _, names in os.walk(top):
        for name in names:
            status = os.lstat(folder + b"/" + name)
            assert not stat.S_ISDIR(status.st_mode)
            found[os.path.relpath(folder + b"/" + name, top)] = status.st_nlink
    return found


@pytest.mark.parametrize("backend", ["fuse", "loop"])
def test_the_mounted_tree_is_what_umoci_unpacks(
    backend: str, site: Site, node: NodeUnderTest, unpacked: Path, expected: dict[bytes, Seen]
) -> None:
    with node.mounted(site.app, "--backend", backend) as tree:
        assert of_disk(str(tree)) == expected
        assert link_counts(tree) == link_counts(unpacked)
        [mount] = node.status()
        assert (mount["backend"], mount["target"]) == (backend, str(tree))
        source = subprocess.run(
            ["findmnt", "-no", "SOURCE,FSTYPE", tree], capture_output=True, text=True, check=True
        ).stdout
        assert source.split()[1] == "erofs"
        assert source.startswith("/dev/loop") == (backend == "loop")
    assert list(tree.iterdir()) == []


def test_what_is_written_lies_above_the_image_and_goes_with_the_mount(
    site: Site, node: NodeUnderTest, expected: dict[bytes, Seen]
) -> None:
    with node.mounted(site.app) as lower, node.mounted(site.app, "--rw") as tree:
        assert of_disk(str(tree)) == expected
        (tree / "data/new").write_bytes(b"new")
        with (tree / "data/part0").open("r+b") as opened:
            opened.write(b"changed")
        (tree / "data/part1").unlink()
        (tree / "data/part2").rename(tree / "moved")
        (tree / "data/big").chmod(0o600)
        shutil.rmtree(tree / "home")
        os.setxattr(tree / "odd/one", "user.new", b"1")
        assert (tree / "odd/two").stat().st_nlink == 3
        assert (tree / "moved").read_bytes() == PARTS["part2"]
        assert (tree / "data/part0").read_bytes() == b"changed" + PARTS["part0"][7:]
        assert sorted(os.listdir(tree / "data")) == ["big", "new", "part0", "part3"]
        assert not (tree / "home").exists()
        assert of_disk(str(lower)) == expected
    with node.mounted(site.app, "--rw") as tree:
        assert of_disk(str(tree)) == expected


@pytest.mark.parametrize("options", [(), ("--rw",), ("--backend", "loop")], ids=" ".join)
def test_a_plain_umount_ends_the_serving_process_too(
    options: tuple[str, ...], site: Site, node: NodeUnderTest
) -> None:
    tree = node.mount(site.app, *options)
    assert len(node.processes()) == 1
    subprocess.run(["umount", tree], check=True)
    wait_until(lambda: node.leftovers() == [])


def test_a_tree_that_is_in_use_is_left_alone_unless_forced(site: Site, node: NodeUnderTest) -> None:
    tree = node.mount(site.app)
    with (tree / "data/part0").open("rb") as opened:
        line, hint = node.complaint("umount", tree)
        assert line == f"cannot unmount {tree}: Device or resource busy"
        assert "--force" in hint
        assert (tree / "data/part1").read_bytes() == PARTS["part1"]
        node("umount", "--force", tree)
        assert mounts_below(tree) == []
        assert opened.read() == PARTS["part0"]
    wait_until(lambda: node.leftovers() == [])


def test_the_process_that_serves_ends_a_mount_when_it_is_told_to_end(
    site: Site, node: NodeUnderTest
) -> None:
    tree = node.mount(site.app)
    [server] = node.processes()
    with (tree / "data/part0").open("rb") as opened:
        os.kill(server, 15)
        assert opened.read() == PARTS["part0"]
        assert (tree / "data/big").read_bytes() == BIG
    os.kill(server, 15)
    wait_until(lambda: node.leftovers() == [])


def test_what_cannot_be_mounted_is_one_line_and_leaves_nothing(
    site: Site, node: NodeUnderTest
) -> None:
    missing, file = node.folder / "missing", node.folder / "file"
    file.touch()
    line, hint = node.complaint("mount", site.app, missing, code=2)
    assert (line, hint) == (f"{missing} does not exist", f"mkdir {missing}")
    assert node.complaint("mount", site.app, file, code=2)[0] == f"{file} is not a directory"
    assert "not mounted by pagein" in node.complaint("umount", node.target(), code=2)[0]
    line, _ = node.complaint("mount", f"{site.registry.host}/absent:v1", node.target())
    assert "absent" in line


def test_one_image_is_mounted_twice_side_by_side(
    site: Site, node: NodeUnderTest, expected: dict[bytes, Seen]
) -> None:
    with node.mounted(site.app) as one, node.mounted(site.app, "--backend", "loop") as two:
        assert len(node.processes()) == 2
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(of_disk, (str(one), str(two)))) == [expected, expected]
        node("umount", one)
        assert (two / "data/part3").read_bytes() == PARTS["part3"]
        node("mount", site.app, one)


def test_fifty_mounts_at_once_are_all_right_and_leave_nothing(
    site: Site, node: NodeUnderTest
) -> None:
    targets = [node.target() for _ in range(50)]
    started = [node.start("mount", site.app, target) for target in targets]
    assert [one.wait(60) for one in started] == [0] * 50
    assert len(node.processes()) == 50
    assert sorted(one["target"] for one in node.status()) == sorted(map(str, targets))
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda tree: (tree / "data/part1").read_bytes(), targets)) == {
            PARTS["part1"]
        }
    started = [node.start("umount", target) for target in targets]
    assert [one.wait(60) for one in started] == [0] * 50
    assert node.leftovers() == []


def test_two_readers_that_race_ask_the_registry_once(
    node: NodeUnderTest, proxy: CountingProxy
) -> None:
    with node.mounted(f"{proxy.host}/app:v1") as tree:
        proxy.forget()
        start = threading.Barrier(6)

        def read(name: str) -> bytes:
            start.wait()
            return (tree / "data" / name).read_bytes()

        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(read, ["big", "part1"] * 3))
        assert found == [BIG, PARTS["part1"]] * 3
        spans = sorted((a.path, *a.span) for a in proxy.asked("/blobs/") if a.span)
        assert len(spans) == len(proxy.asked())
        for (pack, _, last), (next_pack, first, _) in pairwise(spans):
            assert pack != next_pack or first > last
        assert sum(last - first + 1 for _, first, last in spans) >= len(BIG)


def test_the_artifacts_digest_brings_an_image_up_with_two_fetches(
    site: Site, node: NodeUnderTest, proxy: CountingProxy
) -> None:
    facts = node("inspect", "--json", site.app).stdout
    artifact, index = (facts.split(f'"{key}": "')[1][:71] for key in ("artifact", "index"))
    fresh = NodeUnderTest(node.target())
    with fresh.mounted(f"{proxy.host}/app@{artifact}") as tree:
        assert proxy.asked("/(manifests|blobs)/") == [
            replace(proxy.asked()[0], path=f"/v2/app/manifests/{artifact}", method="GET"),
            replace(proxy.asked()[0], path=f"/v2/app/blobs/{index}", method="GET"),
        ]
        assert len(list(tree.iterdir())) > 5
        assert len(proxy.asked("/(manifests|blobs)/")) == 2
    fresh.clear()


def test_the_images_digest_costs_its_manifest_and_the_referrers_more(
    site: Site, node: NodeUnderTest, proxy: CountingProxy
) -> None:
    digest = site.image.digests["app"]
    with node.mounted(f"{proxy.host}/app@{digest}"):
        paths = [one.path.removeprefix("/v2/app/") for one in proxy.asked("/v2/app/")]
    assert paths[:3] == [
        f"manifests/{digest}",
        f"referrers/{digest}",
        f"manifests/{digest.replace(':', '-')}",
    ]
    assert [path.partition("/")[0] for path in paths[3:]] == ["manifests", "blobs"]


def test_a_second_start_fetches_no_index(node: NodeUnderTest, proxy: CountingProxy) -> None:
    node("pull", f"{proxy.host}/app:v1")
    proxy.forget()
    with node.mounted(f"{proxy.host}/app:v1"):
        assert proxy.asked("/blobs/") == []
