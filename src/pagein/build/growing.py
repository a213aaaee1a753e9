"""A pack that one thread still writes while another one sends it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from pagein.types import Digest


class AbandonedError(Exception):
    """The pack will not be finished."""


class GrowingPack:
    """A `GrowingBlob`. The writer says how far it is: `grew`, then `finish` or `abandon`.

    `stop` ends the reader also where all bytes are there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._changed = threading.Condition()
        self._size = 0
        self._digest: Digest | None = None
        self._abandoned = False

    def grew(self, size: int) -> None:
        """Say that the file has ``size`` bytes."""
        with self._changed:
            self._size = size
            self._changed.notify_all()

    def finish(self, digest: Digest) -> None:
        """Say that it has all its bytes."""
        with self._changed:
            self._digest = digest
            self._changed.notify_all()

    def abandon(self) -> None:
        """Let whoever waits raise AbandonedError, unless the pack is finished."""
        with self._changed:
            self._abandoned = self._abandoned or self._digest is None
            self._changed.notify_all()

    def stop(self) -> None:
        """Let the reader raise AbandonedError."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()

    def read(self, offset: int, size: int, /) -> bytes:
        """Return up to ``size`` bytes from ``offset``, once there are any; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended() or self._size > offset)
            count = min(size, self._size - offset)
        with self.path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), max(count, 0), offset)

    def digest(self) -> Digest:
        """Wait for the end, and return the digest of all bytes."""
        with self._changed:
            self._changed.wait_for(self._ended)
            assert self._digest is not None
            return self._digest

    def _ended(self) -> bool:
        if self._abandoned:
            raise AbandonedError
        return self._digest is not None
