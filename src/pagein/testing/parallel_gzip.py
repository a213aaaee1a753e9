"""Gzip on all cores, one member, as pigz writes it: what layers of real images look like.

Blocks are deflated on their own, each with the 32 KiB before it as dictionary, and end on a byte
boundary (``Z_SYNC_FLUSH``), so that put end to end they are one stream (RFC 1951 section 3.2.4).
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import BinaryIO, Final

from pagein.types import Buffer, Digest

LEVEL: Final = 6
"""What gzip, pigz and docker use when nobody says otherwise."""

_BLOCK: Final = 512 << 10
_WINDOW: Final = 32 << 10
_HEADER: Final = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # no name, no time (RFC 1952 section 2.3)


class GzipWriter:
    """Writes to ``target``, which stays open. ``plain`` and ``stored`` are known after the end.

    ``plain`` is the digest of what was written, ``stored`` of what it became; ``plain_size`` and
    ``stored_size`` count bytes.
    """

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._cores = os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._cores, "gzip")
        self._waiting: deque[Future[bytes]] = deque()
        self._block = bytearray()
        self._window = b""
        self._crc = 0
        self._plain, self._stored = hashlib.sha256(), hashlib.sha256()
        self.plain_size = self.stored_size = 0
        self._put(_HEADER)

    @property
    def plain(self) -> Digest:
        """Digest of the uncompressed bytes so far."""
        return Digest(self._plain.hexdigest())

    @property
    def stored(self) -> Digest:
        """Digest of the compressed bytes so far."""
        return Digest(self._stored.hexdigest())

    def write(self, data: Buffer) -> int:
        """Take bytes; they are compressed some time before the end."""
        self._plain.update(data)
        self._crc = zlib.crc32(data, self._crc)
        self.plain_size += len(data)
        self._block += data
        while len(self._block) >= _BLOCK:
            self._submit(bytes(self._block[:_BLOCK]))
            del self._block[:_BLOCK]
        return len(data)

    def _submit(self, block: bytes) -> None:
        while len(self._waiting) >= 2 * self._cores:
            self._put(self._waiting.popleft().result())
        self._waiting.append(self._pool.submit(_deflate, block, self._window))
        self._window = block[-_WINDOW:]

    def _put(self, data: bytes) -> None:
        self._target.write(data)
        self._stored.update(data)
        self.stored_size += len(data)

    def __enter__(self) -> GzipWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._pool:
            if error is not None:
                return
            self._submit(bytes(self._block))
            while self._waiting:
                self._put(self._waiting.popleft().result())
        self._put(zlib.compressobj(LEVEL, zlib.DEFLATED, -15).flush())
        self._put(struct.pack("<II", self._crc, self.plain_size & 0xFFFFFFFF))


def _deflate(block: bytes, window: bytes) -> bytes:
    deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, -15, zdict=window)
    return deflate.compress(block) + deflate.flush(zlib.Z_SYNC_FLUSH)
