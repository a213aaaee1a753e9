"""``pagein optimize`` as typed: into a real registry, mounted by the kernel, checked, refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from counting_proxy import CountingProxy
from node_image import BIG, PARTS, SECTOR, NodeImage, push
from node_under_test import NodeUnderTest
from registry_site import Site

from pagein.testing.tree_snapshot import Seen, of_disk

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

Touches = list[tuple[str, int, int, int]]
START: Touches = [
    ("odd/one", 99_000, 0, 8192),  # it has another size in the image: skipped
    ("data/part2", len(PARTS["part2"]), 0, 8192),
    ("data/big", len(BIG), 0, len(BIG)),
    ("odd/suid", 5000, 4096, 904),
    ("data/part0", len(PARTS["part0"]), 131_072, 4096),
    ("data/part1", len(PARTS["part1"]), SECTOR, 100),
    ("no/such/file", 4096, 0, 4096),
]


def write_profile(path: Path, touches: Touches, **facts: Any) -> Path:
    """A profile written by hand, as docs/reference/profile.md says."""
    names = list(dict.fromkeys((name, size) for name, size, _, _ in touches))
    document = {
        "version": 1,
        "recorded": "2026-01-31T12:00:00Z",
        "reference": "docker://here/app:v1",
        "source": "sha256:" + "0" * 64,
        "command": ["sh"],
        "read_ahead_kb": 32,
        "seconds": 1.5,
        "files": [{"name": name, "size": size} for name, size in names],
        "touches": [
            [names.index((name, size)), offset, length, at]
            for at, (name, size, offset, length) in enumerate(touches)
        ],
    }
    path.write_text(json.dumps(document | facts))
    return path


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    return write_profile(tmp_path / "start.profile", START)


@pytest.fixture
def tuned(site: Site, image: NodeImage, node: NodeUnderTest, tmp_path: Path) -> str:
    """A repository of the test's own, with the image converted."""
    repository = f"{site.registry.host}/tuned/{tmp_path.name.lower().strip('_')[:40]}"
    push(image, "app", f"{repository}:v1")
    node("convert", "--sector-size", SECTOR, f"{repository}:v1")
    return f"{repository}:v1"


def optimized(node: NodeUnderTest, *words: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node("optimize", "--json", *words).stdout)
    return found


def test_the_kernel_reads_the_same_tree_and_a_deep_check_finds_nothing(
    tuned: str, node: NodeUnderTest, profile: Path, expected: dict[bytes, Seen]
) -> None:
    done = optimized(node, tuned, "--profile", profile)
    match = done["match"]
    assert (match["files"], match["changed"], match["absent"]) == (5, 1, 1)
    assert done["whole_sectors"] == 12
    assert done["sent_size"] == done["pack_size"] + done["index_size"]
    facts = json.loads(node("inspect", "--json", tuned).stdout)
    assert facts["artifact"] == done["artifact"]
    assert facts["hot_size"] == done["hot_size"] == 13 * SECTOR
    assert (facts["read_ahead_kb"], facts["profile"]) == (32, done["profile"])
    said = node("inspect", tuned).stdout
    assert "hot region 3.2 MiB, 13 sectors" in said
    assert f"made from  {done['optimized_from']}" in said
    with node.mounted(tuned) as tree:
        assert of_disk(str(tree)) == expected
    deep = json.loads(node("check", "--deep", "--json", tuned).stdout)
    assert (deep["problems"], deep["compared"]) == ([], True)


def test_a_loop_device_shows_the_hot_region_too(
    tuned: str, node: NodeUnderTest, profile: Path, expected: dict[bytes, Seen]
) -> None:
    optimized(node, tuned, "--profile", profile)
    with node.mounted(tuned, "--backend", "loop") as tree:
        assert of_disk(str(tree)) == expected


