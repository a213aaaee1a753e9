"""Notes what the kernel reads of a body, and when."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from pagein.device.block import BlockImage
from pagein.format.reads import pack_read
from pagein.store.source import FileSlice
from pagein.types import Buffer

MAX_READS: Final = 4 << 20
"""Reads that are noted: 80 MB of notes. The start of a 6 GB image takes 55,000."""


class RecordingImage:
    """A `BlockImage` that notes each read of the one it wraps. Safe to call from any thread.

    Only `peek` notes: a reader thread calls it once for every read, and `pread` for some of them
    afterwards. A note is one call that appends 20 bytes, so that no lock is needed.
    """

    def __init__(
        self,
        image: BlockImage,
        *,
        most: int = MAX_READS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._image = image
        self._left = most
        self._monotonic = monotonic
        self._noting = True
        self._notes = bytearray()
        self.first_at: float | None = None
        """When the first read came, by the monotonic clock."""
        self.is_full = False
        """Whether there were more reads than are noted."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._image.size

    def peek(self, offset: int, length: int, /) -> Buffer | FileSlice | None:
        """Note the read; return the bytes if that needs no wait for a source."""
        if self._noting:
            self._note(offset, length)
        return self._image.peek(offset, length)

    def _note(self, offset: int, length: int) -> None:
        if self._left <= 0:
            self.is_full = True
            return
        self._left -= 1
        now = self._monotonic()
        if self.first_at is None:
            self.first_at = now
        self._notes.extend(pack_read(now, offset, length))

    def pread(self, offset: int, length: int, /) -> Buffer:
        """Return exactly ``length`` bytes; may wait for a source."""
        return self._image.pread(offset, length)

    def notes(self) -> bytes:
        """Return what was noted so far, for `pagein.format.reads.parse_reads`."""
        return bytes(self._notes)

    def stop(self) -> bytes:
        """Note nothing from now on; return what was noted, and let go of it."""
        self._noting = False
        notes, self._notes = self._notes, bytearray()
        return bytes(notes)
