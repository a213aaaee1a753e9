"""Replies whose bytes go from a cached sector's pages to the kernel without being copied."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import Final

from pagein.store.source import FileSlice
from pagein.types import BLOCK_SIZE

# The header takes a page of its own, so that a read of 1 MiB, the largest, needs a pipe of over
# 1 MiB. Without CAP_SYS_RESOURCE that is beyond fs.pipe-max-size (EPERM): such a read is copied.
_PIPE_SIZES: Final = (2 << 20, 1 << 20)

_residency_unknown = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


def is_resident(piece: FileSlice) -> bool:
    """Whether the slice can be read without a wait for the disk, as far as its last byte tells.

    Costs a system call of about 1 us. A file system that cannot say is taken to be quick.
    """
    try:
        last = piece.offset + piece.length - 1
        return os.preadv(piece.file.fd, [bytearray(1)], last, os.RWF_NOWAIT) == 1
    except OSError as error:
        return error.errno in _residency_unknown


class SplicePipe:
    """A pipe of one thread. Pages enter it from a file and leave it towards ``/dev/fuse``."""

    def __init__(self) -> None:
        # Non-blocking: a message that does not fit is an error instead of a hang.
        self._out, self._in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for size in _PIPE_SIZES:
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, size)
                break
        self._pages = fcntl.fcntl(self._in, fcntl.F_GETPIPE_SZ) // BLOCK_SIZE

    def fits(self, piece: FileSlice) -> bool:
        """Whether a header and the slice go through in one piece: a slot for each page."""
        return (piece.offset % BLOCK_SIZE + piece.length - 1) // BLOCK_SIZE + 2 <= self._pages

    def send(self, head: bytes, piece: FileSlice, descriptor: int) -> bool:
        """Write ``head`` and the slice as one message to ``descriptor``.

        False where the slice could not be read: then nothing was sent. OSError where the message
        could not be sent.
        """
        try:
            os.write(self._in, head)
            filled = self._fill(piece)
        except OSError:
            filled = False
        if not filled:
            self._drain()
            return False
        try:
            os.splice(self._out, descriptor, len(head) + piece.length)
        except OSError:
            self._drain()
            raise
        return True

    def _fill(self, piece: FileSlice) -> bool:
        left, offset = piece.length, piece.offset
        while left:
            moved = os.splice(piece.file.fd, self._in, left, offset_src=offset)
            if moved == 0:
                return False
            left -= moved
            offset += moved
        return True

    def _drain(self) -> None:
        """Throw away what a failure left in the pipe: it would spoil the next message."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._out, 1 << 20):
                pass

    def close(self) -> None:
        """Close both ends."""
        os.close(self._in)
        os.close(self._out)
