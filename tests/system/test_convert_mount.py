"""The kernel's word on a converted image: mounted flat through a loop device."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration/convert"))

from flat_device import index_of, write_device
from layout_images import Layout, file, noise, tar, words

from pagein.build.publish import publish
from pagein.build.report import ConvertOptions
from pagein.store.layout import LayoutRepository

SECTOR = 256 << 10


@contextmanager
def mounted(device: Path, where: Path) -> Iterator[Path]:
    where.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", device, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_kernel_reads_every_byte_holes_too(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    contents = {
        "gap": noise("g", SECTOR) + bytes(3 * SECTOR) + b"end",
        "zeros": bytes(2 * SECTOR + 7),
        "big": words("b", 5 * SECTOR + 1),
        **{f"lib/{i:03}.py": words(i, 331 * i) for i in range(100)},
    }
    layout.image("v1", [tar([file(name, data) for name, data in contents.items()])])
    done = publish(
        LayoutRepository(layout.path),
        "v1",
        LayoutRepository(layout.path),
        ConvertOptions(sector_size=SECTOR, scratch=tmp_path / "scratch"),
    )
    index = index_of(layout.path, done.images[0].converted)
    device = write_device(layout.path, index, tmp_path / "device")
    with mounted(device, tmp_path / "mnt") as tree:
        found = {
            str(path.relative_to(tree)): path.read_bytes()
            for path in tree.rglob("*")
            if path.is_file()
        }
    assert found == contents
