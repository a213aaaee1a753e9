"""The index blob: all that a node needs before it mounts (docs/format.md has the byte tables).

A prelude of 24 bytes, readable without decompressing, then one zstd frame that holds header, pack
digests, sector table, image configuration and EROFS metadata. Little-endian throughout.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import zstandard

from pagein.errors import FormatError
from pagein.types import BLOCK_SIZE, Buffer, Digest, Encoding, SectorRef, is_sector_size

MAGIC: Final = b"PAGEIN\r\n"
"""Not text: a line-ending conversion destroys it, and is found at once."""

VERSION: Final = 1
MAX_INDEX: Final = 512 << 20
"""Bytes of an index, packed or not; 5 million files have about 400 MB of metadata."""

MAX_PACKS: Final = 4096
MAX_CONFIG: Final = 4 << 20
"""An image configuration is at most as large as a manifest may be (OCI distribution spec)."""

MAX_BLOCKS: Final = 0xFFFFFFFE
"""EROFS addresses blocks with 32 bits, and the last value means a hole."""

_PRELUDE: Final = struct.Struct("<8sHHIQ")  # magic, version, flags, reserved, unpacked length
_HEADER: Final = struct.Struct("<II32sIIIIIQ")
_ROW: Final = struct.Struct("<32sHBBIQ")  # digest, pack, encoding, 0, stored length, offset
_NO_PACK: Final = 0xFFFF
_NO_READ_AHEAD: Final = 0xFFFFFFFF
_LEVEL: Final = 9
_MAX_RATIO: Final = 1 << 12
_ANY_RATIO_BELOW: Final = 64 << 20
"""A chunk map of holes packs 20,000 to 1; so the ratio is held against large indexes only."""


@dataclass(frozen=True)
class Index:
    """One converted image.

    ``sectors`` has a row for each sector of the body: ``hot_sectors`` of the hot region, then those
    of the layer data. ``config`` is the source image's configuration, byte for byte; ``source`` the
    digest of its manifest. ``read_ahead_kb`` is what the hot region's profile was recorded with.
    """

    sector_size: int
    metadata: bytes
    config: bytes
    source: Digest
    hot_sectors: int
    sectors: tuple[SectorRef, ...]
    read_ahead_kb: int | None = None

    def __post_init__(self) -> None:
        if not is_sector_size(self.sector_size):
            raise FormatError(f"not a sector size: {self.sector_size}", field="sector_size")
        if not self.metadata or len(self.metadata) % BLOCK_SIZE:
            raise FormatError("metadata is not a whole number of blocks", field="metadata")
        if not 0 <= self.hot_sectors <= len(self.sectors):
            raise FormatError("more hot sectors than sectors", field="hot_sectors")
        if self.device_size // BLOCK_SIZE > MAX_BLOCKS:
            raise FormatError("the device is larger than 16 TiB", field="sectors")
        if self.read_ahead_kb is not None and not 0 <= self.read_ahead_kb < _NO_READ_AHEAD:
            raise FormatError(f"a read-ahead of {self.read_ahead_kb} KiB", field="read_ahead_kb")
        if len(self.config) > MAX_CONFIG:
            raise FormatError("the image configuration is larger than 4 MiB", field="config")
        if any(ref.size != self.sector_size for ref in self.sectors):
            raise FormatError("a sector of another size", field="sectors")
        if len(self.packs) > MAX_PACKS:
            raise FormatError(f"more than {MAX_PACKS} packs", field="packs")

    @property
    def metadata_sectors(self) -> int:
        """Sectors that the metadata part takes in the device's address space."""
        return -(-len(self.metadata) // self.sector_size)

    @property
    def data_sectors(self) -> int:
        """Sectors of layer data."""
        return len(self.sectors) - self.hot_sectors

    @property
    def body_size(self) -> int:
        """Bytes of hot region and layer data."""
        return len(self.sectors) * self.sector_size

    @property
    def device_size(self) -> int:
        """Bytes of the whole device."""
        return self.metadata_sectors * self.sector_size + self.body_size

    @property
    def hot_blocks(self) -> int:
        """Blocks of the hot region."""
        return self.hot_sectors * self.sector_size // BLOCK_SIZE

    @property
    def data_blocks(self) -> int:
        """Blocks of the layer data."""
        return self.data_sectors * self.sector_size // BLOCK_SIZE

    @cached_property
    def packs(self) -> tuple[Digest, ...]:
        """The packs that hold the sectors, in order of first use."""
        return tuple(dict.fromkeys(ref.pack for ref in self.sectors if ref.pack is not None))


def encode_index(index: Index) -> bytes:
    """Return the blob. The same index always gives the same bytes."""
    number = {pack: position for position, pack in enumerate(index.packs)}
    read_ahead = _NO_READ_AHEAD if index.read_ahead_kb is None else index.read_ahead_kb
    parts = [
        _HEADER.pack(
            index.sector_size,
            index.hot_sectors,
            index.source.raw,
            len(index.sectors),
            len(index.packs),
            read_ahead,
            len(index.config),
            0,
            len(index.metadata),
        ),
        *(pack.raw for pack in index.packs),
        *(
            _ROW.pack(
                ref.digest.raw,
                _NO_PACK if ref.pack is None else number[ref.pack],
                ref.encoding,
                0,
                ref.stored,
                ref.offset,
            )
            for ref in index.sectors
        ),
        index.config,
        index.metadata,
    ]
    unpacked = b"".join(parts)
    frame = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False).compress(unpacked)
    if len(unpacked) > min(MAX_INDEX, _longest(_PRELUDE.size + len(frame))):
        raise FormatError(f"an index of {len(unpacked)} bytes is too large", field="metadata")
    return _PRELUDE.pack(MAGIC, VERSION, 0, 0, len(unpacked)) + frame


