"""The classical way against what `umoci unpack` lays on a disk, for each image of the corpus."""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pagein.build.unpack import unpack
from pagein.errors import CacheError, FormatError
from pagein.format.manifest import ImageManifest, parse_manifest
from pagein.store.layout import LayoutRepository
from pagein.testing.layer_corpus import CORPUS, file, symlink, tar_layer, write_oci_layout
from pagein.testing.tree_snapshot import Seen, of_disk

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

UMOCI_TIMES = {
    "whiteout-after-child": {b"usr/lib", b"usr/lib/deep"},
    "opaque-above-upper": {b"usr/lib", b"usr/lib/deep"},
    "long-names": {b"", *(b"/".join([b"d" * 200] * n) for n in range(1, 9))},
    "ustar-prefix": {b"", b"p" * 100},
    "odd-names": {b"", "\xfc".encode()},
}
"""Directories whose times umoci does not set: not declared by an entry, or emptied in part."""


def image(layout: Path) -> tuple[LayoutRepository, ImageManifest]:
    repository = LayoutRepository(layout)
    blob = repository.manifest("latest")
    manifest = parse_manifest(blob.data, blob.media_type)
    assert isinstance(manifest, ImageManifest)
    return repository, manifest


def by_umoci(layout: Path, bundle: Path) -> dict[bytes, Seen]:
    command = ["umoci", "unpack", "--image", f"{layout}:latest", bundle]
    done = subprocess.run(command, capture_output=True, text=True, umask=0o022, check=False)
    assert done.returncode == 0, done.stderr
    return of_disk(str(bundle / "rootfs"))


def without_times(seen: dict[bytes, Seen], paths: set[bytes]) -> dict[bytes, Seen]:
    return {p: replace(one, mtime_ns=0) if p in paths else one for p, one in seen.items()}


@pytest.mark.skipif(shutil.which("umoci") is None, reason="needs umoci")
@pytest.mark.parametrize("name", CORPUS)
def test_the_unpacked_tree_is_the_one_of_umoci(name: str, tmp_path: Path) -> None:
    write_oci_layout(tmp_path / "image", CORPUS[name])
    repository, manifest = image(tmp_path / "image")
    counted: list[int] = []
    unpack(repository, manifest, tmp_path / "ours", counted.append)
    assert sum(counted) == sum(layer.size for layer in manifest.layers)
    times = UMOCI_TIMES.get(name, set())
    ours = without_times(of_disk(str(tmp_path / "ours")), times)
    assert ours == without_times(by_umoci(tmp_path / "image", tmp_path / "bundle"), times)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "image", "ours"]


def test_no_symlink_of_a_layer_leads_out_of_the_target(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    lower = tar_layer(symlink(b"door", os.fsencode(outside)), symlink(b"up", b"../../outside"))
    upper = tar_layer(file(b"door/x"), file(b"up/y"), file(b"../outside/z"))
    write_oci_layout(tmp_path / "image", (lower, upper))
    unpack(*image(tmp_path / "image"), tmp_path / "root")
    assert list(outside.iterdir()) == []
    assert (tmp_path / "root" / "outside" / "y").read_bytes() == b"up/y"


def test_a_damaged_layer_leaves_nothing_behind(tmp_path: Path) -> None:
    write_oci_layout(tmp_path / "image", (tar_layer(file(b"a", b"x" * 100_000)),))
    repository, manifest = image(tmp_path / "image")
    blob = tmp_path / "image" / "blobs" / "sha256" / manifest.layers[0].digest.hex
    data = bytearray(blob.read_bytes())
    data[-3] ^= 1
    blob.write_bytes(data)
    with pytest.raises(FormatError):
        unpack(repository, manifest, tmp_path / "root")
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


def test_a_target_that_exists_is_left_alone(tmp_path: Path) -> None:
    write_oci_layout(tmp_path / "image", (tar_layer(file(b"a")),))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "mine").touch()
    with pytest.raises(CacheError, match="File exists"):
        unpack(*image(tmp_path / "image"), tmp_path / "root")
    assert (tmp_path / "root" / "mine").exists()
    assert len(list(tmp_path.iterdir())) == 2
