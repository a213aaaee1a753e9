"""The merged tree against what `umoci unpack` lays on a disk, for each image of the corpus."""

import hashlib
import io
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pagein.format.compression import open_decompressed
from pagein.format.merge import LayerMerger
from pagein.format.tar import read_entries
from pagein.format.tree import Node
from pagein.testing.layer_corpus import (
    COMPRESSIONS,
    CORPUS,
    directory,
    file,
    hard_link,
    opaque,
    tar_layer,
    whiteout,
    write_oci_layout,
)
from pagein.testing.tree_snapshot import Seen, of_disk, of_nodes

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("umoci") is None, reason="needs umoci"),
]


def merged(layers: tuple[bytes, ...], compression: str = "gzip") -> dict[bytes, Seen]:
    merger = LayerMerger()
    contents: dict[Node, bytes] = {}
    for layer in layers:
        stream = open_decompressed(io.BytesIO(COMPRESSIONS[compression][1](layer)))
        merger.begin_layer()
        for entry in read_entries(stream):
            if (node := merger.add(entry)) is not None:
                contents[node] = digest_of(entry)
        merger.end_layer()
    return of_nodes(merger.root, contents)


def digest_of(entry) -> bytes:
    hasher, at = hashlib.sha256(), 0
    for offset, data in entry.chunks():
        hasher.update(bytes(offset - at))
        hasher.update(data)
        at = offset + len(data)
    hasher.update(bytes(entry.size - at))
    return hasher.digest()