def test_the_same_profile_again_sends_nothing(
    tuned: str, node: NodeUnderTest, profile: Path, proxy: CountingProxy, site: Site
) -> None:
    there = tuned.replace(site.registry.host, proxy.host)
    first = optimized(node, there, "--profile", profile)
    assert (first["was_there"], first["hidden_by"]) == (False, None)
    proxy.forget()
    again = optimized(node, there, "--profile", profile)
    assert (again["artifact"], again["was_there"]) == (first["artifact"], True)
    assert {one.method for one in proxy.asked()} == {"GET"}
    assert len(proxy.asked("/manifests/|/blobs/|/referrers/")) <= 6
    assert "was there already, 0 B read, 0 B sent" in node(
        "optimize", there, "--profile", profile
    ).stdout  # fmt: skip


def test_a_bound_artifact_stays_what_is_found_until_it_is_replaced(
    tuned: str, node: NodeUnderTest, profile: Path
) -> None:
    node("convert", "--sector-size", SECTOR, "--bind", tuned)
    plain = json.loads(node("inspect", "--json", tuned).stdout)["artifact"]
    said = node("optimize", tuned, "--profile", profile).stderr
    assert f"{plain} is still what is found for {tuned}; --bind" in said
    assert json.loads(node("inspect", "--json", tuned).stdout)["artifact"] == plain
    done = optimized(node, tuned, "--profile", profile, "--bind", "--tag", "v1-hot")
    assert json.loads(node("inspect", "--json", tuned).stdout)["artifact"] == done["artifact"]
    by_tag = tuned.removesuffix(":v1") + ":v1-hot"
    assert json.loads(node("inspect", "--json", by_tag).stdout)["artifact"] == done["artifact"]


def test_convert_takes_a_profile_too(
    site: Site, image: NodeImage, node: NodeUnderTest, profile: Path, expected: dict[bytes, Seen]
) -> None:
    reference = f"{site.registry.host}/tuned/at-once:v1"
    push(image, "app", reference)
    words = ("convert", "--sector-size", SECTOR, reference, "--profile", profile)
    [made] = json.loads(node(*words, "--json").stdout)["images"]
    assert made["optimized"]["optimized_from"] == made["artifact"]
    facts = json.loads(node("inspect", "--json", reference).stdout)
    assert facts["artifact"] == made["optimized"]["artifact"]
    with node.mounted(reference) as tree:
        assert of_disk(str(tree)) == expected
    assert "hot region of 3.2 MiB" in node(*words).stdout


def test_convert_with_a_profile_of_what_is_converted_only_optimizes_and_then_only_asks(
    tuned: str, node: NodeUnderTest, profile: Path, proxy: CountingProxy, site: Site
) -> None:
    there = tuned.replace(site.registry.host, proxy.host)
    plain = json.loads(node("inspect", "--json", tuned).stdout)["artifact"]
    words = ("convert", "--sector-size", SECTOR, there, "--profile", profile)
    proxy.forget()
    [made] = json.loads(node(*words, "--json").stdout)["images"]
    assert (made["reused"], made["artifact"], made["optimized_from"]) == (True, plain, None)
    assert made["optimized"]["optimized_from"] == plain
    puts = [one.path.split("/")[-1] for one in proxy.asked() if one.method == "PUT"]
    assert len(puts) == 4, "the pack of copies, the index, the manifest, the fallback tag"
    proxy.forget()
    [again] = json.loads(node(*words, "--json").stdout)["images"]
    assert (again["reused"], again["optimized_from"]) == (True, plain)
    assert again["artifact"] == again["optimized"]["artifact"] == made["optimized"]["artifact"]
    asked = [one.method for one in proxy.asked() if one.path != "/v2/"]
    assert asked == ["GET"] * len(asked)
    assert len(asked) <= 10
    said = node(*words).stdout
    assert "already converted; --force converts again" in said
    assert "was there already, 0 B read, 0 B sent" in said


