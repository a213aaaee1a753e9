"""Reads the metadata part of a device. It trusts nothing: whatever the bytes, the outcome is a
value, NotFoundError or FormatError, in bounded memory and without recursion."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from pagein.errors import FormatError, NotFoundError
from pagein.format.erofs.dirent import DOTS, Entry, first_name, parse_block
from pagein.format.erofs.inode import (
    INODE_SIZE,
    MAP_ENTRY,
    DataLayout,
    Inode,
    data_block,
    parse_inode,
    run_chunk_bits,
)
from pagein.format.erofs.superblock import (
    NO_INDEX,
    Geometry,
    first_inode_offset,
    parse_superblock,
)
from pagein.format.erofs.xattr import parse_xattrs
from pagein.format.tree import HOLE, Chunked, Flat, Node, NodeKind
from pagein.types import BLOCK_SIZE

__all__ = ["ErofsReader", "Extent", "Geometry", "Inode", "read_tree"]

MAX_LINKS: Final = 40
"""Symlinks followed in one lookup, as in Linux (``MAXSYMLINKS``)."""

MAX_PATH: Final = 1 << 16
"""Longest path that `ErofsReader.walk` yields, in bytes: the paths of a hostile chain of
directories would otherwise take time quadratic in its length."""


@dataclass(frozen=True, slots=True)
class Extent:
    """``length`` bytes of a file from ``offset``, at byte ``body`` of the body, or a hole."""

    offset: int
    length: int
    body: int | None


class ErofsReader:
    """An image's tree, read from its metadata. Immutable, so safe to use from any thread.

    Opening reads block 0 only; everything else is parsed when asked for.
    """

    def __init__(self, metadata: bytes | memoryview) -> None:
        self._metadata = memoryview(metadata).cast("B")
        self._superblock = parse_superblock(self._metadata)
        parts = self._superblock.parts
        self.geometry = Geometry(len(self._metadata), parts)
        self._first_inode = first_inode_offset(len(parts))
        self.root = self.inode(self._superblock.root_nid)
        if self.root.kind is not NodeKind.DIRECTORY:
            raise FormatError("the root inode is not a directory", field="root")

    @property
    def inodes(self) -> int:
        """How many inodes the superblock says there are."""
        return self._superblock.inodes

    def inode(self, nid: int) -> Inode:
        """Return the inode with number ``nid``. FormatError if there is none."""
        return parse_inode(self._metadata, nid, first_offset=self._first_inode)

    def lookup(self, path: bytes, *, follow: bool) -> Inode:
        """Return what ``path`` names, from the root and never outside it.

        Symlinks on the way are resolved inside the image, the last one too if ``follow`` (or if
        the path ends with a slash). NotFoundError where a part is missing, is not a directory, or
        more than 40 symlinks are met.
        """
        trail = [self.root]
        todo = path.split(b"/")[::-1]
        if path.endswith(b"/"):
            todo[0] = b"."
        links = 0
        while todo:
            name = todo.pop()
            if name == b"":
                continue
            here = trail[-1]
            if here.kind is not NodeKind.DIRECTORY:
                raise NotFoundError(f"no {_shown(path)} in the image: a parent is not a directory")
            if name in DOTS:
                if name == b".." and len(trail) > 1:
                    trail.pop()
                continue
            found = self._child(here, name)
            if found is None:
                raise NotFoundError(
                    f"no {_shown(path)} in the image: {_shown(name)} does not exist"
                )
            if found.kind is NodeKind.SYMLINK and (follow or any(todo)):
                links += 1
                if links > MAX_LINKS:
                    raise NotFoundError(f"no {_shown(path)} in the image: too many symlinks")
                target = self.readlink(found)
                if target.startswith(b"/"):
                    del trail[1:]
                todo.extend(target.split(b"/")[::-1])
            else:
                trail.append(found)
        return trail[-1]

    def iterdir(self, inode: Inode) -> Iterator[tuple[bytes, Inode]]:
        """Yield the names of a directory, in bytewise order, with their inodes."""
        for entry in self.entries(inode):
            if entry.name not in DOTS:
                yield entry.name, self._member(entry)

    def entries(self, inode: Inode) -> Iterator[Entry]:
        """Yield the raw entries of a directory, "." and ".." among them, in checked order."""
        last = b""
        for index in range(_blocks_of(inode)):
            block = parse_block(*data_block(self._metadata, inode, index))
            if block[0].name <= last:
                raise FormatError(
                    f"names of directory {inode.nid} are out of order",
                    field="directory",
                    offset=inode.offset,
                )
            last = block[-1].name
            yield from block

    def readlink(self, inode: Inode) -> bytes:
        """Return the target of a symlink."""
        if inode.kind is not NodeKind.SYMLINK:
            raise FormatError(f"inode {inode.nid} is not a symlink", field="kind")
        target = bytes(data_block(self._metadata, inode, 0)[0])
        if b"\0" in target:
            raise FormatError(f"the target of symlink {inode.nid} has a NUL", field="target")
        return target

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Return the extended attributes, names in full."""
        start = inode.offset + INODE_SIZE
        return parse_xattrs(self._metadata[start : start + inode.xattr_size], start)

    def extents(self, inode: Inode, offset: int, length: int) -> list[Extent]:
        """Say where bytes ``[offset, offset + length)`` of a regular file lie, as far as it goes.

        In order and without gaps; neighbours that lie next to each other in the body are merged.
        """
        stop = min(offset + length, inode.size)
        offset = max(offset, 0)
        if inode.kind is not NodeKind.FILE:
            raise FormatError(f"inode {inode.nid} is not a regular file", field="kind")
        if offset >= stop:
            return []
        if inode.data_layout is not DataLayout.CHUNKED:
            start = self._body_block(inode, inode.address, _blocks_of(inode)) * BLOCK_SIZE
            return [Extent(offset, stop - offset, start + offset)]
        merged: list[Extent] = []
        chunk_size = BLOCK_SIZE << inode.chunk_bits
        first, end = offset // chunk_size, -(-stop // chunk_size)
        for index, block in enumerate(self._chunks(inode, first, end), first):
            start = max(offset, index * chunk_size)
            size = min(stop, (index + 1) * chunk_size) - start
            body = None if block == HOLE else block * BLOCK_SIZE + start % chunk_size
            last = merged[-1] if merged else None
            if last and body == (None if last.body is None else last.body + last.length):
                merged[-1] = replace(last, length=last.length + size)
            else:
                merged.append(Extent(start, size, body))
        return merged

    def layout(self, inode: Inode) -> Flat | Chunked | None:
        """Return where a regular file lies, in body blocks; None if it is empty."""
        if inode.kind is not NodeKind.FILE or not inode.size:
            return None
        if inode.data_layout is DataLayout.CHUNKED:
            blocks = tuple(self._chunks(inode, 0, inode.chunks))
            is_run = len(blocks) == 1 and inode.chunk_bits == run_chunk_bits(inode.size) > 0
            if is_run and blocks[0] != HOLE:
                return Flat(blocks[0])
            return Chunked(inode.chunk_bits, blocks)
        return Flat(self._body_block(inode, inode.address, _blocks_of(inode)))

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Yield every ``(path, inode)`` as `pagein.format.tree.walk` does, the root as ``b""``.

        FormatError for a directory with two names, or inodes that overlap.
        """
        budget = _Budget(len(self._metadata))
        stack: list[tuple[bytes, bytes, Inode]] = [(b"", b"", self.root)]
        while stack:
            parent, name, inode = stack.pop()
            path = parent + name
            budget.claim(inode)
            yield path, inode
            if inode.kind is NodeKind.DIRECTORY:
                prefix = path + b"/" if path else b""
                if len(prefix) > MAX_PATH:
                    raise FormatError(f"a path of more than {MAX_PATH} bytes", field="path")
                members = list(self.iterdir(inode))
                stack.extend((prefix, name, member) for name, member in reversed(members))

    def _child(self, directory: Inode, name: bytes) -> Inode | None:
        """Find ``name`` by binary search over the blocks, as the kernel does."""
        low, high = 0, _blocks_of(directory)
        while high - low > 1:
            middle = (low + high) // 2
            if first_name(*data_block(self._metadata, directory, middle)) <= name:
                low = middle
            else:
                high = middle
        for entry in parse_block(*data_block(self._metadata, directory, low)):
            if entry.name == name:
                return self._member(entry)
        return None

    def _member(self, entry: Entry) -> Inode:
        inode = self.inode(entry.nid)
        if inode.kind != entry.kind:
            raise FormatError(
                f"entry {entry.name[:64]!r} has type {entry.kind}, its inode {inode.kind.name}",
                field="directory",
                offset=inode.offset,
            )
        return inode

    def _chunks(self, inode: Inode, first: int, end: int) -> Iterator[int]:
        """Yield entries ``[first, end)`` of a chunk map as body blocks or HOLE."""
        per_chunk = 1 << inode.chunk_bits
        total = _blocks_of(inode)
        start = inode.map_offset + first * MAP_ENTRY
        stop = inode.map_offset + end * MAP_ENTRY
        entries = struct.iter_unpack("<Q", self._metadata[start:stop])
        for index, (entry,) in enumerate(entries, first):
            if entry == NO_INDEX:
                yield HOLE
            else:
                count = min(per_chunk, total - index * per_chunk)
                yield self._indexed_block(inode, entry, count)

    def _indexed_block(self, inode: Inode, entry: int, count: int) -> int:
        """Turn a chunk index into a body block."""
        device, block = (entry & 0xFFFFFFFF) >> 16, entry >> 32
        parts = self.geometry.parts
        if (
            entry & 0xFFFF
            or not 0 < device <= len(parts)
            or block + count > parts[device - 1].blocks
        ):
            raise FormatError(
                f"inode {inode.nid}: {count} blocks from {block} of device {device} are not there",
                field="chunk index",
                offset=inode.offset,
            )
        return parts[device - 1].start - self.geometry.body_start + block

    def _body_block(self, inode: Inode, block: int, count: int) -> int:
        """Turn an absolute block into a body block; all ``count`` must lie inside one part."""
        for part in self.geometry.parts:
            if part.start <= block and block + count <= part.stop:
                return block - self.geometry.body_start
        raise FormatError(
            f"inode {inode.nid}: {count} blocks from {block} do not lie inside one part",
            field="address",
            offset=inode.offset,
        )


class _Budget:
    """What distinct inodes claim cannot be more than there is. This bounds the work on an image
    whose inodes or directories overlap, and finds directories that have two parents."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._seen: set[int] = set()

    def claim(self, inode: Inode) -> bool:
        """Account for ``inode``; returns whether it is new. FormatError for a directory's second
        name, or when more is claimed than the metadata holds."""
        if inode.nid in self._seen:
            if inode.kind is NodeKind.DIRECTORY:
                raise FormatError(
                    f"directory {inode.nid} has two names", field="directory", offset=inode.offset
                )
            return False
        self._seen.add(inode.nid)
        self._left -= inode.footprint
        if self._left < 0:
            raise FormatError("the inodes overlap", field="inode", offset=inode.offset)
        return True


