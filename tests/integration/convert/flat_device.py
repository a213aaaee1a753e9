"""Puts a converted image together again with hashlib, zstandard and fsck.erofs."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
import zstandard

from pagein.build.report import Converted, Optimized
from pagein.format.index import Index, decode_index
from pagein.types import Encoding


def blob(layout: Path, digest: str) -> Path:
    """File of a blob."""
    return layout / "blobs/sha256" / digest.removeprefix("sha256:")


def index_of(layout: Path, done: Converted | Optimized) -> Index:
    """Decode the index that a conversion stored."""
    return decode_index(blob(layout, str(done.index)).read_bytes())


def write_device(layout: Path, index: Index, path: Path) -> Path:
    """Write the whole device as a sparse file, each sector checked against its digest."""
    with path.open("wb") as device:
        device.write(index.metadata)
        for number, ref in enumerate(index.sectors, index.metadata_sectors):
            if ref.encoding is Encoding.ZERO:
                continue
            with blob(layout, str(ref.pack)).open("rb") as pack:
                pack.seek(ref.offset)
                data = pack.read(ref.stored)
            if ref.encoding is Encoding.ZSTD:
                data = zstandard.ZstdDecompressor().decompress(data)
            assert hashlib.sha256(data).hexdigest() == ref.digest.hex
            device.seek(number * index.sector_size)
            device.write(data)
        device.truncate(index.device_size)
    return path


def split_body(index: Index, device: Path, folder: Path) -> list[Path]:
    """Write each part of the body that is not empty into a file of its own, the hot one first."""
    parts = []
    with device.open("rb") as source:
        source.seek(index.metadata_sectors * index.sector_size)
        for name, sectors in (("hot", index.hot_sectors), ("data", index.data_sectors)):
            if sectors:
                parts.append(folder / name)
                with parts[-1].open("wb") as target:
                    for _ in range(sectors):
                        target.write(source.read(index.sector_size))
    return parts


def extract(layout: Path, done: Converted | Optimized, work: Path) -> Path:
    """Unpack a converted image with fsck.erofs, which also checks it.

    erofs-utils 1.5 reads chunks from the file of their device slot, and all else from the flat one.
    """
    if shutil.which("fsck.erofs") is None:
        pytest.skip("needs fsck.erofs")
    work.mkdir(parents=True, exist_ok=True)
    index = index_of(layout, done)
    device = write_device(layout, index, work / "device")
    parts = split_body(index, device, work)
    tree = work / "tree"
    devices = [f"--device={part}" for part in parts]
    command = ["fsck.erofs", *devices, f"--extract={tree}", str(device)]
    subprocess.run(command, check=True, capture_output=True)
    return tree
