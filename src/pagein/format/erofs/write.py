"""A placed tree becomes the metadata part of a device.

The same tree gives the same bytes: nothing here depends on the clock, on the order of a dict or on
the machine. The uuid is a hash of everything else.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from pagein.errors import FormatError
from pagein.format.erofs.dirent import encode_block
from pagein.format.erofs.inode import (
    CHUNK_INDEXES,
    INODE_SIZE,
    MAX_CHUNK_BITS,
    MAX_SIZE,
    DataLayout,
    InodeFields,
    align_map,
    chunk_count,
    encode_device,
    pack_inode,
    run_chunk_bits,
)
from pagein.format.erofs.plan import Listing, PlannedInode, plan_tree
from pagein.format.erofs.superblock import (
    NO_INDEX,
    SUPERBLOCK_OFFSET,
    Superblock,
    cut_parts,
    first_inode_offset,
    pack_superblock,
    seal,
)
from pagein.format.tree import HOLE, Chunked, Flat, Node, NodeKind
from pagein.types import BLOCK_SIZE, is_sector_size

_DEVICES: Final = (NodeKind.CHAR_DEVICE, NodeKind.BLOCK_DEVICE)


def write_metadata(root: Node, *, sector_size: int, hot_blocks: int, data_blocks: int) -> bytes:
    """Return the metadata part of the device whose tree is ``root``; a multiple of 4096 bytes.

    Every non-empty regular file has a layout, in body blocks: ``[0, hot_blocks)`` is the hot
    region, the next ``data_blocks`` are layer data. Both are multiples of ``sector_size / 4096``.
    The metadata takes as many sectors as it needs, so body block b is at absolute block
    ``metadata_sectors * sector_size / 4096 + b``.

    FormatError for what EROFS cannot hold, an address outside the parts, or an extent across two.
    """
    _check_parts(sector_size, hot_blocks, data_blocks)
    slots = (hot_blocks > 0) + (data_blocks > 0)
    plan = plan_tree(root, first_offset=first_inode_offset(slots))
    parts = cut_parts(
        metadata_bytes=plan.size, sector_size=sector_size, body=(hot_blocks, data_blocks)
    )
    metadata = bytearray(plan.size)
    addresses = _Addresses(parts[0].start if parts else 0, hot_blocks, hot_blocks + data_blocks)
    for number, planned in enumerate(plan.inodes, 1):
        _emit(metadata, planned, number, addresses)
    top = pack_superblock(
        Superblock(
            root_nid=plan.inodes[0].nid,
            inodes=len(plan.inodes),
            blocks=plan.size // BLOCK_SIZE,
            has_chunks=plan.has_chunks,
            parts=parts,
        )
    )
    metadata[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + len(top)] = top
    seal(metadata, hashlib.sha256(metadata).digest()[:16])
    return bytes(metadata)


def _check_parts(sector_size: int, hot_blocks: int, data_blocks: int) -> None:
    if not is_sector_size(sector_size):
        raise FormatError(f"not a sector size: {sector_size}", field="sector_size")
    unit = sector_size // BLOCK_SIZE
    for name, blocks in (("hot_blocks", hot_blocks), ("data_blocks", data_blocks)):
        if blocks < 0 or blocks % unit:
            raise FormatError(f"{name} is {blocks}, not a multiple of {unit}", field=name)


class _Addresses:
    """Body blocks to absolute blocks and to chunk indexes, for extents that lie inside one part."""

    def __init__(self, start: int, hot_end: int, end: int) -> None:
        self._start = start
        self._hot_end = hot_end
        self._end = end
        self._data_device = 2 if hot_end else 1

    def absolute(self, block: int, count: int) -> int:
        """Return the absolute block of ``count`` blocks from body block ``block``."""
        self._check(block, count)
        return self._start + block

    def _check(self, block: int, count: int) -> None:
        stop = block + count
        if block < 0 or stop > self._end or block < self._hot_end < stop:
            raise FormatError(
                f"{count} blocks from body block {block} do not lie inside one part",
                field="layout",
            )

    def _index(self, block: int) -> int:
        """Return the chunk index of a body block: 0 (2 bytes), device (2), block in it (4)."""
        if block >= self._hot_end:
            return block - self._hot_end << 32 | self._data_device << 16
        return NO_INDEX if block == HOLE else block << 32 | 1 << 16

    def of_chunks(self, node: Node, layout: Chunked) -> list[int]:
        """Return the entries of a chunk map."""
        bits = layout.chunk_bits
        if not 0 <= bits <= MAX_CHUNK_BITS or len(layout.blocks) != chunk_count(node.size, bits):
            raise FormatError(
                f"{len(layout.blocks)} chunks of 2^{bits} blocks do not make {node.size} bytes",
                field="layout",
            )
        if bits == 0 and min(layout.blocks) >= HOLE and max(layout.blocks) < self._end:
            # A block cannot lie in two parts: the common case needs no test for each of them.
            return [self._index(block) for block in layout.blocks]
        left = -(-node.size // BLOCK_SIZE)
        for block in layout.blocks:
            count = min(1 << bits, left)
            if block != HOLE:
                self._check(block, count)
            left -= count
        return [self._index(block) for block in layout.blocks]


def _emit(metadata: bytearray, planned: PlannedInode, number: int, addresses: _Addresses) -> None:
    node = planned.node
    tail = planned.offset + INODE_SIZE
    if planned.xattrs:
        metadata[tail : tail + len(planned.xattrs)] = planned.xattrs
        tail += len(planned.xattrs)
    address = 0
    match node.kind:
        case NodeKind.FILE:
            address = _emit_file(metadata, planned, tail, addresses)
        case NodeKind.DIRECTORY if planned.listing:
            blocks = _directory_blocks(planned.listing)
            address = _emit_blocks(metadata, planned, tail, blocks)
        case NodeKind.SYMLINK:
            address = _emit_blocks(metadata, planned, tail, [node.target])
        case kind if kind in _DEVICES:
            address = encode_device(*node.device)
        case _:
            pass
    fields = InodeFields(
        planned.nid,
        number,
        planned.size,
        planned.links,
        planned.layout,
        address,
        len(planned.xattrs),
    )
    pack_inode(metadata, node, fields)


def _emit_file(metadata: bytearray, planned: PlannedInode, tail: int, addresses: _Addresses) -> int:
    """Write the chunk map, if there is one; return ``i_u``."""
    node = planned.node
    if not 0 <= node.size <= MAX_SIZE:
        raise FormatError(f"a file cannot have {node.size} bytes", field="size")
    match node.layout if node.size else None:
        case Flat(block) if node.size <= BLOCK_SIZE:
            return addresses.absolute(block, 1)
        case Flat() | Chunked() as layout:
            chunks = _as_chunks(layout, node.size)
            entries = addresses.of_chunks(node, chunks)
            struct.pack_into(f"<{len(entries)}Q", metadata, align_map(tail), *entries)
            return CHUNK_INDEXES | chunks.chunk_bits
        case None if node.size:
            raise FormatError(f"a file of {node.size} bytes has no layout", field="layout")
        case None:
            return 0


def _as_chunks(layout: Flat | Chunked, size: int) -> Chunked:
    if isinstance(layout, Chunked):
        return layout
    bits = run_chunk_bits(size)
    starts = range(layout.block, layout.block + -(-size // BLOCK_SIZE), 1 << bits)
    return Chunked(bits, tuple(starts))


def _directory_blocks(listing: Listing) -> list[bytes]:
    nids = [member.nid for member in listing.members]
    kinds = [member.node.kind for member in listing.members]
    return [encode_block(listing.names[run], nids[run], kinds[run]) for run in listing.runs]


def _emit_blocks(metadata: bytearray, planned: PlannedInode, tail: int, blocks: list[bytes]) -> int:
    """Write directory blocks or a symlink target, the last one behind the inode if it is inline;
    return ``i_u``."""
    if planned.layout is DataLayout.INLINE:
        metadata[tail : tail + len(blocks[-1])] = blocks[-1]
        blocks = blocks[:-1]
    for block, data in zip(planned.blocks, blocks, strict=True):
        metadata[block * BLOCK_SIZE : block * BLOCK_SIZE + len(data)] = data
    return planned.blocks.start if blocks else 0
