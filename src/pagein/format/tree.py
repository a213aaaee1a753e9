"""A file tree as values: what layers merge into, what EROFS is written from and read back to.

Names, symlink targets and xattr names are ``bytes``: Linux gives them no encoding.
A hard link is one `Node` under two names; link counts follow from the tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

HOLE: Final = -1
"""A chunk without an address: zeros, and no I/O."""


class NodeKind(IntEnum):
    """File types, with the numbers of an EROFS directory entry (linux/fs_types.h FT_*)."""

    FILE = 1
    DIRECTORY = 2
    CHAR_DEVICE = 3
    BLOCK_DEVICE = 4
    FIFO = 5
    SOCKET = 6
    SYMLINK = 7


@dataclass(frozen=True, slots=True)
class Flat:
    """A file's bytes lie in one run from body block ``block``.

    The body is the device after its metadata part: hot region, then layer data. Body block 0 is
    its first 4096 bytes, so addresses do not depend on the length of the metadata.
    """

    block: int


@dataclass(frozen=True, slots=True)
class Chunked:
    """Chunk i of ``1 << chunk_bits`` blocks starts at body block ``blocks[i]``, or is a HOLE."""

    chunk_bits: int
    blocks: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Node:
    """One inode. ``mode`` holds the 12 permission bits only; ``mtime_ns`` may be negative.

    ``size`` is the length in bytes of a regular file. ``layout`` says where its bytes lie (None:
    empty,
    or not placed yet). ``content`` names its bytes while an image is built: equal content, equal
    value.
    """

    kind: NodeKind
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    size: int = 0
    layout: Flat | Chunked | None = None
    content: bytes | None = None
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    children: dict[bytes, Node] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        """Whether this node has children."""
        return self.kind is NodeKind.DIRECTORY


def walk(root: Node) -> Iterator[tuple[bytes, Node]]:
    """Yield every ``(path, node)`` in path order, the root first as ``b""``.

    Paths have no leading slash. Children come in bytewise order of name, each directory before
    what is
    in it. Not recursive: depth is bounded by memory, not by the interpreter's stack.
    """
    stack: list[tuple[bytes, Node]] = [(b"", root)]
    while stack:
        path, node = stack.pop()
        yield path, node
        if node.is_directory:
            prefix = path + b"/" if path else b""
            stack.extend(
                (prefix + name, node.children[name]) for name in sorted(node.children, reverse=True)
            )
