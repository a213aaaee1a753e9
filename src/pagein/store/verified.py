"""Bytes that are handed out only if digest and size are what they should be."""

from __future__ import annotations

import hashlib
import io
from typing import Any, BinaryIO, Final

from pagein.errors import FormatError
from pagein.types import Digest

_PIECE: Final = 1 << 20


def read_verified(stream: BinaryIO, digest: Digest, *, limit: int, place: str) -> bytes:
    """Read a blob of at most ``limit`` bytes to its end. Raises FormatError."""
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise FormatError(f"blob {digest} is larger than {limit} bytes", field="size")
    if hashlib.sha256(data).hexdigest() != digest.hex:
        raise FormatError(f"blob {digest} in {place} is damaged", field="digest")
    return data


def verified_reader(stream: BinaryIO, digest: Digest, size: int | None) -> BinaryIO:
    """Wrap a blob's stream, for reads of any size; see `VerifiedStream`."""
    return io.BufferedReader(VerifiedStream(stream, digest, size), _PIECE)


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
