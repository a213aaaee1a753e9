"""Placed trees for tests of the EROFS code: one with every odd case, and random ones.

A `Sample` carries its own model of each file's content, so that a mounted image can be compared
with what was meant, not with what was written.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import shake_128

from hypothesis import strategies as st

from pagein.format.tree import HOLE, Chunked, Flat, Node, NodeKind, walk
from pagein.types import BLOCK_SIZE

SECTOR_SIZE = 256 << 10
_SECTOR_BLOCKS = SECTOR_SIZE // BLOCK_SIZE


@dataclass(slots=True)
class Sample:
    """A placed tree, the bytes of both parts, and what each file holds: ``contents[node]`` is a
    list of (offset, bytes); the rest of the file is zeros."""

    root: Node
    hot: bytearray = field(default_factory=bytearray)
    data: bytearray = field(default_factory=bytearray)
    contents: dict[Node, list[tuple[int, bytes]]] = field(default_factory=dict)

    @property
    def hot_blocks(self) -> int:
        """Blocks of the hot region."""
        return len(self.hot) // BLOCK_SIZE

    @property
    def data_blocks(self) -> int:
        """Blocks of layer data."""
        return len(self.data) // BLOCK_SIZE


def noise(name: object, size: int) -> bytes:
    """Bytes that depend on ``name`` only and do not repeat."""
    return shake_128(repr(name).encode()).digest(size)


def describe(root: Node) -> dict[bytes, tuple[object, ...]]:
    """A tree as plain values: equal for equal trees. Hard links show as the path of their first
    name, and a file of one chunk as the run that it is."""
    first: dict[Node, bytes] = {}
    return {
        path: (
            first.setdefault(node, path),
            *(node.kind, node.mode, node.uid, node.gid, node.mtime_ns, node.xattrs),
            *(node.size, _run_or_chunks(node.layout), node.target, node.device),
        )
        for path, node in walk(root)
    }


def _run_or_chunks(layout: Flat | Chunked | None) -> Flat | Chunked | None:
    match layout:
        case Chunked(bits, (block,)) if bits and block != HOLE:
            return Flat(block)
        case _:
            return layout


def directory(mode: int = 0o755) -> Node:
    """Return an empty directory."""
    return Node(NodeKind.DIRECTORY, mode)


def odd_sample(*, hot: bool) -> Sample:
    """Return a tree with every case that once broke a writer; with ``hot`` some files have blocks
    in the hot region."""
    builder = _Builder(hot=hot)
    root = builder.sample.root
    _odd_names(builder, root)
    _odd_files(builder, root)
    _odd_links(builder, root)
    _odd_specials(root)
    _odd_owners_and_times(builder, root)
    _odd_xattrs(builder, root)
    return builder.finish()


@dataclass(slots=True)
class _Builder:
    hot: bool
    sample: Sample = field(default_factory=lambda: Sample(directory()))

    def file(self, content: bytes, *, granular: bool = False) -> Node:
        """A file in one run of layer data, or with every third block in the hot region."""
        data = self.sample.data
        first = len(data) // BLOCK_SIZE
        data += content + bytes(-len(content) % BLOCK_SIZE)
        node = Node(NodeKind.FILE, 0o644, size=len(content), layout=Flat(first))
        self.sample.contents[node] = [(0, content)]
        if not content:
            node.layout = None
        elif granular:
            blocks = list(range(first, len(data) // BLOCK_SIZE))
            for index in range(0, len(blocks), 3) if self.hot else ():
                copy = data[blocks[index] * BLOCK_SIZE :][:BLOCK_SIZE]
                # Layer data follows the hot region, whose length is known only at the end: so
                # hot blocks are marked by a negative number below HOLE until then.
                blocks[index] = HOLE - 1 - len(self.sample.hot) // BLOCK_SIZE
                self.sample.hot += copy
            node.layout = Chunked(0, tuple(blocks))
        return node

    def finish(self) -> Sample:
        """Pad both parts to sectors and shift layer data behind the hot region."""
        sample = self.sample
        sample.hot += bytes(-len(sample.hot) % SECTOR_SIZE)
        sample.data += bytes(-len(sample.data) % SECTOR_SIZE)
        shift = sample.hot_blocks

        def final(block: int) -> int:
            if block == HOLE:
                return HOLE
            return HOLE - 1 - block if block < HOLE else block + shift

        for node in sample.contents:
            match node.layout:
                case Flat(block):
                    node.layout = Flat(block + shift)
                case Chunked(bits, blocks):
                    node.layout = Chunked(bits, tuple(map(final, blocks)))
                case None:
                    pass
        return sample


def _odd_names(builder: _Builder, root: Node) -> None:
    # These sort before ".": a writer that puts the dots first breaks the kernel's search.
    for name in (b"!a", b"#x", b"+p", b"-m", b",c", b"\x01", b" ", b"...", b"..a", b".a"):
        root.children[name] = builder.file(noise(name, 10))
    names = root.children[b"names"] = directory()
    for name in (b"n" * 255, b"\xff\xfe raw", "grüße-世界".encode(), b"new\nline", b"\\", b"\x80"):
        names.children[name] = builder.file(noise(name, 33))
    many = root.children[b"many"] = directory()
    shared = builder.file(b"many names")
    for index in range(5000):
        many.children[b"entry-%d" % index] = shared if index % 50 else builder.file(b"%d" % index)
    subdirectories = root.children[b"subdirectories"] = directory()
    for index in range(300):
        subdirectories.children[b"%d" % index] = directory(0o700)
    deep = root.children[b"deep"] = directory()
    for index in range(100):
        deep.children[b"level-%d" % index] = deep = directory()
    # Directory sizes around the end of a block, where the last block stops being inline.
    sizes = root.children[b"sizes"] = directory()
    for extra in range(0, 200, 7):
        member = sizes.children[b"%d" % extra] = directory()
        for index in range(15):
            member.children[b"%03d" % index + b"x" * 240] = shared
        member.children[b"z" * (40 + extra)] = shared


def _odd_files(builder: _Builder, root: Node) -> None:
    root.children[b"empty"] = builder.file(b"")
    root.children[b"empty-directory"] = directory()
    for size in (1, 4095, 4096, 4097, 100_000):
        root.children[b"flat-%d" % size] = builder.file(noise(size, size))
        granular = builder.file(noise(-size, size), granular=True)
        root.children[b"granular-%d" % size] = granular
    for bits in (2, 4):
        root.children[b"chunks-%d" % bits] = _scattered(builder, bits)
    root.children[b"sparse"] = _sparse(builder)
    hole = root.children[b"only-a-hole"] = Node(NodeKind.FILE, size=10_000)
    hole.layout = Chunked(0, (HOLE, HOLE, HOLE))
    builder.sample.contents[hole] = []
    # Two files, one place: content is stored once.
    twin = builder.file(noise("twin", 9000))
    root.children[b"twin-1"] = twin
    other = root.children[b"twin-2"] = Node(NodeKind.FILE, 0o600, size=9000, layout=twin.layout)
    builder.sample.contents[other] = builder.sample.contents[twin]


def _scattered(builder: _Builder, bits: int) -> Node:
    """A file whose chunks lie in reverse order, the last one short."""
    chunk = BLOCK_SIZE << bits
    content = noise(bits, 3 * chunk + 5000)
    node = builder.file(content)
    data = builder.sample.data
    first = len(data) // BLOCK_SIZE
    for index in (3, 2, 1, 0):
        piece = content[index * chunk : (index + 1) * chunk]
        data += piece + bytes(chunk - len(piece))
    places = range(first + (3 << bits), first - 1, -(1 << bits))
    node.layout = Chunked(bits, tuple(places))
    return node


def _sparse(builder: _Builder) -> Node:
    """5 GiB with three pieces of data, 4 MiB chunks."""
    bits = 10
    size = 5 << 30
    blocks = [HOLE] * (size // (BLOCK_SIZE << bits))
    node = Node(NodeKind.FILE, 0o644, size=size)
    pieces = []
    for index in (0, 700, len(blocks) - 1):
        piece = noise(index, 6000)
        blocks[index] = len(builder.sample.data) // BLOCK_SIZE
        builder.sample.data += piece + bytes((BLOCK_SIZE << bits) - len(piece))
        pieces.append((index * (BLOCK_SIZE << bits), piece))
    node.layout = Chunked(bits, tuple(blocks))
    builder.sample.contents[node] = pieces
    return node


def _odd_links(builder: _Builder, root: Node) -> None:
    links = root.children[b"links"] = directory()
    for size in (1, 4000, 4032, 4033, 4095):
        target = b"t" * size
        links.children[b"%d" % size] = Node(NodeKind.SYMLINK, 0o777, target=target)

    links.children[b"with-xattrs"] = Node(
        NodeKind.SYMLINK, 0o777, target=b"x" * 2000, xattrs={b"trusted.a": noise("link", 3000)}
    )
    linked = links.children[b"hard-1"] = builder.file(b"hard link")
    links.children[b"hard-2"] = root.children[b"hard-3"] = linked
    symlink = links.children[b"soft-1"] = Node(NodeKind.SYMLINK, 0o777, target=b"hard-1")
    links.children[b"soft-2"] = symlink


def _odd_specials(root: Node) -> None:
    specials = root.children[b"specials"] = directory()
    for major, minor in ((1, 3), (5, 256), (4095, 1048575), (8, 0xABCDE)):
        for kind in (NodeKind.CHAR_DEVICE, NodeKind.BLOCK_DEVICE):
            name = b"%s-%d-%d" % (kind.name.encode(), major, minor)
            specials.children[name] = Node(kind, 0o600, device=(major, minor))
    specials.children[b"fifo"] = Node(NodeKind.FIFO, 0o640)
    specials.children[b"socket"] = Node(NodeKind.SOCKET, 0o755)


def _odd_owners_and_times(builder: _Builder, root: Node) -> None:
    for index, (mode, uid, gid) in enumerate(
        ((0o4755, 65536, 4294967294), (0o2755, 4294967294, 70000), (0o1777, 1, 2), (0, 0, 0))
    ):
        node = root.children[b"owner-%d" % index] = builder.file(b"%d" % index)
        node.mode, node.uid, node.gid = mode, uid, gid
    root.children[b"sticky"] = directory(0o1777)
    for time in (-1, -(10**18), 1, 2**32 * 10**9 + 7, 1_700_000_000_123_456_789, 2**35 * 10**9):
        node = root.children[b"time%d" % time] = builder.file(b"time")
        node.mtime_ns = time


def _odd_xattrs(builder: _Builder, root: Node) -> None:
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, permissions, identity)
        for tag, permissions, identity in (
            (0x01, 7, 0xFFFFFFFF),
            (0x02, 5, 1000),
            (0x04, 5, 0xFFFFFFFF),
            (0x10, 5, 0xFFFFFFFF),
            (0x20, 1, 0xFFFFFFFF),
        )
    )
    # VFS_CAP_REVISION_2 with CAP_NET_RAW, as `setcap cap_net_raw+ep` stores it.
    capability = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    attributed = root.children[b"attributed"] = builder.file(b"attributed", granular=True)
    attributed.xattrs = {
        b"user.big": noise("big", 20_000),
        b"user.empty": b"",
        b"user.\xff\xfe": b"\x00\x01",
        b"user." + b"n" * 250: b"long name",
        b"trusted.overlay.x": b"y",
        b"security.capability": capability,
        b"system.posix_acl_access": acl,
    }
    attributed.mode = 0o751
    directory_with = root.children[b"attributed-directory"] = directory(0o751)
    directory_with.xattrs = {
        b"system.posix_acl_default": acl,
        b"system.posix_acl_access": acl,
        b"user.big": noise("directory", 5000),
    }
    directory_with.children[b"inside"] = builder.file(b"inside")
    most = root.children[b"most"] = builder.file(b"most")
    most.xattrs = {b"user.%d" % index: noise(index, 65_535) for index in range(3)}


_NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: not {0, 0x2F} & set(name) and name not in (b".", b"..")
)
_SHORT_NAMES = st.sampled_from([bytes([code]) for code in range(0x21, 0x7F) if code not in b"./"])
_XATTRS = st.dictionaries(
    st.builds(
        bytes.__add__,
        st.sampled_from([b"user.", b"trusted.", b"security."]),
        st.binary(min_size=1, max_size=20).map(lambda name: name.replace(b"\0", b"0")),
    ),
    st.binary(max_size=300),
    max_size=3,
)
BODY_BLOCKS = 4 * _SECTOR_BLOCKS
"""Blocks of the body of a random tree, of which the first sector is hot."""


@st.composite
def _files(draw: st.DrawFn) -> Node:
    size = draw(st.integers(0, 60_000))
    node = Node(NodeKind.FILE, size=size)
    count = -(-size // BLOCK_SIZE)
    if size and draw(st.booleans()):
        node.layout = Flat(draw(st.integers(_SECTOR_BLOCKS, BODY_BLOCKS - count)))
    elif size:
        bits = draw(st.integers(0, 3))
        place = st.integers(0, (BODY_BLOCKS >> bits) - 1).map(lambda block: block << bits)
        chunks = -(-count >> bits) if not count & ((1 << bits) - 1) else (count >> bits) + 1
        blocks = st.lists(st.just(HOLE) | place, min_size=chunks, max_size=chunks)
        node.layout = Chunked(bits, tuple(draw(blocks)))
    return node


def _leaf(kind: NodeKind) -> Callable[[bytes, tuple[int, int]], Node]:
    def build(target: bytes, device: tuple[int, int]) -> Node:
        if kind is NodeKind.SYMLINK:
            return Node(kind, target=target)
        is_device = kind in (NodeKind.CHAR_DEVICE, NodeKind.BLOCK_DEVICE)
        return Node(kind, device=device if is_device else (0, 0))

    return build


@st.composite
def trees(draw: st.DrawFn) -> Node:
    """Random placed trees with hard links, for a body of `BODY_BLOCKS` of which one sector is
    hot."""
    root = directory()
    directories, others = [root], list[Node]()
    for _ in range(draw(st.integers(0, 25))):
        parent = draw(st.sampled_from(directories))
        name = draw(_NAMES | _SHORT_NAMES)
        if name in parent.children:
            continue
        if others and draw(st.integers(0, 4)) == 0:
            parent.children[name] = draw(st.sampled_from(others))
            continue
        node = draw(_nodes())
        parent.children[name] = node
        (directories if node.is_directory else others).append(node)
    return root


@st.composite
def _nodes(draw: st.DrawFn) -> Node:
    kind = draw(st.sampled_from(NodeKind))
    if kind is NodeKind.FILE:
        node = draw(_files())
    elif kind is NodeKind.DIRECTORY:
        node = directory()
    else:
        target = draw(st.binary(min_size=1, max_size=4095)).replace(b"\0", b"0")
        device = draw(st.tuples(st.integers(0, 4095), st.integers(0, (1 << 20) - 1)))
        node = _leaf(kind)(target, device)
    node.mode = draw(st.integers(0, 0o7777))
    node.uid = draw(st.integers(0, 2**32 - 2))
    node.gid = draw(st.integers(0, 2**32 - 2))
    node.mtime_ns = draw(st.integers(-(2**62), 2**62))
    node.xattrs = draw(_XATTRS)
    return node
