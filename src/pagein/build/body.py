"""The body of a device while it is built: where each content lies, and the sectors in order."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from pagein.build.adopt import Adoption
from pagein.build.pack import PackWriter
from pagein.build.spool import Spool, SpooledFile
from pagein.errors import FormatError
from pagein.format.sectors import holes_as_chunks, pack_small_files
from pagein.format.tree import Chunked, Flat, Node
from pagein.types import BLOCK_SIZE, Digest

_MAX_BLOCKS = 1 << 32
"""A chunk index addresses 2**32 blocks, 16 TiB; the last value means a hole."""

_MAX_CHUNKS = 1 << 23
"""Map entries an image may have, 64 MiB of metadata: 32 TiB of sparse files at 4 MiB a sector."""


@dataclass(slots=True)
class LargeFile:
    """A file of a sector or more, as it arrived: ``sectors[i]`` of it is number ``tickets[i]`` of
    the pack. Sectors wholly inside a hole of a sparse file are in neither list."""

    key: bytes
    node: Node
    sectors: list[int] = field(default_factory=list)
    tickets: list[int] = field(default_factory=list)


class Body:
    """Addresses count from the body's start; layer after layer is added at its end."""

    def __init__(self, sector_size: int, zero: Digest) -> None:
        self.sector_size = sector_size
        self.rows: list[Digest] = []
        """The sector table so far: the digest of each sector."""
        self._zero = zero
        self._contents: dict[bytes, Flat | Chunked] = {}
        self._chunks = 0

    @property
    def blocks(self) -> int:
        """Length in blocks."""
        return len(self.rows) * (self.sector_size // BLOCK_SIZE)

    def place_large(self, files: Sequence[LargeFile], digests: Sequence[Digest]) -> None:
        """Give a layer's large files their addresses; ``digests`` are those of the tickets."""
        for file in sorted(files, key=lambda file: file.key):
            named = [
                (sector, digests[ticket])
                for sector, ticket in zip(file.sectors, file.tickets, strict=True)
                if digests[ticket] != self._zero
            ]
            content = hashlib.sha256(struct.pack("<cQ", b"L", file.node.size))
            for sector, digest in named:
                content.update(struct.pack("<Q", sector) + digest.raw)
            file.node.content = content.digest()
            if file.node.content not in self._contents:
                self._contents[file.node.content] = self._lay_out(file.node.size, named)
            file.node.layout = self._contents[file.node.content]

    def _lay_out(self, size: int, named: list[tuple[int, Digest]]) -> Flat | Chunked:
        first = len(self.rows)
        count = -(-size // self.sector_size)
        self._grow([digest for _, digest in named])
        if len(named) == count:
            return Flat(first * (self.sector_size // BLOCK_SIZE))
        present = bytearray(count)
        for sector, _ in named:
            present[sector] = 1
        return Chunked(*holes_as_chunks(present, first, self.sector_size))

    def place_small(
        self, files: Sequence[SpooledFile], spool: Spool, writer: PackWriter, adoption: Adoption
    ) -> None:
        """Pack a layer's small files into sectors and hand those to ``writer``.

        Files in a sector of a base that can go on are not packed again.
        The digests of these sectors are rows once the writer has drained: see `end_layer`.
        """
        fresh: list[SpooledFile] = []
        placed: set[bytes] = set()
        for file in sorted(files, key=lambda file: file.key):
            file.node.content = file.digest
            if file.digest not in self._contents and file.digest not in placed:
                placed.add(file.digest)
                fresh.append(file)
        for adopted in adoption.find(fresh):
            for content, offset in adopted.offsets.items():
                self._contents[content] = Flat(self.blocks + offset // BLOCK_SIZE)
            self._grow([adopted.digest])
        fresh = [file for file in fresh if file.digest not in self._contents]
        block = self.blocks
        for packed in pack_small_files(fresh, self.sector_size):
            members = fresh[packed.first : packed.first + len(packed.offsets)]
            for file, offset in zip(members, packed.offsets, strict=True):
                self._contents[file.digest] = Flat(block + offset // BLOCK_SIZE)
            writer.add(spool.reader(members, self.sector_size))
            block += self.sector_size // BLOCK_SIZE
        for file in files:
            file.node.layout = self._contents[file.digest]

    def end_layer(self, digests: Sequence[Digest]) -> None:
        """Append the rows of the layer's small files: the last ``digests`` of its pack."""
        self._grow(digests)

    def check_map(self, size: int) -> None:
        """Account for the map that a large file may need, before it is read.

        Raises FormatError where a file (a few hundred bytes of tar can claim exabytes) or all
        of them need more map than an index may carry.
        """
        self._chunks += -(-size // self.sector_size)
        if self._chunks > _MAX_CHUNKS:
            raise FormatError(
                f"placing a file of {size} bytes: the image's large files need more than "
                f"{_MAX_CHUNKS} map entries",
                field="size",
                hint="convert with larger sectors",
            )

    def _grow(self, digests: Sequence[Digest]) -> None:
        self.rows.extend(digests)
        if self.blocks >= _MAX_BLOCKS:
            raise FormatError("the image's files need more than 16 TiB", field="size")
