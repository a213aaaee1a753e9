"""The FUSE kernel protocol for one read-only regular file (include/uapi/linux/fuse.h, 7.31 on).

Rule 1. Pure: bytes in, values out, and back. Whoever owns the descriptor reads and writes.
Rule 2. The file is node 1, the root of the mount itself, so there is nothing to look up.
Rule 3. What we have nothing to say about is answered with ENOSYS. For FLUSH, FSYNC, ACCESS, LSEEK,
GETXATTR, LISTXATTR and POLL the kernel then does the obvious thing by itself, and never asks again;
IOCTL becomes ENOTTY.
Rule 4. A reply carries the request's unique number untouched, also when it is marked as resent, and
goes to the descriptor that the request was read from (a clone has a queue of its own).
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from pagein.errors import FormatError
from pagein.types import BLOCK_SIZE

ROOT_ID: Final = 1
KERNEL_MAJOR: Final = 7
KERNEL_MINOR: Final = 40  # the one that brought HAS_RESEND
MIN_MINOR: Final = 31
MAX_READ: Final = 1 << 20
"""Bytes of the largest read: 256 pages, what FUSE_MAX_PAGES allows without a sysctl."""

MAX_BACKGROUND: Final = 512
"""Direct reads that the kernel hands over before it holds back further ones. Far more than there
are threads that wait, so that reads of what is here do not queue behind reads that are not."""

REQUEST_SIZE: Final = 8192 + 4096
"""Buffer for one request: the kernel refuses to hand one over to less than 8 KiB
(FUSE_MIN_READ_BUFFER), and none of ours comes near it."""

IN_HEADER: Final = struct.Struct("<IIQQIIIHH")  # len opcode unique nodeid uid gid pid extlen pad
OUT_HEADER: Final = struct.Struct("<IiQ")  # len error unique
_INIT_IN: Final = struct.Struct("<IIII")  # major minor max_readahead flags
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHHI28x")
_READ_IN: Final = struct.Struct("<QQIIQII")  # fh offset size read_flags lock_owner flags padding
_ATTR: Final = struct.Struct("<QQQQQQIIIIIIIIII")
_ATTR_OUT: Final = struct.Struct("<QII")
_OPEN_OUT: Final = struct.Struct("<QIi")
_STATFS_OUT: Final = struct.Struct("<QQQQQIIII24x")
_U64: Final = struct.Struct("<Q")
_STORE: Final = struct.Struct("<QQII")  # nodeid offset size padding

NOTIFY_STORE: Final = 4
"""Put bytes into the kernel's page cache of the file."""

NOTIFY_RESEND: Final = 7
"""Ask the kernel to send again what a dead server left unanswered (kernel 6.9)."""

RESENT: Final = 1 << 63
"""Set in the unique number of a request that is sent again (FUSE_UNIQUE_RESEND)."""

_FILE_MODE: Final = 0o100400


class Opcode(IntEnum):
    """Requests that a regular file can get."""

    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    ACCESS = 34
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    BATCH_FORGET = 42
    FALLOCATE = 43
    LSEEK = 46
    STATX = 52


UNANSWERED: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})
"""Requests that get no reply. A read that was interrupted is answered like any other."""

_REFUSED: Final = frozenset(
    {Opcode.SETATTR, Opcode.WRITE, Opcode.SETXATTR, Opcode.REMOVEXATTR, Opcode.FALLOCATE}
)


class InitFlag(IntFlag):
    """Features negotiated at INIT; from bit 32 on they travel in ``flags2``."""

    ASYNC_READ = 1 << 0
    ASYNC_DIO = 1 << 15
    """Direct reads in parallel: 2.5 GB/s with it, 1.0 without (measured, one reader thread)."""
    MAX_PAGES = 1 << 22
    INIT_EXT = 1 << 30
    HAS_RESEND = 1 << 39


WANTED: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.ASYNC_DIO
    | InitFlag.MAX_PAGES
    | InitFlag.INIT_EXT
    | InitFlag.HAS_RESEND
)

FOPEN_DIRECT_IO: Final = 1 << 0
"""Pages are cached once, by EROFS above us, and not a second time for the device file."""

FOPEN_KEEP_CACHE: Final = 1 << 1
"""Pages are cached for the device file too, and stay: also those that were stored before."""


@dataclass(frozen=True, slots=True)
class Header:
    """The head of a request."""

    length: int
    opcode: int
    unique: int
    nodeid: int


@dataclass(frozen=True, slots=True)
class InitRequest:
    """What the kernel can do."""

    major: int
    minor: int
    max_readahead: int
    flags: InitFlag


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """A read of ``size`` bytes from ``offset``."""

    offset: int
    size: int


def parse_header(data: memoryview) -> Header:
    """Read a request's header. Raises FormatError where the length is not that of ``data``."""
    if len(data) < IN_HEADER.size:
        raise FormatError(f"a FUSE request of {len(data)} bytes", field="len")
    length, opcode, unique, nodeid, *_ = IN_HEADER.unpack_from(data)
    if length != len(data):
        raise FormatError(f"a FUSE request of {len(data)} bytes says {length}", field="len")
    return Header(length, opcode, unique, nodeid)


