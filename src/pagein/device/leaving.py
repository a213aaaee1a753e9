"""Notices when a start-up reads more of the layer data than one that keeps to its profile."""

from __future__ import annotations

from collections.abc import Callable

from pagein.device.block import BlockImage
from pagein.store.source import FileSlice
from pagein.types import Buffer


class LeavingImage:
    """A `BlockImage` that calls ``left`` once, at its ``most``-th read. ``left`` must not block.

    Only `peek` counts: a reader thread calls it once for every read. Two reads at the same moment
    may count as one: it is a threshold, no figure.
    """

    def __init__(self, image: BlockImage, most: int, left: Callable[[], None]) -> None:
        self._image = image
        self._more = most
        self._left = left

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._image.size

    def peek(self, offset: int, length: int, /) -> Buffer | FileSlice | None:
        """Count the read; return the bytes if that needs no wait for a source."""
        if self._more > 0:
            self._more -= 1
            if self._more == 0:
                self._left()
        return self._image.peek(offset, length)

    def pread(self, offset: int, length: int, /) -> Buffer:
        """Return exactly ``length`` bytes; may wait for a source."""
        return self._image.pread(offset, length)
