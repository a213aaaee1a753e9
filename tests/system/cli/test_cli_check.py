"""``pagein check --deep`` finds every damage: in packs, in the index, in a tree that lies."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from node_image import odd_layer, write_layout

from pagein.cli.main import main
from pagein.format.dump import dump_tree
from pagein.format.erofs.read import ErofsReader, read_tree
from pagein.format.index import Index, decode_index, encode_index
from pagein.testing.layer_corpus import directory, file, tar_layer, whiteout

SECTOR = 256 << 10
DRAW = random.Random("damage")


def layers() -> tuple[bytes, ...]:
    noise = DRAW.randbytes(2 * SECTOR + 5000)
    data = tar_layer(
        directory(b"data/"),
        file(b"data/big", noise),
        file(b"data/words", b"sectors are compressed where it helps " * 9000),
        *(file(f"data/{i:03}".encode(), f"file {i}".encode() * 50) for i in range(150)),
        whiteout(b"odd/removed"),
    )
    return odd_layer(), data


@dataclass
class Typed:
    """What a command ended with."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


class Converted:
    """A layout with an image and its artifact, and ways to spoil it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listing = (path / "index.json").read_bytes()
        entries = json.loads(self.listing)["manifests"]
        [self.entry] = [one for one in entries if one.get("artifactType")]
        self.artifact: dict[str, Any] = json.loads(self.blob(self.entry["digest"]).read_bytes())
        self.parts = [self.blob(layer["digest"]) for layer in self.artifact["layers"]]

    def blob(self, digest: str) -> Path:
        return self.path / "blobs/sha256" / digest.removeprefix("sha256:")

    @property
    def index(self) -> Index:
        return decode_index(self.parts[0].read_bytes())

    @contextmanager
    def spoilt(self, path: Path, change: Callable[[bytes], bytes]) -> Iterator[None]:
        """Have other bytes under a digest."""
        before = path.read_bytes()
        path.write_bytes(change(before))
        try:
            yield
        finally:
            path.write_bytes(before)

    @contextmanager
    def lying(self, index: Index) -> Iterator[None]:
        """Have an artifact whose digests are right and whose index says something else."""
        data = encode_index(index)
        artifact = json.loads(json.dumps(self.artifact))
        artifact["layers"][0] |= self._put(data)
        entry = self.entry | self._put(json.dumps(artifact).encode())
        listing = json.loads(self.listing)
        listing["manifests"] = [entry if one == self.entry else one for one in listing["manifests"]]
        (self.path / "index.json").write_text(json.dumps(listing))
        try:
            yield
        finally:
            (self.path / "index.json").write_bytes(self.listing)

    def _put(self, data: bytes) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blob(digest).write_bytes(data)
        return {"digest": digest, "size": len(data)}


Type = Callable[..., Typed]


def type_in(words: tuple[object, ...], root: Path, capsys: Any, patch: pytest.MonkeyPatch) -> Typed:
    """The command line in this process: many short commands, and no start of Python for each."""
    patch.setenv("PAGEIN_ROOT", str(root))
    patch.delenv("PAGEIN_DEBUG", raising=False)
    patch.setattr(sys, "argv", ["pagein", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return Typed(int(stop.value.code or 0), captured.out, captured.err)


@pytest.fixture
def typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Type:
    return lambda *words: type_in(words, tmp_path / "node", capsys, monkeypatch)


@pytest.fixture
def converted(tmp_path: Path, typed: Type) -> Converted:
    layout = tmp_path / "layout"
    write_layout(layout, layers(), {"User": "alice"})
    assert typed("convert", "--sector-size", SECTOR, f"oci:{layout}:v1").code == 0
    made = Converted(layout)
    assert deep(typed, made).code == 0
    return made


def deep(typed: Type, converted: Converted) -> Typed:
    return typed("check", "--deep", f"oci:{converted.path}:v1")


def flipped(place: int) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        at = place % len(data)
        return data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]

    return flip


def test_a_flipped_bit_anywhere_in_a_pack_is_found(converted: Converted, typed: Type) -> None:
    packs = converted.parts[1:]
    assert len(packs) == 2
    for pack in packs:
        size = pack.stat().st_size
        for place in (0, 1, size // 3, size // 2, size - 1):
            with converted.spoilt(pack, flipped(place)):
                found = deep(typed, converted)
            assert (found.code, "sector sha256:" in found.out) == (1, True), place
            assert found.out.endswith(" 1 problems\n")
        for change in (lambda data: data[:-1], lambda data: b""):
            with converted.spoilt(pack, change):
                assert deep(typed, converted).code == 1
    assert deep(typed, converted).code == 0


def test_a_flipped_bit_anywhere_in_the_index_is_found(converted: Converted, typed: Type) -> None:
    index = converted.parts[0]
    size = index.stat().st_size
    for place in (0, 9, 17, 30, size // 2, size - 1):
        with converted.spoilt(index, flipped(place)):
            found = deep(typed, converted)
        assert found.code == 1, place
        assert "sha256:" in found.said
    with converted.spoilt(index, lambda data: data[:-1]):
        assert deep(typed, converted).code == 1


def test_a_flipped_bit_in_the_artifact_or_a_source_layer_is_found(
    converted: Converted, typed: Type
) -> None:
    entries = json.loads(converted.listing)["manifests"]
    [image] = [one for one in entries if not one.get("artifactType")]
    manifest = json.loads(converted.blob(image["digest"]).read_bytes())
    for descriptor in (converted.entry, image, manifest["config"], *manifest["layers"]):
        with converted.spoilt(converted.blob(descriptor["digest"]), flipped(77)):
            found = deep(typed, converted)
        assert found.code == 1
        assert found.err.count("\n") <= 2


# -- an artifact that is whole, and wrong

MODE, SIZE, BLOCK = (4, "<H"), (8, "<Q"), (16, "<I")
UID, MTIME, LINKS = (24, "<I"), (32, "<Q"), (44, "<I")
"""Fields of an extended EROFS inode (64 bytes): offset and form; kernel's erofs_fs.h."""