def _shown(name: bytes) -> str:
    """Write a name for a message: as it was typed, and on one line whatever it holds."""
    return repr(name.decode("utf-8", "backslashreplace"))


def read_tree(metadata: bytes | memoryview) -> Node:
    """Read a whole tree back: layouts in body blocks, a hard link as one `Node` under its names.

    FormatError for anything that `write_metadata` would not have written.
    """
    reader = ErofsReader(metadata)
    budget = _Budget(reader.geometry.metadata_bytes)
    budget.claim(reader.root)
    root = _node(reader, reader.root)
    nodes = {reader.root.nid: root}
    stack = [(reader.root, root)]
    while stack:
        inode, node = stack.pop()
        for name, member in reader.iterdir(inode):
            if budget.claim(member):
                nodes[member.nid] = _node(reader, member)
                if member.kind is NodeKind.DIRECTORY:
                    stack.append((member, nodes[member.nid]))
            node.children[name] = nodes[member.nid]
    return root


def _node(reader: ErofsReader, inode: Inode) -> Node:
    is_file = inode.kind is NodeKind.FILE
    return Node(
        inode.kind,
        inode.mode,
        inode.uid,
        inode.gid,
        inode.mtime_ns,
        reader.xattrs(inode) if inode.xattr_size else {},
        size=inode.size if is_file else 0,
        layout=reader.layout(inode) if is_file else None,
        target=reader.readlink(inode) if inode.kind is NodeKind.SYMLINK else b"",
        device=inode.device,
    )


def _blocks_of(inode: Inode) -> int:
    return -(-inode.size // BLOCK_SIZE)
