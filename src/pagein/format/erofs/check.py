"""Checks the metadata part of a device from end to end: a conversion runs it on what it wrote, and
`pagein check` on what a registry holds.

It reads with `ErofsReader`, which verifies bounds, kinds, names and the order of names, and adds
what only the whole tree can show: links, parents, overlaps, and that nothing lies outside its part.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pagein.errors import FormatError
from pagein.format.erofs.inode import MAP_ENTRY, DataLayout, Inode
from pagein.format.erofs.read import ErofsReader
from pagein.format.erofs.superblock import cut_parts, parse_superblock
from pagein.format.tree import HOLE, Chunked, NodeKind
from pagein.types import BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a sound image holds. ``names`` counts directory entries without "." and ".."; ``chunks``
    entries of chunk maps, ``holes`` those without an address; ``file_bytes`` sizes, links once."""

    inodes: int
    files: int
    directories: int
    symlinks: int
    specials: int
    names: int
    xattrs: int
    chunks: int
    holes: int
    file_bytes: int


def check_metadata(
    metadata: bytes | memoryview, *, sector_size: int, hot_blocks: int, data_blocks: int
) -> CheckReport:
    """Verify everything a mount relies on; FormatError for the first thing that is wrong.

    The part sizes are those that the index claims, in blocks, as in `write_metadata`.
    """
    superblock = parse_superblock(memoryview(metadata).cast("B"))
    parts = cut_parts(
        metadata_bytes=len(metadata), sector_size=sector_size, body=(hot_blocks, data_blocks)
    )
    if superblock.parts != parts:
        raise FormatError(
            f"the device slots are {superblock.parts}, the sizes ask for {parts}",
            field="device slot",
        )
    survey = _Survey(ErofsReader(metadata))
    survey.run()
    if superblock.inodes != len(survey.inodes):
        raise FormatError(
            f"{len(survey.inodes)} inodes where the superblock counts {superblock.inodes}",
            field="inos",
        )
    if superblock.has_chunks != (survey.chunks > 0):
        raise FormatError("the chunk feature does not fit the files", field="feature_incompat")
    return survey.report()


@dataclass(slots=True)
class _Survey:
    """One walk over an image: which inodes there are, and what was counted."""

    reader: ErofsReader
    inodes: dict[int, Inode] = field(default_factory=dict)
    links: Counter[int] = field(default_factory=Counter)
    parents: dict[int, int] = field(default_factory=dict)
    kinds: Counter[NodeKind] = field(default_factory=Counter)
    claimed: int = 0
    names: int = 0
    xattrs: int = 0
    chunks: int = 0
    holes: int = 0
    file_bytes: int = 0

    def run(self) -> None:
        root = self.reader.root
        self.parents[root.nid] = root.nid
        self._meet(root)
        stack = [root]
        while stack:
            stack.extend(self._directory(stack.pop()))
        self._check_links()
        self._check_overlaps()

    def _directory(self, directory: Inode) -> list[Inode]:
        """Check the names of a directory; return the directories met for the first time."""
        dots = {b".": directory.nid, b"..": self.parents[directory.nid]}
        below: list[Inode] = []
        for name, nid, kind in self.reader.entries(directory):
            if name in (b".", b".."):
                if dots.pop(name) != nid or kind != NodeKind.DIRECTORY:
                    raise _broken(f"{name!r} does not lead to the right directory", directory)
                continue
            self.names += 1
            inode = self.inodes.get(nid)
            is_new = inode is None
            if inode is None:
                inode = self._meet(self.reader.inode(nid))
            if inode.kind != kind:
                raise _broken(f"entry {name[:64]!r} has the wrong type", directory)
            if inode.kind is NodeKind.DIRECTORY:
                if not is_new:
                    raise _broken(f"subdirectory {name[:64]!r} has another name", directory)
                self.parents[nid] = directory.nid
                self.links[directory.nid] += 1
                below.append(inode)
            else:
                self.links[nid] += 1
        if dots:
            raise _broken(f"{min(dots)!r} is missing", directory)
        return below

    def _meet(self, inode: Inode) -> Inode:
        self.claimed += inode.footprint
        if self.claimed > self.reader.geometry.metadata_bytes:
            raise _broken("inodes overlap", inode)
        self.inodes[inode.nid] = inode
        self.kinds[inode.kind] += 1
        if inode.xattr_size:
            self.xattrs += len(self.reader.xattrs(inode))
        match inode.kind:
            case NodeKind.FILE:
                self.file_bytes += inode.size
                layout = self.reader.layout(inode)
                self.chunks += inode.chunks
                if isinstance(layout, Chunked):
                    self.holes += layout.blocks.count(HOLE)
            case NodeKind.DIRECTORY:
                self.links[inode.nid] = 2
            case NodeKind.SYMLINK:
                self.reader.readlink(inode)
            case _:
                pass
        return inode

    def _check_links(self) -> None:
        for nid, inode in self.inodes.items():
            if inode.nlink != self.links[nid]:
                raise _broken(f"{inode.nlink} links, {self.links[nid]} found", inode)

    def _check_overlaps(self) -> None:
        end = 0
        for start, stop, nid in sorted(span for i in self.inodes.values() for span in _spans(i)):
            if start < end:
                raise _broken("it overlaps what lies before it", self.inodes[nid])
            end = stop

    def report(self) -> CheckReport:
        kinds = self.kinds
        files = kinds[NodeKind.FILE]
        directories, symlinks = kinds[NodeKind.DIRECTORY], kinds[NodeKind.SYMLINK]
        return CheckReport(
            inodes=len(self.inodes),
            files=files,
            directories=directories,
            symlinks=symlinks,
            specials=len(self.inodes) - files - directories - symlinks,
            names=self.names,
            xattrs=self.xattrs,
            chunks=self.chunks,
            holes=self.holes,
            file_bytes=self.file_bytes,
        )


def _spans(inode: Inode) -> list[tuple[int, int, int]]:
    """Byte ranges of the metadata that belong to an inode."""
    tail = inode.tail_offset
    if inode.chunks:
        tail = inode.map_offset + inode.chunks * MAP_ENTRY
    if inode.kind not in (NodeKind.DIRECTORY, NodeKind.SYMLINK):
        return [(inode.offset, tail, inode.nid)]
    blocks = inode.size // BLOCK_SIZE
    if inode.data_layout is DataLayout.INLINE:
        tail += inode.size % BLOCK_SIZE
    else:
        blocks = -(-inode.size // BLOCK_SIZE)
    spans = [(inode.offset, tail, inode.nid)]
    if blocks:
        start = inode.address * BLOCK_SIZE
        spans.append((start, start + blocks * BLOCK_SIZE, inode.nid))
    return spans


def _broken(why: str, inode: Inode) -> FormatError:
    return FormatError(f"erofs inode {inode.nid}: {why}", field="inode", offset=inode.offset)