def unpacked(tmp_path: Path, layers: tuple[bytes, ...]) -> dict[bytes, Seen]:
    write_oci_layout(tmp_path / "image", layers)
    done = subprocess.run(
        ["umoci", "unpack", "--image", f"{tmp_path}/image:latest", tmp_path / "bundle"],
        capture_output=True,
        text=True,
        umask=0o022,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    try:
        return of_disk(str(tmp_path / "bundle" / "rootfs"))
    finally:
        shutil.rmtree(tmp_path / "bundle")


_NOT_DECLARED = (
    "umoci leaves the time of unpacking on parents that no entry declares, and above them"
)
_PRUNED = "umoci does not put back the times of directories that a whiteout empties in part"
UMOCI_TIMES = {
    "whiteout-after-child": ({b"usr/lib", b"usr/lib/deep"}, _PRUNED),
    "opaque-above-upper": ({b"usr/lib", b"usr/lib/deep"}, _PRUNED),
    "long-names": ({b"", *(b"/".join([b"d" * 200] * n) for n in range(1, 9))}, _NOT_DECLARED),
    "ustar-prefix": ({b"", b"p" * 100}, _NOT_DECLARED),
    "odd-names": ({b"", "\xfc".encode()}, _NOT_DECLARED),
}
"""Directories whose time is not compared, by image, and why."""


def without_times(seen: dict[bytes, Seen], paths: set[bytes]) -> dict[bytes, Seen]:
    return {p: replace(one, mtime_ns=0) if p in paths else one for p, one in seen.items()}


@pytest.mark.parametrize("name", CORPUS)
def test_the_merged_tree_is_what_umoci_unpacks(name: str, tmp_path: Path) -> None:
    paths, _ = UMOCI_TIMES.get(name, (set(), ""))
    ours = without_times(merged(CORPUS[name]), paths)
    assert ours == without_times(unpacked(tmp_path, CORPUS[name]), paths)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_tree_does_not_depend_on_how_the_layers_are_compressed(compression: str) -> None:
    for name in ("base", "opaque-last", "xattrs", "long-names", "empty-layer", "trailing-garbage"):
        assert merged(CORPUS[name], compression) == merged(CORPUS[name], "plain")


@pytest.mark.parametrize("tar_format", ["v7", "ustar", "gnu", "oldgnu", "pax"])
def test_archives_of_gnu_tar_give_the_tree_that_was_archived(
    tar_format: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    make_tree(source, plain=tar_format in ("v7", "ustar"))
    if tar_format == "v7":
        (source / "pipe").unlink()
    command = ["tar", f"--format={tar_format}", "--sort=name", "--numeric-owner", "-cf", "-"]
    if tar_format not in ("v7", "ustar"):
        command.append("--sparse")
    if tar_format == "pax":
        command += ["--xattrs", "--xattrs-include=*"]
    layer = subprocess.run([*command, "."], cwd=source, capture_output=True, check=True).stdout
    seen = merged((layer,))
    expected = of_disk(str(source))
    if tar_format != "pax":  # whole seconds, and no xattrs
        expected = {
            path: replace(one, mtime_ns=one.mtime_ns // 10**9 * 10**9, xattrs=())
            for path, one in expected.items()
        }
    assert seen == expected


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_pax_sparse_files_of_every_version_keep_their_holes(version: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_tree(source, plain=False)
    command = ["tar", "--format=pax", f"--sparse-version={version}", "--sparse", "-cf", "-", "."]
    layer = subprocess.run(command, cwd=source, capture_output=True, check=True).stdout
    runs = {entry.path: len(entry.segments) for entry in read_entries(io.BytesIO(layer))}
    assert runs[b"./sparse"] == 2
    assert runs[b"./very-sparse"] == 300
    expected = {p: replace(one, xattrs=()) for p, one in of_disk(str(source)).items()}
    assert merged((layer,)) == expected


def make_tree(root: Path, *, plain: bool) -> None:
    """Make what the archive format can hold: names, links, devices, holes, xattrs."""
    (root / "folder" / "inner").mkdir(parents=True)
    (root / "folder" / "file").write_bytes(b"data" * 5000)
    (root / "empty").touch()
    (root / "link").symlink_to("folder/file")
    os.link(root / "folder" / "file", root / "hard")
    os.mkfifo(root / "pipe")
    os.chown(root / "empty", 1234, 5678)
    (root / "folder" / "inner").chmod(0o1777)
    if plain:
        return
    os.mknod(root / "device", 0o020600, os.makedev(10, 229))
    (root / ("long" * 60)).mkdir()
    (root / ("long" * 60) / ("name" * 60)).write_text("deep")
    (root / "target").symlink_to("t" * 150)
    os.utime(root / "empty", ns=(0, -12_000_000_000))
    os.chown(root / "pipe", 3_000_000, 3_000_001)
    for name, pieces in (("sparse", 2), ("very-sparse", 300)):
        with (root / name).open("wb") as opened:
            for piece in range(pieces):
                opened.seek(piece * 65536 + 32768)
                opened.write(os.urandom(4096))
            opened.truncate(pieces * 65536 + 32768)
    os.setxattr(root / "empty", "user.binary", bytes(range(256)))
    os.setxattr(root / "folder", "user.text", b"a=b\nc")


def test_programs_and_time_zones_of_this_machine_merge_as_umoci_unpacks_them(
    tmp_path: Path,
) -> None:
    parts = [part for part in ("usr/sbin", "usr/share/zoneinfo", "usr/share/perl5") if is_at(part)]
    command = ["tar", "--format=pax", "--xattrs", "--xattrs-include=*", "-C", "/", "-cf", "-"]
    lower = subprocess.run(["tar", "-C", "/", "-cf", "-", *parts], capture_output=True, check=True)
    upper = subprocess.run([*command, parts[0]], capture_output=True, check=True)
    marks = tar_layer(whiteout(parts[-1].encode()), opaque(parts[0].encode()))
    layers = (lower.stdout, marks, upper.stdout)
    undeclared = {b"", b"usr", b"usr/share"}
    assert without_times(merged(layers), undeclared) == without_times(
        unpacked(tmp_path, layers), undeclared
    )


def is_at(part: str) -> bool:
    return Path("/", part).is_dir()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("debootstrap") is None, reason="needs debootstrap")
def test_a_debian_system_in_two_layers_merges_as_umoci_unpacks_it(tmp_path: Path) -> None:
    root = tmp_path / "debian"
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", "bookworm", root], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("needs a Debian mirror for debootstrap")
    command = ["tar", "--format=pax", "--numeric-owner", "--xattrs", "--xattrs-include=*"]
    command += ["--exclude=./proc/*", "--exclude=./sys/*", "-C", str(root), "-cf", "-", "."]
    base = subprocess.run(command, capture_output=True, check=True).stdout
    top = tar_layer(
        directory(b"usr/share/doc/"),
        opaque(b"usr/share/doc"),
        whiteout(b"var/lib/apt"),
        file(b"bin/new", mode=0o755),
        hard_link(b"lib/again", b"bin/bash"),
        directory(b"lib64/"),
    )
    assert merged((base, top)) == unpacked(tmp_path, (base, top))
