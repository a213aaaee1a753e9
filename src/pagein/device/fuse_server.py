"""Answers the kernel's requests for one device file.

Rule 1. The reader thread never waits for a source: what needs a wait goes to the pool.
Rule 2. The reply to a miss is written by the thread that has the bytes.
Rule 3. No exception leaves a request without a reply: an unanswered read hangs everything on the
mount. What cannot be answered is answered with an error number.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from pagein.device.block import BlockImage
from pagein.device.errno_table import errno_of
from pagein.device.mount import MS_NOSUID, MS_RDONLY, mount
from pagein.errors import DeviceError, FormatError
from pagein.events import DeviceRead, DeviceReadFailed, Observer, ignore
from pagein.store.source import FileSlice
from pagein.types import Buffer
from pagein.wire import fuse

DEMAND_THREADS: Final = 64
"""Reads that may wait at once: the kernel queues what goes beyond it (``max_background``)."""

_SPLICE_FROM: Final = 4096
_PIPE_SIZE: Final = 1 << 20  # F_SETPIPE_SZ above /proc/sys/fs/pipe-max-size fails even for root
_GONE: Final = frozenset({errno.ENODEV, errno.EBADF, errno.ECONNABORTED})
_AGAIN: Final = frozenset({errno.EINTR, errno.EAGAIN, errno.ENOENT})


def open_fuse_device() -> int:
    """Open ``/dev/fuse``. Raises DeviceError."""
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceError(
            f"cannot open /dev/fuse: {error.strerror}",
            errno=error.errno or errno.EIO,
            hint="modprobe fuse; in a container, pass --device /dev/fuse",
        ) from None


def mount_fuse_file(descriptor: int, path: Path) -> None:
    """Mount the connection on a regular file: the file then *is* the device."""
    options = f"fd={descriptor},rootmode=100400,user_id=0,group_id=0,allow_other"
    mount("pagein", path, "fuse.pagein", MS_RDONLY | MS_NOSUID, options)


class FuseServer:
    """Serves one image on one ``/dev/fuse`` descriptor, which it owns from now on."""

    def __init__(
        self,
        descriptor: int,
        image: BlockImage,
        *,
        observer: Observer = ignore,
        demand_threads: int = DEMAND_THREADS,
        splice: bool = True,
    ) -> None:
        self._descriptor = descriptor
        self._image = image
        self._observer = observer
        self._demand_threads = demand_threads
        self._splice = splice
        self._closed = threading.Event()

    def serve(self) -> None:
        """Answer requests until the file system is gone; then close the descriptor."""
        pipe = _Pipe() if self._splice else None
        pool = ThreadPoolExecutor(self._demand_threads, thread_name_prefix="demand")
        try:
            self._loop(pipe, pool)
        finally:
            self._closed.set()
            pool.shutdown(wait=True, cancel_futures=True)
            if pipe is not None:
                pipe.close()
            os.close(self._descriptor)

    def _loop(self, pipe: _Pipe | None, pool: ThreadPoolExecutor) -> None:
        buffer = memoryview(bytearray(fuse.REQUEST_SIZE))
        while True:
            try:
                length = os.readv(self._descriptor, [buffer])
            except OSError as error:
                if error.errno in _AGAIN:
                    continue
                if error.errno in _GONE:
                    return
                raise
            request = buffer[:length]
            try:
                header = fuse.parse_header(request)
            except FormatError:
                continue  # not even a number to answer to; the kernel never sends this
            self._dispatch(header, request, pipe, pool)

    def _dispatch(
        self,
        header: fuse.Header,
        request: memoryview,
        pipe: _Pipe | None,
        pool: ThreadPoolExecutor,
    ) -> None:
        try:
            if header.opcode == fuse.Opcode.READ:
                self._read(header.unique, fuse.parse_read(request), pipe, pool)
                return
            answer = fuse.answer(
                header, request, size=self._image.size, max_background=self._demand_threads
            )
        except BaseException as error:  # rule 3
            self._fail(header.unique, 0, 0, error)
            return
        if answer is not None:
            self._write([answer])

    def _read(
        self, unique: int, read: fuse.ReadRequest, pipe: _Pipe | None, pool: ThreadPoolExecutor
    ) -> None:
        began = time.perf_counter()
        length = max(0, min(read.size, self._image.size - read.offset, fuse.MAX_READ))
        if length == 0:
            self._write([fuse.reply(unique)])
            return
        local = self._image.peek(read.offset, length)
        if local is None:
            pool.submit(self._answer_miss, unique, read.offset, length, began)
            return
        if not isinstance(local, FileSlice):
            self._reply(unique, local)
        elif not self._reply_from_file(unique, local, pipe):
            pool.submit(self._answer_miss, unique, read.offset, length, began)
            return
        self._observer(DeviceRead(read.offset, length, time.perf_counter() - began, hit=True))

    def _answer_miss(self, unique: int, offset: int, length: int, began: float) -> None:
        try:
            data = self._image.pread(offset, length)
            self._reply(unique, data)
            seconds = time.perf_counter() - began
            self._observer(DeviceRead(offset, length, seconds, hit=False))
        except BaseException as error:  # rule 3
            self._fail(unique, offset, length, error)

    def _fail(self, unique: int, offset: int, length: int, error: BaseException) -> None:
        number = errno_of(error)
        self._write([fuse.reply_error(unique, number)])
        self._observer(DeviceReadFailed(offset, length, number, f"{type(error).__name__}: {error}"))

    def _reply(self, unique: int, data: Buffer) -> None:
        self._write([fuse.reply_header(unique, len(data)), data])

    def _reply_from_file(self, unique: int, piece: FileSlice, pipe: _Pipe | None) -> bool:
        """Reply with bytes of a cached sector; False, and no reply, where they cannot be read."""
        if pipe is None or piece.length < _SPLICE_FROM or piece.length + 4096 > _PIPE_SIZE:
            try:
                data = os.pread(piece.file.fd, piece.length, piece.offset)
            except OSError:
                return False
            if len(data) != piece.length:
                return False
            self._reply(unique, data)
            return True
        return pipe.send(fuse.reply_header(unique, piece.length), piece, self._descriptor)

    def _write(self, parts: list[Buffer]) -> None:
        """Write one reply. A request that was interrupted, or a mount that went, wants none."""
        try:
            os.writev(self._descriptor, parts)
        except OSError as error:
            if error.errno not in _GONE | _AGAIN:
                raise


class _Pipe:
    """Moves pages from a file to the kernel without copying: 3.7 GB/s instead of 2.5 (measured)."""

    def __init__(self) -> None:
        self._open()

    def _open(self) -> None:
        self._out, self._in = os.pipe()
        fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)

    def send(self, head: bytes, piece: FileSlice, descriptor: int) -> bool:
        """Write ``head`` and the slice as one message to ``descriptor``.

        False where the slice could not be read: then nothing was sent. What is left in the pipe
        would spoil the next message, so the pipe is then replaced.
        """
        try:
            os.write(self._in, head)
            filled = self._fill(piece)
        except OSError:
            filled = False
        if not filled:
            self._replace()
            return False
        try:
            os.splice(self._out, descriptor, len(head) + piece.length)
        except OSError as error:
            self._replace()
            if error.errno not in _GONE | _AGAIN:
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

    def _replace(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        """Close both ends."""
        os.close(self._in)
        os.close(self._out)
