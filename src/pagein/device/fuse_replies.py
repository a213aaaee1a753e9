"""Writes the replies to reads: at once, or from a thread that waited for the bytes."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import Final

from pagein.device.block import BlockImage
from pagein.device.errno_table import errno_of
from pagein.errors import DeviceError
from pagein.events import DeviceRead, DeviceReadFailed, Event, Observer
from pagein.store.source import FileSlice
from pagein.types import Buffer
from pagein.wire import fuse

GONE: Final = frozenset({errno.ENODEV, errno.EBADF, errno.ECONNABORTED, errno.ENOTCONN})
"""The mount has gone."""

UNWANTED: Final = GONE | {errno.ENOENT, errno.EINTR}
"""The kernel wants no reply, or has no request, any more: it was given up, or the mount went."""


class Replies:
    """Replies on one descriptor, from one image. Safe to use from any thread.

    Rule 1. No exception leaves a request without a reply: an unanswered read hangs everything on
    the mount. What cannot be answered is answered with an error number.
    """

    def __init__(self, descriptor: int, image: BlockImage, observer: Observer) -> None:
        self._descriptor = descriptor
        self._image = image
        self._observer = observer

    def answer_miss(self, unique: int, offset: int, length: int, began: float) -> None:
        """Wait for the bytes, and reply. Runs in the pool."""
        try:
            self.reply(unique, self._image.pread(offset, length), length)
            seconds = time.perf_counter() - began
            self.tell(DeviceRead(offset, length, seconds, hit=False))
        except BaseException as error:  # rule 1
            self.fail(unique, offset, length, error)

    def answer_from_disk(self, unique: int, offset: int, piece: FileSlice, began: float) -> None:
        """Read a cached sector that is not in memory, and reply. Runs in the pool."""
        try:
            data = piece.read()
        except BaseException as error:  # rule 1
            self.fail(unique, offset, piece.length, error)
            return
        if data is None:
            self.answer_miss(unique, offset, piece.length, began)
            return
        try:
            self.reply(unique, data, piece.length)
            seconds = time.perf_counter() - began
            self.tell(DeviceRead(offset, piece.length, seconds, hit=True))
        except BaseException as error:  # rule 1
            self.fail(unique, offset, piece.length, error)

    def reply(self, unique: int, data: Buffer, length: int) -> None:
        """Write the bytes of a read. A wrong count of them is an error, never a short read."""
        if len(data) != length:
            raise DeviceError(f"{len(data)} bytes for a read of {length}", errno=errno.EIO)
        self.write([fuse.reply_header(unique, length), data])

    def fail(self, unique: int, offset: int, length: int, error: BaseException) -> None:
        """Reply with an error number, and say why."""
        number = errno_of(error)
        with contextlib.suppress(OSError):
            self.write([fuse.reply_error(unique, number)])
        self.tell(DeviceReadFailed(offset, length, number, f"{type(error).__name__}: {error}"))

    def write(self, parts: list[Buffer]) -> None:
        """Write one reply. A request that was interrupted, or a mount that went, wants none."""
        try:
            os.writev(self._descriptor, parts)
        except OSError as error:
            if error.errno not in UNWANTED:
                raise

    def tell(self, event: Event) -> None:
        """Tell the observer. One that raises, against its contract, must not cost a reply."""
        with contextlib.suppress(Exception):
            self._observer(event)
