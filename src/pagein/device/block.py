"""The seam between "has bytes" and "shows them to the kernel"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pagein.store.source import FileSlice
from pagein.types import Buffer


class BlockImage(Protocol):
    """A read-only run of ``size`` bytes. Safe to call from any thread."""

    @property
    def size(self) -> int:
        """Length in bytes, a multiple of 4096."""
        ...

    def pread(self, offset: int, length: int, /) -> Buffer:
        """Return exactly ``length`` bytes; may wait for a source. Raises PageinError."""
        ...

    def peek(self, offset: int, length: int, /) -> Buffer | FileSlice | None:
        """Return the bytes, or where they lie, if that needs no wait for a source; else None."""
        ...


@dataclass(frozen=True, slots=True)
class PartImage:
    """``size`` bytes from ``start`` of another image, as an image of their own."""

    whole: BlockImage
    start: int
    size: int

    def pread(self, offset: int, length: int, /) -> Buffer:
        """Return exactly ``length`` bytes; may wait for a source."""
        return self.whole.pread(self.start + offset, length)

    def peek(self, offset: int, length: int, /) -> Buffer | FileSlice | None:
        """Return the bytes if that needs no wait for a source; else None."""
        return self.whole.peek(self.start + offset, length)


@dataclass(frozen=True, slots=True)
class FlatImage:
    """The whole device: metadata, zeros up to a sector boundary, then the body."""

    metadata: bytes
    sector_size: int
    body: BlockImage

    @property
    def body_start(self) -> int:
        """Where the body begins, in bytes."""
        return -(-len(self.metadata) // self.sector_size) * self.sector_size

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.body_start + self.body.size

    def pread(self, offset: int, length: int, /) -> Buffer:
        """Return exactly ``length`` bytes; may wait for a source."""
        head = self._head(offset, length)
        rest = length - len(head)
        if not rest:
            return head
        return head + bytes(self.body.pread(offset + len(head) - self.body_start, rest))

    def peek(self, offset: int, length: int, /) -> Buffer | FileSlice | None:
        """Return the bytes if that needs no wait for a source; else None."""
        head = self._head(offset, length)
        if len(head) == length:
            return head
        return None if head else self.body.peek(offset - self.body_start, length)

    def _head(self, offset: int, length: int) -> bytes:
        """Return what of a read lies before the body."""
        length = max(0, min(length, self.body_start - offset))
        return self.metadata[offset : offset + length].ljust(length, b"\0")