def altered(index: Index, path: bytes, field: tuple[int, str], change: int) -> Index:
    """The index with one field of a file's inode changed by XOR."""
    inode = ErofsReader(index.metadata).lookup(path, follow=False)
    metadata = bytearray(index.metadata)
    offset, form = field
    (value,) = struct.unpack_from(form, metadata, inode.offset + offset)
    struct.pack_into(form, metadata, inode.offset + offset, value ^ change)
    return replace(index, metadata=bytes(metadata))


def other_bytes(index: Index, old: bytes, new: bytes) -> Index:
    assert index.metadata.count(old) == 1
    return replace(index, metadata=index.metadata.replace(old, new))


LIES: dict[str, Callable[[Index], Index]] = {
    "mode": lambda index: altered(index, b"/data/100", MODE, 0o4000),
    "owner": lambda index: altered(index, b"/data/100", UID, 1),
    "time": lambda index: altered(index, b"/data/100", MTIME, 1),
    "size": lambda index: altered(index, b"/data/100", SIZE, 1),
    "place": lambda index: altered(index, b"/data/100", BLOCK, 1),
    "links": lambda index: altered(index, b"/odd/one", LINKS, 1),
    "type": lambda index: altered(index, b"/odd/fifo", MODE, 0o010000 ^ 0o020000),
    "device": lambda index: altered(index, b"/odd/null", BLOCK, 1 << 8),
    "name": lambda index: other_bytes(index, b"words", b"wards"),
    "target": lambda index: other_bytes(index, b"../etc/passwd", b"../etc/shadow"),
    "xattr": lambda index: other_bytes(index, b"blue", b"glue"),
    "config": lambda index: replace(index, config=index.config.replace(b"alice", b"root!")),
    "sectors": lambda index: replace(index, sectors=index.sectors[::-1]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_tree_that_is_not_the_sources_is_found(
    lie: str, converted: Converted, typed: Type
) -> None:
    with converted.lying(LIES[lie](converted.index)):
        found = deep(typed, converted)
    assert found.code == 1
    assert "bug" not in found.said
    assert deep(typed, converted).code == 0


def test_a_flipped_bit_of_the_metadata_is_found_or_changes_nothing(
    converted: Converted, typed: Type
) -> None:
    index = converted.index
    before = dump_tree(read_tree(index.metadata))
    found = 0
    for _ in range(25):
        metadata = flipped(DRAW.randrange(len(index.metadata)))(index.metadata)
        with converted.lying(replace(index, metadata=metadata)):
            checked = deep(typed, converted)
        if checked.code == 0:
            assert dump_tree(read_tree(metadata)) == before
        else:
            assert "bug" not in checked.said
            found += 1
    assert found > 5
