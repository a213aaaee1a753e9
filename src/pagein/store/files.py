"""An image's files without mounting it: our own EROFS reader over the lazily fetched body."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from pagein.errors import UsageError
from pagein.format.erofs.read import ErofsReader, Inode
from pagein.format.tree import NodeKind
from pagein.types import Buffer

PIECE = 1 << 20
"""Files are read in pieces of this many bytes; a kernel's read is never larger either."""


class Body(Protocol):
    """The part of a device that holds file data."""

    def pread(self, offset: int, length: int, /) -> Buffer:
        """Return exactly ``length`` bytes from ``offset``."""
        ...


class ImageFiles:
    """Look up, list and read the files of one image. Fetches only the sectors that are read."""

    def __init__(self, metadata: bytes, body: Body) -> None:
        self.reader = ErofsReader(metadata)
        self._body = body

    def lookup(self, path: str | bytes, *, follow: bool = True) -> Inode:
        """Find a file; a symlink is followed inside the image. Raises NotFoundError."""
        name = path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path
        return self.reader.lookup(name, follow=follow)

    def read(self, inode: Inode) -> Iterator[Buffer]:
        """Yield a regular file's bytes in order, in pieces of at most 1 MiB."""
        if inode.kind is not NodeKind.FILE:
            raise UsageError(
                f"not a regular file but a {inode.kind.name.lower().replace('_', ' ')}"
            )
        for offset in range(0, inode.size, PIECE):
            yield from self.read_range(inode, offset, min(PIECE, inode.size - offset))

    def read_range(self, inode: Inode, offset: int, length: int) -> Iterator[Buffer]:
        """Yield ``length`` bytes from ``offset`` of a regular file; both lie inside it."""
        for extent in self.reader.extents(inode, offset, length):
            if extent.body is None:
                yield bytes(extent.length)
            else:
                yield self._body.pread(extent.body, extent.length)
