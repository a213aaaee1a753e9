"""The EROFS superblock and device table, as far as pagein writes them.

Source: linux/fs/erofs/erofs_fs.h, ``struct erofs_super_block`` and ``struct erofs_deviceslot``.
Everything that pagein does not write is refused, also where the kernel would take it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from pagein.errors import FormatError
from pagein.types import BLOCK_SIZE, Buffer

SUPERBLOCK_OFFSET: Final = 1024
SLOT_SIZE: Final = 128
SLOTS_OFFSET: Final = 1152
"""The device table follows the superblock; ``devt_slotoff`` counts in units of 128 bytes."""

NO_BLOCK: Final = 0xFFFFFFFF
"""The address of a hole; so no block may have it."""

NO_INDEX: Final = NO_BLOCK << 32
"""A chunk index that is a hole: 0 (2 bytes), device 0 (2), address (4)."""

MAX_PARTS: Final = 2

COMPAT: Final = 0x1 | 0x2
"""SB_CHKSUM: a checksum covers block 0. MTIME: inode times are mtimes."""

INCOMPAT_CHUNKED_FILE: Final = 0x4
INCOMPAT_DEVICE_TABLE: Final = 0x8

_MAGIC: Final = 0xE0F5E1E2
_BLOCK_BITS: Final = 12
_SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23s")
_SLOT = struct.Struct("<64sII56s")
_CHECKSUM_AT: Final = SUPERBLOCK_OFFSET + 4
_UUID_AT: Final = SUPERBLOCK_OFFSET + 48


@dataclass(frozen=True, slots=True)
class Part:
    """One device slot: ``blocks`` blocks from absolute block ``start`` (``uniaddr``)."""

    start: int
    blocks: int

    @property
    def stop(self) -> int:
        """First absolute block after the part."""
        return self.start + self.blocks


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a device is cut: bytes of metadata, then the parts that have blocks, hot first.

    With one part the superblock cannot tell a hot region from layer data; the index can.
    """

    metadata_bytes: int
    parts: tuple[Part, ...]

    @property
    def body_start(self) -> int:
        """Absolute block of body block 0; 0 where there is no body."""
        return self.parts[0].start if self.parts else 0

    @property
    def body_blocks(self) -> int:
        """Blocks of all parts."""
        return sum(part.blocks for part in self.parts)


@dataclass(frozen=True, slots=True)
class Superblock:
    """The fields that differ between images."""

    root_nid: int
    inodes: int
    blocks: int
    has_chunks: bool
    parts: tuple[Part, ...]
    uuid: bytes = bytes(16)


def first_inode_offset(parts: int) -> int:
    """Byte after the superblock and a table of ``parts`` slots: where inodes may start."""
    return SLOTS_OFFSET + parts * SLOT_SIZE


