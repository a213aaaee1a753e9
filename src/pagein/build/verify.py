"""Compares a converted image with the layers it came from, byte for byte: the deep half of a check.

The source is read again and merged again; nothing that the conversion wrote is believed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pagein.build.layer import layer_entries
from pagein.build.report import ConvertProgress, StageClock, Unwatched
from pagein.errors import FormatError
from pagein.format.block_runs import runs_of
from pagein.format.manifest import ImageManifest, parse_config
from pagein.format.merge import LayerMerger
from pagein.format.tree import HOLE, Node, NodeKind, walk
from pagein.store.repository import Repository
from pagein.types import BLOCK_SIZE, Buffer

Segments = Iterable[tuple[int, Buffer]]
"""Pieces of a file as ``(offset, bytes)``, going forward. What no piece covers is zeros."""

ReadFile = Callable[[bytes, Node], Segments]
"""Reads a regular file of the image under test, given its path and node."""

_PIECE = 64 << 10
_READ = 1 << 20
_CONFIG_LIMIT = 4 << 20


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing at ``path`` that is not as in the source: ``what`` is name, type, content..."""

    path: bytes
    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        path = "/" + self.path.decode("utf-8", "backslashreplace")
        return f"{path}: {self.what}: expected {self.expected}, found {self.found}"


class ContentHash:
    """Names a file's content, however it is cut into pieces and wherever its zeros are holes.

    SHA-256 over ``(number, bytes)`` of each 64 KiB piece that is not all zeros: a hole of a
    terabyte costs nothing.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._number = 0
        self._piece = bytearray()

    def update(self, offset: int, data: Buffer) -> None:
        """Add bytes; raises FormatError where ``offset`` goes back."""
        reached = self._number * _PIECE + len(self._piece)
        if offset < reached:
            raise FormatError(f"file data goes back from {reached} to {offset}", field="offset")
        view = memoryview(data)
        while view:
            self._go_to(offset)
            piece = view[: _PIECE - len(self._piece)]
            self._piece += piece
            view, offset = view[len(piece) :], offset + len(piece)

    def digest(self, size: int) -> bytes:
        """Return the name of the file of ``size`` bytes."""
        self._end_piece()
        self._hash.update(size.to_bytes(8, "little"))
        return self._hash.digest()

    def _go_to(self, offset: int) -> None:
        if offset // _PIECE != self._number or len(self._piece) == _PIECE:
            self._end_piece()
            self._number = offset // _PIECE
        self._piece += bytes(offset % _PIECE - len(self._piece))

    def _end_piece(self) -> None:
        bare = self._piece.rstrip(b"\0")
        if bare:
            self._hash.update(self._number.to_bytes(8, "little"))
            self._hash.update(len(bare).to_bytes(4, "little"))
            self._hash.update(bare)
        self._piece = bytearray()
        self._number += 1


def content_digest(segments: Segments, size: int) -> bytes:
    """Name a file's content with `ContentHash`."""
    content = ContentHash()
    for offset, data in segments:
        content.update(offset, data)
    return content.digest(size)


def file_segments(
    node: Node, read_body: Callable[[int, int], Buffer]
) -> Iterator[tuple[int, Buffer]]:
    """Yield the segments of a file in a device: ``read_body(offset, length)`` reads the body.

    Pieces have at most 1 MiB, so that a caller may serve them from one sector or two.
    """
    start = 0
    for block, blocks in runs_of(node.layout, node.size) if node.layout is not None else ():
        stop = min(start + blocks * BLOCK_SIZE, node.size)
        for offset in range(start, stop, _READ) if block != HOLE else ():
            length = min(_READ, stop - offset)
            yield offset, read_body(block * BLOCK_SIZE + offset - start, length)
        start = stop


