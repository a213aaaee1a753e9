"""Answers the kernel's requests for one device file.

Rule 1. A reader thread never waits for a source, nor, if it can help it, for the disk: what needs a
wait goes to the pool.
Rule 2. The reply to a miss is written by the thread that has the bytes.
Rule 3. No exception leaves a request without a reply: an unanswered read hangs everything on the
mount. What cannot be answered is answered with an error number.
Rule 4. The descriptor is closed when no thread uses it any more, so that its number cannot be
another file's under a late reply.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pagein.device.block import BlockImage
from pagein.device.fuse_replies import GONE, UNWANTED, Replies
from pagein.device.mount import MS_NODEV, MS_NOSUID, MS_RDONLY, mount
from pagein.device.reply_pool import ReplyPool
from pagein.device.splice import SplicePipe, is_resident
from pagein.errors import DeviceError, FormatError
from pagein.events import DeviceRead, Observer, ignore
from pagein.store.source import FileSlice
from pagein.types import Buffer
from pagein.wire import fuse

DEMAND_THREADS: Final = 64
"""Reads that may wait for a source at once; more of them queue up here, and hold up no hit."""

READER_THREADS: Final = 1

SPLICE_FROM: Final = 4096


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
    """Mount the connection on a regular file: the file then *is* the device. Raises DeviceError.

    Returns before anything has been served; whoever opens the file waits for the server.
    """
    options = f"fd={descriptor},rootmode=100400,user_id=0,group_id=0,allow_other"
    mount("pagein", path, "fuse.pagein", MS_RDONLY | MS_NOSUID | MS_NODEV, options)


class FuseServer:
    """Serves one image on one ``/dev/fuse`` descriptor, which it owns from now on.

    The descriptor is a new one, or one that a dead server has left: then ``agreed`` stays empty, as
    the kernel says what it can only once. ``cached``: the kernel keeps what it has read, and what
    `store` gives it unasked. It starts no thread before `serve`. ``on_last_release``
    is called by a reader thread, and must not block, each time the last open file of the device was
    closed.
    """

    def __init__(
        self,
        descriptor: int,
        image: BlockImage,
        *,
        observer: Observer = ignore,
        demand_threads: int = DEMAND_THREADS,
        reader_threads: int = READER_THREADS,
        splice: bool = True,
        cached: bool = False,
        on_last_release: Callable[[], None] | None = None,
    ) -> None:
        self.descriptor = descriptor
        self.image = image
        self.replies = Replies(descriptor, image, observer)
        self._demand_threads = demand_threads
        self._reader_threads = reader_threads
        self._splice = splice
        self._cached = cached
        self._on_last_release = on_last_release
        self._lock = threading.Lock()
        self._storing = threading.Lock()
        self._open_files = 0
        self.stopping = False
        self.agreed = fuse.InitFlag(0)
        self._wake: int | None = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def serve(self) -> None:
        """Answer requests until the file system is gone or `stop`; then close the descriptor.

        With the last descriptor of the connection go the reads that still wait: they fail.
        """
        pool = ReplyPool(self._demand_threads)
        os.set_blocking(self.descriptor, False)
        others = [
            threading.Thread(target=self._run_reader, args=(pool,), name="fuse-reader")
            for _ in range(self._reader_threads - 1)
        ]
        try:
            for thread in others:
                thread.start()
            self._run_reader(pool)
        finally:
            self.stop()
            for thread in others:
                if thread.ident is not None:
                    thread.join()
            pool.finish()
            self.close()

    def stop(self) -> None:
        """Make `serve` return once the reads that wait for a source have ended. Idempotent."""
        with self._lock:
            self.stopping = True
            if self._wake is not None:
                os.eventfd_write(self._wake, 1)  # never read, so that every reader sees it

    def store(self, offset: int, data: Buffer) -> bool:
        """Put bytes into the kernel's page cache, as if they had been read; False: nobody is there.

        For a ``cached`` device. Waits for reads of these pages that are under way, so it must not
        be called by a thread that a read may wait for. What the kernel has no memory for is left
        out: it asks for that when it is read.
        """
        with self._storing:
            if self.stopping or self._wake is None:
                return False
            try:
                os.writev(self.descriptor, [fuse.notify_store(offset, len(data)), data])
            except OSError as error:
                return error.errno not in GONE
            return True

    def close(self) -> None:
        """Close the descriptor of a server that does not serve. Idempotent."""
        with self._storing, self._lock:
            if self._wake is not None:
                os.close(self._wake)
                os.close(self.descriptor)
                self._wake = None

    def _run_reader(self, pool: ReplyPool) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.stop)  # one reader that ends, for whatever reason, ends all
            pipe = None
            if self._splice:
                with contextlib.suppress(OSError):  # out of descriptors: replies are copied then
                    pipe = stack.enter_context(contextlib.closing(SplicePipe()))
            _Reader(self, pool, pipe).run()

    def poll(self) -> select.poll:
        """Return what wakes a reader: a request, the end of the mount, or `stop`."""
        assert self._wake is not None
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        return poll

    def answer(self, header: fuse.Header, request: memoryview) -> None:
        """Answer a request that is no read. Does not block."""
        answer = fuse.answer(header, request, size=self.image.size, cached=self._cached)
        if header.opcode == fuse.Opcode.INIT:
            self.agreed = fuse.parse_init(request).flags & fuse.WANTED
        if header.opcode == fuse.Opcode.OPEN:
            with self._lock:
                self._open_files += 1
        if answer is not None:
            self.replies.write([answer])
        if header.opcode == fuse.Opcode.RELEASE:
            with self._lock:
                self._open_files -= 1
                last = self._open_files == 0
            if last and self._on_last_release is not None:
                self._on_last_release()


class _Reader:
    """One reader thread: its buffer, its pipe, and the loop."""

    def __init__(self, server: FuseServer, pool: ReplyPool, pipe: SplicePipe | None) -> None:
        self._server = server
        self._pool = pool
        self._pipe = pipe
        self._descriptor = server.descriptor
        self._image = server.image
        self._replies = server.replies

    def run(self) -> None:
        """Read and answer requests until the file system is gone or the server stops."""
        buffer = memoryview(bytearray(fuse.REQUEST_SIZE))
        waiting = self._server.poll()
        while not self._server.stopping:
            try:
                length = os.readv(self._descriptor, [buffer])
            except BlockingIOError:
                waiting.poll()
                continue
            except OSError as error:
                if error.errno in GONE:
                    return
                if error.errno in UNWANTED:  # given up between queue and copy
                    continue
                raise
            self._dispatch(buffer[:length])

    def _dispatch(self, request: memoryview) -> None:
        try:
            header = fuse.parse_header(request)
        except FormatError:
            return  # not even a number to answer to; the kernel never sends this
        offset = length = 0
        try:
            if header.opcode != fuse.Opcode.READ:
                self._server.answer(header, request)
                return
            read = fuse.parse_read(request)
            offset, length = read.offset, self._clip(read)
            self._read(header.unique, offset, length)
        except BaseException as error:  # rule 3
            self._replies.fail(header.unique, offset, length, error)

    def _clip(self, read: fuse.ReadRequest) -> int:
        return max(0, min(read.size, self._image.size - read.offset, fuse.MAX_READ))

    def _read(self, unique: int, offset: int, length: int) -> None:
        began = time.perf_counter()
        replies = self._replies
        if length == 0:
            replies.write([fuse.reply(unique)])
            return
        found = self._image.peek(offset, length)
        if isinstance(found, FileSlice):
            if not is_resident(found):
                self._pool.submit(replies.answer_from_disk, unique, offset, found, began)
                return
            if not self._reply_from_file(unique, found):
                found = None
        elif found is not None:
            replies.reply(unique, found, length)
        if found is None:
            self._pool.submit(replies.answer_miss, unique, offset, length, began)
            return
        replies.tell(DeviceRead(offset, length, time.perf_counter() - began, hit=True))

    def _reply_from_file(self, unique: int, piece: FileSlice) -> bool:
        """Reply with bytes of a cached sector; False, and no reply, where they cannot be read."""
        if self._pipe is None or piece.length < SPLICE_FROM or not self._pipe.fits(piece):
            data = piece.read()
            if data is None:
                return False
            self._replies.reply(unique, data, piece.length)
            return True
        try:
            head = fuse.reply_header(unique, piece.length)
            return self._pipe.send(head, piece, self._descriptor)
        except OSError as error:
            if error.errno not in UNWANTED:
                raise
            return True
