"""Where everything in the metadata part goes: a tree becomes inodes with offsets.

The order is: inodes (root first, each directory's children together), then whole directory blocks
and long symlink targets. Sizes do not depend on addresses, so the length of the metadata is known
before anything is written. Not recursive.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from pagein.errors import FormatError
from pagein.format.erofs.dirent import DOTS, ENTRY_SIZE, MAX_NAME, check_name, split_blocks
from pagein.format.erofs.inode import (
    INODE_SIZE,
    MAP_ENTRY,
    MAX_ROOT_NID,
    MAX_TARGET,
    NID_UNIT,
    DataLayout,
    align_map,
    chunk_count,
    run_chunk_bits,
)
from pagein.format.erofs.xattr import encode_xattrs
from pagein.format.tree import Chunked, Node, NodeKind
from pagein.types import BLOCK_SIZE

_NO_BLOCKS: Final = range(0)


@dataclass(slots=True, eq=False)
class Listing:
    """A directory to be: ``names`` in order ("." and ".." among them), the ``members`` they stand
    for, and the ``runs`` of them that fill a block each."""

    names: list[bytes]
    members: list[PlannedInode]
    runs: list[slice]


@dataclass(slots=True, eq=False)
class PlannedInode:
    """One inode to be: scratch of the writer, filled in phase by phase.

    ``offset`` is in bytes, ``blocks`` are whole blocks of the metadata, ``size`` is ``i_size``.
    """

    node: Node
    parent: PlannedInode | None = None
    links: int = 0
    xattrs: bytes = b""
    size: int = 0
    layout: DataLayout = DataLayout.PLAIN
    offset: int = 0
    blocks: range = _NO_BLOCKS
    listing: Listing | None = None

    @property
    def nid(self) -> int:
        """What a directory entry names it by."""
        return self.offset // NID_UNIT


@dataclass(frozen=True, slots=True)
class Plan:
    """All inodes, root first, and the length of the metadata in bytes."""

    inodes: list[PlannedInode] = field(repr=False)
    size: int
    has_chunks: bool


def plan_tree(root: Node, *, first_offset: int) -> Plan:
    """Place every inode of ``root``'s tree from byte ``first_offset`` on.

    FormatError for what EROFS cannot hold, and for a directory that is found under two names.
    """
    if root.kind is not NodeKind.DIRECTORY:
        raise FormatError("the root of a tree is not a directory", field="root")
    inodes = _collect(root)
    room = _Room(first_offset)
    wholes = [_place(inode, room) for inode in inodes]
    if inodes[0].nid > MAX_ROOT_NID:
        raise FormatError("the root directory does not lie in the first 2 MiB", field="root")
    block = room.blocks
    for inode, count in zip(inodes, wholes, strict=True):
        if count:
            inode.blocks = range(block, block + count)
            block += count
    has_chunks = any(inode.layout is DataLayout.CHUNKED for inode in inodes)
    return Plan(inodes, block * BLOCK_SIZE, has_chunks)


def _collect(root: Node) -> list[PlannedInode]:
    """All inodes breadth first, link counts and directories filled in."""
    top = PlannedInode(root, links=2)
    top.parent = top
    inodes = [top]
    known = {root: top}
    for inode in inodes:  # grows while it is read
        if inode.node.kind is NodeKind.DIRECTORY:
            _list_directory(inode, known, inodes)
        elif inode.node.children:
            raise FormatError(f"a {inode.node.kind.name} cannot have children", field="kind")
    return inodes


def _list_directory(
    directory: PlannedInode, known: dict[Node, PlannedInode], inodes: list[PlannedInode]
) -> None:
    children = directory.node.children
    dots = {b".": directory, b"..": directory.parent or directory}
    names = sorted([*children, *DOTS])
    members: list[PlannedInode] = []
    for name in names:
        if name in dots and name not in children:
            members.append(dots[name])
            continue
        # The function says what is wrong; calling it for each of 100,000 names costs 20 ms.
        if not 0 < len(name) <= MAX_NAME or b"/" in name or b"\0" in name or name in dots:
            check_name(name)
        child = children[name]
        member = known.get(child)
        if member is None:
            member = known[child] = PlannedInode(child, directory)
            inodes.append(member)
        elif child.kind is NodeKind.DIRECTORY:
            raise FormatError(f"directory {name!r} has two names in the tree", field="directory")
        if child.kind is NodeKind.DIRECTORY:
            member.links = 2
            directory.links += 1
        else:
            member.links += 1
        members.append(member)
    directory.listing = Listing(names, members, split_blocks(names))


class _Room:
    """Hands out inode room from the front; what a block cannot take whole leaves one gap, which
    smaller inodes fill."""

    def __init__(self, start: int) -> None:
        self._end = start
        self._gap = range(0)

    @property
    def blocks(self) -> int:
        """Blocks in use."""
        return -(-self._end // BLOCK_SIZE)

    def take(self, size: int, *, in_one_block: bool) -> int:
        """Return the offset of ``size`` bytes, aligned to a nid."""
        size += -size % NID_UNIT
        if size <= len(self._gap):
            offset = self._gap.start
            self._gap = self._gap[size:]
            return offset
        offset = self._end
        left = -offset % BLOCK_SIZE
        if in_one_block and size > left > 0:
            if left > len(self._gap):
                self._gap = range(offset, offset + left)
            offset += left
        self._end = offset + size
        return offset


def _place(inode: PlannedInode, room: _Room) -> int:
    """Fill in size, layout and offset; return the whole metadata blocks it needs besides."""
    node = inode.node
    inode.xattrs = encode_xattrs(node.xattrs) if node.xattrs else b""
    head = INODE_SIZE + len(inode.xattrs)
    wholes = tail = 0
    match node.kind:
        case NodeKind.FILE:
            inode.size = node.size
            entries = _map_entries(node)
            if entries:
                inode.layout = DataLayout.CHUNKED
                head = align_map(head) + entries * MAP_ENTRY
        case NodeKind.DIRECTORY if inode.listing:
            *runs, last = inode.listing.runs
            names = inode.listing.names[last]
            wholes, tail = len(runs), sum(map(len, names)) + ENTRY_SIZE * len(names)
            inode.size = wholes * BLOCK_SIZE + tail
        case NodeKind.SYMLINK:
            if not 0 < len(node.target) <= MAX_TARGET or b"\0" in node.target:
                raise FormatError(
                    f"a symlink target of {len(node.target)} bytes ({node.target[:64]!r}): "
                    f"linux allows 1 to {MAX_TARGET}, without NUL",
                    field="target",
                )
            inode.size = tail = len(node.target)
        case _:
            pass
    # Inline data must not cross a block, and older kernels refuse an inline symlink whose xattrs
    # reach into the next one: so inode, xattrs and tail stay together, or the tail gets a block.
    is_inline = tail > 0 and head + tail <= BLOCK_SIZE
    if is_inline:
        inode.layout = DataLayout.INLINE
    inode.offset = room.take(head + tail if is_inline else head, in_one_block=is_inline)
    return wholes + (1 if tail and not is_inline else 0)


def _map_entries(node: Node) -> int:
    """Chunk indexes that a regular file needs; 0 for a plain one, of one block at most."""
    if node.size and isinstance(node.layout, Chunked):
        return len(node.layout.blocks)
    return chunk_count(node.size, run_chunk_bits(node.size)) if node.size > BLOCK_SIZE else 0
