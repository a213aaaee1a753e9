"""A stream that reaches its end only if digest and size are what they should be."""

from __future__ import annotations

import hashlib
import io
from typing import Any, BinaryIO

from pagein.errors import FormatError
from pagein.types import Digest


class VerifiedStream(io.RawIOBase):
    """Passes bytes on, and checks digest and size when the end is reached."""

    def __init__(self, stream: BinaryIO, digest: Digest, size: int | None) -> None:
        super().__init__()
        self._stream = stream
        self._digest = digest
        self._size = size
        self._hasher = hashlib.sha256()
        self._count = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer. Raises FormatError at an end that is not right."""
        view = memoryview(buffer).cast("B")
        count: int = self._stream.readinto(view)  # type: ignore[attr-defined]
        self._count += count
        if self._size is not None and self._count > self._size:
            raise FormatError(
                f"blob {self._digest} is larger than {self._size} bytes", field="size"
            )
        if count:
            self._hasher.update(view[:count])
        elif len(view):
            self._check_end()
        return count

    def _check_end(self) -> None:
        if self._size is not None and self._count != self._size:
            raise FormatError(
                f"blob {self._digest} has {self._count} bytes instead of {self._size}", field="size"
            )
        if self._hasher.hexdigest() != self._digest.hex:
            raise FormatError(
                f"blob {self._digest} has digest sha256:{self._hasher.hexdigest()}", field="digest"
            )