def parse_read(data: memoryview) -> ReadRequest:
    """Read the body of a READ request (header included in ``data``)."""
    if len(data) < IN_HEADER.size + _READ_IN.size:
        raise FormatError("a FUSE read request is too short", field="len")
    _, offset, size, *_ = _READ_IN.unpack_from(data, IN_HEADER.size)
    return ReadRequest(offset, size)


def parse_init(data: memoryview) -> InitRequest:
    """Read the body of an INIT request. Raises FormatError for a kernel that is too old.

    A newer major version is no error: the kernel asks again once it is told ours.
    """
    if len(data) < IN_HEADER.size + _INIT_IN.size:
        raise FormatError("a FUSE init request is too short", field="len")
    major, minor, readahead, flags = _INIT_IN.unpack_from(data, IN_HEADER.size)
    if (major, minor) < (KERNEL_MAJOR, MIN_MINOR):
        raise FormatError(f"FUSE protocol {major}.{minor}; 7.{MIN_MINOR} is needed", field="minor")
    flags2_at = IN_HEADER.size + _INIT_IN.size
    if flags & InitFlag.INIT_EXT and len(data) >= flags2_at + 4:
        flags |= int.from_bytes(data[flags2_at : flags2_at + 4], "little") << 32
    return InitRequest(major, minor, readahead, InitFlag(flags))


def reply(unique: int, body: bytes = b"") -> bytes:
    """Write a reply that succeeded."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def reply_header(unique: int, length: int) -> bytes:
    """Write the head of a reply whose ``length`` bytes of body follow."""
    return OUT_HEADER.pack(OUT_HEADER.size + length, 0, unique)


def reply_error(unique: int, number: int) -> bytes:
    """Write a reply that failed with an errno."""
    return OUT_HEADER.pack(OUT_HEADER.size, -number, unique)


def reply_init(unique: int, request: InitRequest) -> bytes:
    """Agree on the features that both sides have."""
    flags = int(request.flags & WANTED)
    minor = KERNEL_MINOR if request.major > KERNEL_MAJOR else min(KERNEL_MINOR, request.minor)
    body = _INIT_OUT.pack(
        KERNEL_MAJOR,
        minor,
        request.max_readahead,
        flags & 0xFFFFFFFF,
        MAX_BACKGROUND,
        MAX_BACKGROUND * 3 // 4,
        BLOCK_SIZE,  # max_write: nothing is ever written
        1,  # time_gran
        MAX_READ // BLOCK_SIZE,
        0,  # map_alignment
        flags >> 32,
    )
    return reply(unique, body)


def attributes(size: int) -> bytes:
    """Write ``struct fuse_attr`` of the file."""
    return _ATTR.pack(
        ROOT_ID, size, -(-size // 512), 0, 0, 0, 0, 0, 0, _FILE_MODE, 1, 0, 0, 0, BLOCK_SIZE, 0
    )


def reply_getattr(unique: int, size: int) -> bytes:
    """Answer GETATTR: valid for a day, since nothing of it ever changes."""
    return reply(unique, _ATTR_OUT.pack(86400, 0, 0) + attributes(size))


def reply_open(unique: int, *, cached: bool = False) -> bytes:
    """Answer OPEN with direct I/O, or else through the kernel's page cache."""
    return reply(unique, _OPEN_OUT.pack(0, FOPEN_KEEP_CACHE if cached else FOPEN_DIRECT_IO, 0))


def reply_statfs(unique: int, size: int) -> bytes:
    """Answer STATFS: full, one file."""
    return reply(
        unique, _STATFS_OUT.pack(size // BLOCK_SIZE, 0, 0, 1, 0, BLOCK_SIZE, 255, BLOCK_SIZE, 0)
    )


def notify_resend() -> bytes:
    """Write the notification that asks for unanswered requests again."""
    return OUT_HEADER.pack(OUT_HEADER.size, NOTIFY_RESEND, 0)


def notify_store(offset: int, length: int) -> bytes:
    """Write the head of a notification whose ``length`` bytes go into the page cache.

    Bytes and offset are multiples of the page size: the kernel takes a page for valid only when all
    of it came (fs/fuse/dev.c, fuse_notify_store).
    """
    size = OUT_HEADER.size + _STORE.size + length
    return OUT_HEADER.pack(size, NOTIFY_STORE, 0) + _STORE.pack(ROOT_ID, offset, length, 0)


def answer(header: Header, data: memoryview, *, size: int, cached: bool = False) -> bytes | None:
    """Answer every request but READ about a file of ``size`` bytes. None: it gets no reply.

    ``cached``: the kernel shall keep what it has read. Raises FormatError for an INIT that cannot
    be read.
    """
    match header.opcode:
        case Opcode.INIT:
            return reply_init(header.unique, parse_init(data))
        case Opcode.GETATTR:
            return reply_getattr(header.unique, size)
        case Opcode.OPEN:
            return reply_open(header.unique, cached=cached)
        case Opcode.STATFS:
            return reply_statfs(header.unique, size)
        case Opcode.RELEASE | Opcode.DESTROY:
            return reply(header.unique)
        case opcode if opcode in UNANSWERED:
            return None
        case opcode if opcode in _REFUSED:
            return reply_error(header.unique, errno.EROFS)
    return reply_error(header.unique, errno.ENOSYS)
