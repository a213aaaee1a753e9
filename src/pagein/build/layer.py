"""One layer, read once from front to back: blob -> tar -> tree, and its file bytes -> sectors."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from pagein.build.adopt import Adoption
from pagein.build.ahead import Ahead
from pagein.build.body import Body, LargeFile
from pagein.build.pack import PackWriter
from pagein.build.report import Stage, StageClock
from pagein.build.spool import Spool
from pagein.errors import FormatError
from pagein.format.compression import open_decompressed
from pagein.format.merge import LayerMerger
from pagein.format.tar import TarEntry, read_entries
from pagein.format.tree import Node
from pagein.types import Buffer, Digest

_READ_BYTES = 256 << 10


class _Metered(io.RawIOBase):
    """A stream whose reads are timed and seen; a `BufferedReader` above it makes them large.

    ``read_into`` fills the front of a buffer and says how much; 0 at the end.
    """

    def __init__(
        self,
        read_into: Callable[[memoryview], int],
        clock: StageClock,
        stage: Stage,
        see: Callable[[memoryview], None],
    ) -> None:
        self._read_into = read_into
        self._clock = clock
        self._stage = stage
        self._see = see

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Fill the front of ``buffer``; 0 at the end."""
        view = memoryview(buffer)
        with self._clock.stage(self._stage):
            count = self._read_into(view)
            self._see(view[:count])
        return count


@contextmanager
def layer_entries(
    blob: BinaryIO,
    media_type: str,
    diff_id: Digest,
    clock: StageClock,
    on_bytes: Callable[[int], None],
) -> Iterator[Iterator[TarEntry]]:
    """Yield a layer's tar entries; at the end check the uncompressed bytes against ``diff_id``.

    Raises FormatError where they differ. ``blob`` checks its own digest as it is read to the end.
    """

    def read_blob(view: memoryview) -> int:
        data = blob.read(len(view))
        view[: len(data)] = data
        return len(data)

    seen = _Metered(read_blob, clock, Stage.READ, lambda view: on_bytes(len(view)))
    stored = io.BufferedReader(seen, _READ_BYTES)
    unpacked = open_decompressed(stored, media_type)
    digest = hashlib.sha256()
    inflated = _Metered(unpacked.readinto, clock, Stage.DECOMPRESS, digest.update)
    with Ahead(inflated.readinto, clock) as ahead:
        content = io.BufferedReader(ahead, _READ_BYTES)
        yield read_entries(content)
        # What follows a tar's end mark, or a compressed stream, counts for the digests too.
        while content.read(_READ_BYTES):
            pass
    while stored.read(_READ_BYTES):
        pass
    found = Digest(digest.hexdigest())
    if found != diff_id:
        raise FormatError(
            f"layer unpacks to {found}, but the image's config promises {diff_id}",
            field="diff_ids",
        )


def place_key(path: bytes) -> bytes:
    """Key that sorts an entry's path as a walk of the tree does: a folder's content together.

    As text, ``a-b`` and ``a.txt`` would lie between ``a`` and ``a/b``.
    """
    return b"\0".join(part for part in path.split(b"/") if part not in (b"", b"."))


class LayerReader:
    """Feeds a layer's entries to the tree and its bytes to sectors."""

    def __init__(self, body: Body, spool: Spool, writer: PackWriter) -> None:
        self._body = body
        self._spool = spool
        self._writer = writer
        self._large: list[LargeFile] = []
        self.files = 0
        self.content_size = 0

    def read(self, entries: Iterator[TarEntry], merger: LayerMerger) -> None:
        """Merge all entries; returns when every byte has gone to the pool."""
        merger.begin_layer()
        for entry in entries:
            node = merger.add(entry)
            if node is None:
                continue
            self.files += 1
            self.content_size += node.size
            if node.size >= self._body.sector_size:
                self._cut(entry, node)
            elif node.size:
                self._spool.add(place_key(entry.path), node, whole_file(entry, node.size))
        merger.end_layer()

    def place(self, adoption: Adoption) -> None:
        """Give every file of the layer its address, and finish the sectors."""
        spooled = self._spool.finish()
        self._writer.drain()
        large = len(self._writer.digests)
        self._body.place_large(self._large, self._writer.digests)
        self._body.place_small(spooled, self._spool, self._writer, adoption)
        self._writer.drain()
        self._body.end_layer(self._writer.digests[large:])

    def _cut(self, entry: TarEntry, node: Node) -> None:
        """Cut a large file into sectors as it streams by; holes cost nothing."""
        self._body.check_map(node.size)
        file = LargeFile(place_key(entry.path), node)
        for number, sector in cut_sectors(entry, node.size, self._body.sector_size):
            file.sectors.append(number)
            file.tickets.append(self._writer.add(lambda data=sector: data))  # type: ignore[misc]
        self._large.append(file)


def whole_file(entry: TarEntry, size: int) -> Buffer:
    """Return a small file's ``size`` bytes, holes as zeros."""
    pieces: list[bytes] = []
    reached = 0
    for offset, data in entry.chunks():
        _check(entry, offset, data, reached, size)
        if offset > reached:
            pieces.append(bytes(offset - reached))
        pieces.append(data)
        reached = offset + len(data)
    if reached < size:
        pieces.append(bytes(size - reached))
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def cut_sectors(entry: TarEntry, size: int, sector_size: int) -> Iterator[tuple[int, bytearray]]:
    """Yield ``(number, bytes)`` of each sector that holds data, the last one padded with zeros."""
    number, sector, reached = -1, bytearray(), 0
    for offset, data in entry.chunks():
        _check(entry, offset, data, reached, size)
        reached = offset + len(data)
        view = memoryview(data)
        while view:
            if offset // sector_size != number:
                if sector:
                    yield number, sector
                number, sector = offset // sector_size, bytearray(sector_size)
            start = offset % sector_size
            piece = view[: sector_size - start]
            sector[start : start + len(piece)] = piece
            view, offset = view[len(piece) :], offset + len(piece)
    if sector:
        yield number, sector


def _check(entry: TarEntry, offset: int, data: Buffer, reached: int, size: int) -> None:
    """Data must go forward and stay inside the file, whatever a sparse map says."""
    if offset < reached or offset + len(data) > size:
        raise FormatError(
            f"reading {entry.path!r}: data at {offset}+{len(data)} of {size} bytes", field="size"
        )