def _longest(packed: int) -> int:
    """Return how many bytes ``packed`` ones may unpack to: a small blob claims little memory."""
    return max(_ANY_RATIO_BELOW, packed * _MAX_RATIO)


def decode_index(data: Buffer, *, limit: int = MAX_INDEX) -> Index:
    """Read a blob of at most ``limit`` bytes, packed or not. Raises FormatError.

    Its length unpacked stands in the prelude and again in the frame; the two must agree, and keep
    to ``limit``, and to 64 MiB or 4096 times the packed size, before anything is allocated.
    """
    if len(data) < _PRELUDE.size or len(data) > limit:
        raise FormatError(f"an index cannot have {len(data)} bytes", field="length")
    magic, version, flags, reserved, length = _PRELUDE.unpack_from(data)
    if magic != MAGIC:
        raise FormatError("not a pagein index", field="magic", offset=0)
    if version != VERSION:
        raise FormatError(
            f"index of format version {version}; this pagein reads version {VERSION}",
            field="version",
            offset=8,
            hint="use a newer pagein on this node, or convert the image again with this one",
        )
    if flags or reserved:
        raise FormatError("unknown index flags", field="flags", offset=10)
    if length > min(limit, _longest(len(data))):
        raise FormatError(f"an index cannot unpack to {length} bytes", field="length", offset=16)
    return _parse(_unpack(memoryview(data)[_PRELUDE.size :], length))


def _unpack(frame: memoryview, length: int) -> bytes:
    try:
        if zstandard.frame_content_size(frame) != length:
            raise FormatError("the index is not as long as it says", field="length", offset=16)
        return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"the index does not unpack: {error}", field="frame") from None


def _parse(data: bytes) -> Index:
    if len(data) < _HEADER.size:
        raise FormatError("the index is too short for its header", field="header")
    (sector_size, hot, source, count, packs, read_ahead, config_size, reserved, metadata_size) = (
        _HEADER.unpack_from(data)
    )
    if not is_sector_size(sector_size) or packs > MAX_PACKS or reserved or config_size > MAX_CONFIG:
        raise FormatError("the index header is out of bounds", field="header")
    rows_at = _HEADER.size + packs * 32
    config_at = rows_at + count * _ROW.size
    metadata_at = config_at + config_size
    if metadata_at + metadata_size != len(data):
        raise FormatError("the parts of the index do not add up", field="header")
    names = [Digest.from_raw(data[at : at + 32]) for at in range(_HEADER.size, rows_at, 32)]
    rows = _ROW.iter_unpack(memoryview(data)[rows_at:config_at])
    index = Index(
        sector_size=sector_size,
        metadata=data[metadata_at:],
        config=data[config_at:metadata_at],
        source=Digest.from_raw(source),
        hot_sectors=hot,
        sectors=tuple(_sectors(rows, sector_size, names)),
        read_ahead_kb=None if read_ahead == _NO_READ_AHEAD else read_ahead,
    )
    if index.packs != tuple(names):
        raise FormatError("the packs are not those of the sector table", field="packs")
    return index


def _sectors(
    rows: Iterator[tuple[bytes, int, int, int, int, int]], size: int, packs: list[Digest]
) -> Iterator[SectorRef]:
    for digest, number, encoding, reserved, stored, offset in rows:
        if encoding not in (Encoding.ZERO, Encoding.RAW, Encoding.ZSTD) or reserved:
            raise FormatError(f"unknown sector encoding {encoding}", field="encoding")
        if number != _NO_PACK and number >= len(packs):
            raise FormatError(f"sector of pack {number} of {len(packs)}", field="pack")
        pack = None if number == _NO_PACK else packs[number]
        if encoding == Encoding.ZERO and (stored or offset):
            raise FormatError("a zero sector is not stored", field="stored")
        if (encoding != Encoding.ZERO and not stored) or offset + stored > 1 << 62:
            raise FormatError("stored sector out of bounds", field="stored")
        yield SectorRef(
            Digest.from_raw(digest), size, Encoding(encoding), pack, offset=offset, stored=stored
        )