def test_a_layout_is_optimized_in_place_and_its_tag_moves_on(
    image: NodeImage, node: NodeUnderTest, profile: Path, tmp_path: Path
) -> None:
    source = f"oci:{image.layouts / 'app'}:v1"
    target = f"oci:{tmp_path / 'lazy'}:app"
    node("convert", "--sector-size", SECTOR, source, target)
    done = optimized(node, target, "--profile", profile)
    assert json.loads(node("inspect", "--json", target).stdout)["artifact"] == done["artifact"]
    again = optimized(node, target, "--profile", profile)
    assert (again["artifact"], again["was_there"]) == (done["artifact"], True)
    assert node("check", target).stdout.startswith(f"{target}: structure is right")


def test_a_layout_of_one_artifact_needs_no_tag_before_or_after(
    image: NodeImage, node: NodeUnderTest, profile: Path, tmp_path: Path
) -> None:
    target = f"oci:{tmp_path / 'lazy'}"
    node("convert", "--sector-size", SECTOR, f"oci:{image.layouts / 'app'}:v1", target)
    for level in (3, 5):
        done = optimized(node, target, "--profile", profile, "--hot-level", level)
        assert not done["was_there"]
        assert json.loads(node("inspect", "--json", target).stdout)["artifact"] == done["artifact"]


def test_what_was_converted_here_is_optimized_here(
    site: Site, image: NodeImage, node: NodeUnderTest, profile: Path, expected: dict[bytes, Seen]
) -> None:
    reference = f"{site.registry.host}/tuned/here:v1"
    push(image, "app", reference)
    assert "has not been converted" in node.complaint(
        "optimize", reference, "--profile", profile
    )[0]  # fmt: skip
    node("pull", reference)
    done = optimized(node, reference, "--profile", profile)
    assert done["match"]["files"] == 5
    with node.mounted(reference) as tree:
        assert of_disk(str(tree)) == expected
    facts = json.loads(node("inspect", "--json", reference).stdout)
    assert facts["artifact"] == done["artifact"]
    line, hint = node.complaint("optimize", reference, "--profile", profile, "--bind", code=2)
    assert "on this machine only" in line
    assert hint.startswith("pagein convert ")


def test_a_profile_that_is_none_of_this_image_or_none_at_all_is_one_line(
    site: Site, node: NodeUnderTest, tmp_path: Path, profile: Path
) -> None:
    path = tmp_path / "bad.profile"

    def said(*, code: int = 1) -> str:
        return node.complaint("optimize", site.app, "--profile", path, code=code)[0]

    assert said(code=2) == f"cannot read {path}: No such file or directory"
    write_profile(path, [("elsewhere", 5000, 0, 4096)])
    assert "touches nothing of the image" in said(code=2)
    path.write_bytes(profile.read_bytes()[:-9])
    assert said().startswith(f"{path}: not a profile: ")
    path.write_bytes(os.urandom(5000))
    assert said().startswith(f"{path}: not a profile: ")
    path.write_text("[" * 100_000)
    assert said().startswith(f"{path}: not a profile: ")
    write_profile(path, [("data/big", len(BIG), 0, len(BIG) + 4096)])
    assert said().startswith(f"{path}: not a sound profile: ")
    write_profile(path, START, version=7)
    assert "version 7" in said()
    with path.open("wb") as stream:
        stream.truncate((64 << 20) + 1)
    assert "is too large" in said()
    assert "--bind" in node.complaint(
        "optimize", f"oci:{tmp_path}", "--profile", profile, "--bind", code=2
    )[0]  # fmt: skip


def test_several_profiles_make_one_region(
    tuned: str, node: NodeUnderTest, tmp_path: Path, profile: Path
) -> None:
    other = write_profile(tmp_path / "other", [("data/part3", len(PARTS["part3"]), 0, 4096)])
    done = optimized(node, tuned, "--profile", profile, "--profile", other)
    assert done["match"]["files"] == 6
    write_profile(other, [("data/part3", len(PARTS["part3"]), 0, 4096)], read_ahead_kb=128)
    line, _ = node.complaint("optimize", tuned, "--profile", profile, "--profile", other, code=2)
    assert "read-aheads of 32 and 128 KiB" in line