def cut_parts(*, metadata_bytes: int, sector_size: int, body: tuple[int, int]) -> tuple[Part, ...]:
    """Return the non-empty parts, given (hot, data) in blocks; empty parts get no slot."""
    start = -(-metadata_bytes // sector_size) * (sector_size // BLOCK_SIZE)
    parts: list[Part] = []
    for blocks in body:
        if blocks:
            parts.append(Part(start, blocks))
        start += blocks
    if start > NO_BLOCK:
        raise FormatError(f"a device of {start} blocks is larger than 16 TiB", field="blocks")
    return tuple(parts)


def pack_superblock(superblock: Superblock) -> bytes:
    """Return superblock and device table, to be put at offset 1024; the checksum field is 0."""
    parts = superblock.parts
    incompat = INCOMPAT_CHUNKED_FILE if superblock.has_chunks else 0
    incompat |= INCOMPAT_DEVICE_TABLE if parts else 0
    packed = _SUPERBLOCK.pack(
        *(_MAGIC, 0, COMPAT, _BLOCK_BITS, 0, superblock.root_nid, superblock.inodes),
        *(0, 0, superblock.blocks, 0, 0, superblock.uuid, bytes(16), incompat),
        *(0, len(parts), SLOTS_OFFSET // SLOT_SIZE if parts else 0, 0, 0, 0, 0, 0, bytes(23)),
    )
    slots = (_SLOT.pack(bytes(64), part.blocks, part.start, bytes(56)) for part in parts)
    return packed + b"".join(slots)


def seal(metadata: bytearray, uuid: bytes) -> None:
    """Fill in uuid and checksum; nothing in block 0 may change after this."""
    metadata[_UUID_AT : _UUID_AT + 16] = uuid
    struct.pack_into("<I", metadata, _CHECKSUM_AT, checksum(metadata))


def checksum(metadata: Buffer) -> int:
    """CRC-32C of bytes 1024 to 4095 with the checksum field as 0: seeded ~0, not inverted at
    the end.

    3 KiB take 0.3 ms in Python, once an image.
    """
    covered = bytearray(metadata[SUPERBLOCK_OFFSET:BLOCK_SIZE])
    covered[4:8] = bytes(4)
    crc = 0xFFFFFFFF
    for byte in covered:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC32C: Final = _crc32c_table()


def parse_superblock(metadata: memoryview) -> Superblock:
    """Read and verify block 0. FormatError for anything that pagein does not write."""
    if len(metadata) < BLOCK_SIZE or len(metadata) % BLOCK_SIZE:
        raise FormatError(
            f"erofs metadata of {len(metadata)} bytes is not a number of blocks", field="metadata"
        )
    fields = _SUPERBLOCK.unpack_from(metadata, SUPERBLOCK_OFFSET)
    (magic, stored, compat, block_bits, extra_slots, root_nid, inodes, built, built_ns) = fields[:9]
    blocks, meta_block, xattr_block, uuid, volume, incompat, algorithms, devices = fields[9:17]
    slots_at, directory_bits, *rest = fields[17:]
    _expect("magic", magic, _MAGIC)
    _expect("checksum", stored, checksum(metadata))
    _expect("feature_compat", compat, COMPAT)
    _expect("blkszbits", block_bits, _BLOCK_BITS)
    if incompat & ~(INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE):
        raise _error("feature_incompat", f"{incompat:#x}")
    _expect("extra_devices", min(devices, MAX_PARTS), devices)
    _expect("device table", bool(incompat & INCOMPAT_DEVICE_TABLE), devices > 0)
    _expect("devt_slotoff", slots_at, SLOTS_OFFSET // SLOT_SIZE if devices else 0)
    _expect("blocks", blocks, len(metadata) // BLOCK_SIZE)
    zero = (extra_slots, built, built_ns, meta_block, xattr_block, algorithms, directory_bits)
    if any(zero) or any(volume) or any(rest[:4]) or any(rest[4]):
        raise _error("superblock", "a field that is never set is not zero")
    return Superblock(
        root_nid,
        inodes,
        blocks,
        bool(incompat & INCOMPAT_CHUNKED_FILE),
        _parse_slots(metadata, devices),
        uuid,
    )


def _parse_slots(metadata: memoryview, count: int) -> tuple[Part, ...]:
    parts: list[Part] = []
    expected = None
    for index in range(count):
        offset = SLOTS_OFFSET + index * SLOT_SIZE
        tag, blocks, start, reserved = _SLOT.unpack_from(metadata, offset)
        apart = start * BLOCK_SIZE < len(metadata) if expected is None else start != expected
        if any(tag) or any(reserved) or not blocks or apart or start + blocks > NO_BLOCK:
            raise FormatError(
                f"erofs device slot {index} has {blocks} blocks from block {start}",
                field="device slot",
                offset=offset,
            )
        parts.append(Part(start, blocks))
        expected = start + blocks
    return tuple(parts)


def _expect(field: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise _error(field, f"{found:#x} instead of {wanted:#x}")


def _error(field: str, what: str) -> FormatError:
    return FormatError(
        f"erofs superblock is not one of ours: {field}: {what}",
        field=field,
        offset=SUPERBLOCK_OFFSET,
    )
