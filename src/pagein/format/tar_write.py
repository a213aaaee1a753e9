"""Tar headers from entries: ustar where everything fits, PAX records where not (POSIX.1-2017 pax).

Our own and not `tarfile`'s, so that a tree has the same layer digest under every Python.
"""

from __future__ import annotations

import struct
from typing import Final

from pagein.errors import FormatError
from pagein.format.tar import HARDLINK, LinkKind, TarEntry
from pagein.format.tree import NodeKind

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
"""Two zero blocks end an archive."""

_FLAGS: Final[dict[NodeKind | LinkKind, bytes]] = {
    NodeKind.FILE: b"0",
    HARDLINK: b"1",
    NodeKind.SYMLINK: b"2",
    NodeKind.CHAR_DEVICE: b"3",
    NodeKind.BLOCK_DEVICE: b"4",
    NodeKind.DIRECTORY: b"5",
    NodeKind.FIFO: b"6",
}
_HEADER: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155x12x")
_NAME: Final = 100
_MAGIC: Final = b"ustar\x0000"
_EXTENDED_NAME: Final = b"././@PaxHeader"
_XATTR: Final = b"SCHILY.xattr."


def tar_header(entry: TarEntry) -> bytes:
    """Return all that comes before an entry's data: its header, and a PAX header if it needs one.

    Raises FormatError for what tar cannot hold (sockets).
    """
    flag = _FLAGS.get(entry.kind)
    if flag is None:
        raise FormatError(f"a tar archive cannot hold {entry.path!r}", field="kind")
    records = _pax_records(entry)
    header = _header(entry, flag)
    if not records:
        return header
    data = b"".join(_record(key, value) for key, value in records)
    extended = TarEntry(_EXTENDED_NAME, NodeKind.FILE, size=len(data))
    return _header(extended, b"x") + data + padding(len(data)) + header


def padding(size: int) -> bytes:
    """Return the zeros after ``size`` bytes of data."""
    return bytes(-size % BLOCK)


def _pax_records(entry: TarEntry) -> list[tuple[bytes, bytes]]:
    records = []
    if _needs_record(entry.path):
        records.append((b"path", entry.path))
    if _needs_record(entry.link_target):
        records.append((b"linkpath", entry.link_target))
    for key, value, digits in (
        (b"size", entry.size, 11),
        (b"uid", entry.uid, 7),
        (b"gid", entry.gid, 7),
    ):
        if value >= 8**digits:
            records.append((key, str(value).encode()))
    seconds, nanoseconds = divmod(abs(entry.mtime_ns), 10**9)
    if nanoseconds or entry.mtime_ns < 0 or seconds >= 8**11:
        sign = "-" if entry.mtime_ns < 0 else ""
        records.append((b"mtime", f"{sign}{seconds}.{nanoseconds:09}".encode()))
    records += [(_XATTR + name, entry.xattrs[name]) for name in sorted(entry.xattrs)]
    return records


def _needs_record(name: bytes) -> bool:
    return len(name) > _NAME or not name.isascii()


def _record(key: bytes, value: bytes) -> bytes:
    """Return ``LENGTH KEY=VALUE\\n``, where LENGTH counts itself."""
    body = len(key) + len(value) + 3
    length = body + len(str(body))
    length = body + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _octal(value: int, digits: int) -> bytes:
    """Return a number field; what does not fit has a PAX record, and is 0 here."""
    return b"%0*o\0" % (digits, value if 0 <= value < 8**digits else 0)


def _header(entry: TarEntry, flag: bytes) -> bytes:
    major, minor = entry.device
    fields = [
        entry.path[:_NAME],
        _octal(entry.mode, 7),
        _octal(entry.uid, 7),
        _octal(entry.gid, 7),
        _octal(entry.size if flag in b"0x" else 0, 11),
        _octal(entry.mtime_ns // 10**9, 11),
        b" " * 8,
        flag,
        entry.link_target[:_NAME],
        _MAGIC,
        _octal(major, 7),
        _octal(minor, 7),
    ]
    total = sum(_HEADER.pack(*fields))
    fields[6] = b"%06o\0 " % total
    return _HEADER.pack(*fields)
