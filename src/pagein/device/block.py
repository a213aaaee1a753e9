"""The seam between "has bytes" and "shows them to the kernel"."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
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
class Attachment:
    """A device node that the kernel can open. ``path`` is a regular file (fuse) or /dev/loopN
    (loop)."""

    path: Path
    size: int


class BlockDevice(Protocol):
    """Shows an image to the kernel. `attach` returns once the node can be opened."""

    def attach(self, image: BlockImage, /) -> Attachment:
        """Make the device node. Raises DeviceError."""
        ...

    def detach(self, attachment: Attachment, /) -> None:
        """Take it away again; idempotent."""
        ...
