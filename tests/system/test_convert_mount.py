"""The kernel's word on converted images: mounted flat through a loop device, and split."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration/convert"))
sys.path.insert(0, str(Path(__file__).parent / "erofs"))

from flat_device import index_of, split_body, write_device
from kernel_mount import erofs_mount
from layout_images import Layout, file, noise, tar, words

from pagein.build.publish import PublishedImage, publish
from pagein.build.report import ConvertOptions
from pagein.format.profile import Profile, ProfiledFile, Touch
from pagein.store.layout import LayoutRepository
from pagein.types import Digest

SECTOR = 256 << 10


@contextmanager
def mounted(device: Path, where: Path) -> Iterator[Path]:
    where.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", device, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


CONTENTS = {
    "gap": noise("g", SECTOR) + bytes(3 * SECTOR) + b"end",
    "zeros": bytes(2 * SECTOR + 7),
    "big": words("b", 5 * SECTOR + 1),
    **{f"lib/{i:03}.py": words(i, 331 * i) for i in range(100)},
}


def published(folder: Path, profile: Profile | None) -> tuple[Path, PublishedImage]:
    """Convert an image of `CONTENTS`; return its layout and what it became."""
    layout = Layout(folder / "layout")
    layout.image("v1", [tar([file(name, data) for name, data in CONTENTS.items()])])
    repository = LayoutRepository(layout.path)
    options = ConvertOptions(sector_size=SECTOR, scratch=folder / "scratch")
    [done] = publish(repository, "v1", repository, options, profile=profile).images
    return layout.path, done


def contents_of(tree: Path) -> dict[str, bytes]:
    files = [path for path in tree.rglob("*") if path.is_file()]
    return {str(path.relative_to(tree)): path.read_bytes() for path in files}


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_kernel_reads_every_byte_holes_too(tmp_path: Path) -> None:
    layout, done = published(tmp_path, None)
    device = write_device(layout, index_of(layout, done.converted), tmp_path / "device")
    with mounted(device, tmp_path / "mnt") as tree:
        assert contents_of(tree) == CONTENTS


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_kernel_reads_every_byte_of_an_optimized_image_flat_and_split(tmp_path: Path) -> None:
    names = ["lib/050.py", "gap", "big", "lib/099.py", "zeros"]
    files = tuple(ProfiledFile.of(name.encode(), len(CONTENTS[name])) for name in names)
    touches = (
        Touch(0, 0, files[0].size, 0),
        Touch(1, 0, files[1].size, 1),
        Touch(2, SECTOR + 8192, 12288, 2),
        Touch(2, 4 * SECTOR, SECTOR, 3),
        Touch(3, 4096, 4096, 4),
        Touch(4, 0, files[4].size, 5),
    )
    profile = Profile(
        recorded="2026-01-31T12:00:00Z",
        reference="oci:layout:v1",
        source=Digest.of(b"any"),
        read_ahead_kb=32,
        seconds=1.0,
        files=files,
        touches=touches,
    )
    layout, done = published(tmp_path, profile)
    assert done.optimized is not None
    index = index_of(layout, done.optimized)
    assert index.hot_sectors == 3  # copies, the start of "gap", the fifth sector of "big"
    device = write_device(layout, index, tmp_path / "device")
    with mounted(device, tmp_path / "mnt") as tree:
        assert contents_of(tree) == CONTENTS
    metadata = tmp_path / "metadata"
    metadata.write_bytes(index.metadata)
    parts = split_body(index, device, tmp_path)
    with erofs_mount(metadata, tmp_path / "split", parts) as tree:
        assert contents_of(tree) == CONTENTS