def read_source_tree(
    source: Repository, manifest: ImageManifest, *, progress: ConvertProgress | None = None
) -> Node:
    """Merge the image's layers into a tree; ``content`` of a regular file is its `ContentHash`."""
    watcher = progress or Unwatched()
    watcher.start(sum(layer.size for layer in manifest.layers))
    diff_ids = parse_config(source.read_blob(manifest.config.digest, limit=_CONFIG_LIMIT)).diff_ids
    merger = LayerMerger()
    clock = StageClock()
    for layer, diff_id in zip(manifest.layers, diff_ids, strict=True):
        with (
            source.open_blob(layer.digest, size=layer.size) as blob,
            layer_entries(blob, layer.media_type, diff_id, clock, watcher.read) as entries,
        ):
            merger.begin_layer()
            for entry in entries:
                node = merger.add(entry)
                if node is not None:
                    node.content = content_digest(entry.chunks(), node.size)
            merger.end_layer()
    return merger.root


def compare_with_source(
    source: Repository,
    manifest: ImageManifest,
    tree: Node,
    read_file: ReadFile,
    *,
    progress: ConvertProgress | None = None,
) -> list[Difference]:
    """Compare ``tree`` with the image's own layers; empty when all is the same."""
    return list(
        compare_trees(read_source_tree(source, manifest, progress=progress), tree, read_file)
    )


def compare_trees(expected: Node, found: Node, read_file: ReadFile) -> Iterator[Difference]:
    """Compare every name, type, mode, owner, time, xattr, link group, device, size and content.

    ``content`` of each regular file in ``expected`` is its `ContentHash` (None: an empty file).
    """
    wanted, there = dict(walk(expected)), dict(walk(found))
    for path in sorted(wanted.keys() - there.keys()):
        yield Difference(path, "name", wanted[path].kind.name.lower(), "nothing")
    for path in sorted(there.keys() - wanted.keys()):
        yield Difference(path, "name", "nothing", there[path].kind.name.lower())
    shared = sorted(wanted.keys() & there.keys())
    yield from _compare_links(shared, wanted, there)
    hashed: dict[int, bytes] = {}
    for path in shared:
        ours, theirs = wanted[path], there[path]
        yield from _compare_nodes(path, ours, theirs)
        if ours.kind is NodeKind.FILE and theirs.kind is NodeKind.FILE:
            if id(theirs) not in hashed:
                hashed[id(theirs)] = content_digest(read_file(path, theirs), theirs.size)
            digest = ours.content or content_digest((), ours.size)
            if digest != hashed[id(theirs)]:
                yield Difference(path, "content", digest.hex(), hashed[id(theirs)].hex())


def _compare_nodes(path: bytes, ours: Node, theirs: Node) -> Iterator[Difference]:
    if ours.kind is not theirs.kind:
        yield Difference(path, "type", ours.kind.name.lower(), theirs.kind.name.lower())
        return
    facts: list[tuple[str, object, object]] = [
        ("mode", f"{ours.mode:04o}", f"{theirs.mode:04o}"),
        ("owner", f"{ours.uid}:{ours.gid}", f"{theirs.uid}:{theirs.gid}"),
        ("mtime", ours.mtime_ns, theirs.mtime_ns),
        ("xattrs", sorted(ours.xattrs.items()), sorted(theirs.xattrs.items())),
    ]
    match ours.kind:
        case NodeKind.FILE:
            facts.append(("size", ours.size, theirs.size))
        case NodeKind.SYMLINK:
            facts.append(("target", ours.target, theirs.target))
        case NodeKind.CHAR_DEVICE | NodeKind.BLOCK_DEVICE:
            facts.append(("device", ours.device, theirs.device))
        case _:
            pass
    for what, expected, found in facts:
        if expected != found:
            yield Difference(path, what, str(expected), str(found))


def _compare_links(
    paths: list[bytes], wanted: dict[bytes, Node], there: dict[bytes, Node]
) -> Iterator[Difference]:
    """A link group is named by its first path; each path must be in the group of the same name."""
    ours: dict[int, bytes] = {}
    theirs: dict[int, bytes] = {}
    for path in paths:
        expected = ours.setdefault(id(wanted[path]), path)
        found = theirs.setdefault(id(there[path]), path)
        if expected != found:
            yield Difference(path, "hard link", repr(expected), repr(found))
