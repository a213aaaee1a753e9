"""Extended attributes behind an inode: ``struct erofs_xattr_ibody_header`` and its entries.

Rule 1. All attributes are inline; there are no shared ones, prefixes or filters.
Rule 2. Entries are in bytewise order of their full names, so that equal sets give equal bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from pagein.errors import FormatError

_PREFIXES: Final = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
_ACLS: Final = (2, 3)
_HEADER_SIZE: Final = 12
_ENTRY = struct.Struct("<BBH")
_MAX_COUNT: Final = 0xFFFF
"""``i_xattr_icount`` is 16 bits wide: (bytes - 12) / 4 + 1."""

_ACL_VERSION: Final = b"\x02\0\0\0"


def encode_xattrs(xattrs: Mapping[bytes, bytes]) -> bytes:
    """Return header and entries, or nothing for an empty mapping. A multiple of 4 bytes long.

    FormatError for a name, value or sum that EROFS cannot hold.
    """
    if not xattrs:
        return b""
    pieces = [bytes(_HEADER_SIZE)]
    for name in sorted(xattrs):
        index, suffix = _split_name(name)
        value = xattrs[name]
        if len(value) > 0xFFFF:
            raise FormatError(
                f"xattr {name!r} has {len(value)} bytes, erofs holds 65535 at most", field="xattr"
            )
        if index in _ACLS:
            _check_acl(name, value)
        entry = _ENTRY.pack(len(suffix), index, len(value)) + suffix + value
        pieces.append(entry + bytes(-len(entry) % 4))
    encoded = b"".join(pieces)
    if xattr_count(len(encoded)) > _MAX_COUNT:
        raise FormatError(
            f"the xattrs of one file take {len(encoded)} bytes, erofs holds "
            f"{xattr_bytes(_MAX_COUNT)} at most",
            field="xattr",
        )
    return encoded


def xattr_count(size: int) -> int:
    """``i_xattr_icount`` for ``size`` bytes of xattrs."""
    return (size - _HEADER_SIZE) // 4 + 1 if size else 0


def xattr_bytes(count: int) -> int:
    """Bytes of xattrs behind an inode with ``i_xattr_icount`` = ``count``."""
    return _HEADER_SIZE + 4 * (count - 1) if count else 0


def parse_xattrs(area: memoryview, offset: int) -> dict[bytes, bytes]:
    """Read what `encode_xattrs` wrote; ``offset`` is where ``area`` lies, for messages."""
    found: dict[bytes, bytes] = {}
    if not len(area):
        return found
    if any(area[:_HEADER_SIZE]):
        raise _broken("its header names shared xattrs or a filter", offset)
    position, end, last = _HEADER_SIZE, len(area), b""
    while position < end:
        name_size, index, value_size = _ENTRY.unpack_from(area, position)
        value_at = position + _ENTRY.size + name_size
        stop = value_at + value_size
        if stop > end or index not in _PREFIXES:
            raise _broken("an entry does not fit or has an unknown namespace", offset + position)
        suffix = bytes(area[position + _ENTRY.size : value_at])
        name = _PREFIXES[index] + suffix
        if bool(suffix) is (index in _ACLS) or b"\0" in suffix or name <= last:
            raise _broken(f"entry {name!r} is empty or out of order", offset + position)
        found[name] = bytes(area[value_at:stop])
        last = name
        padded = stop + -stop % 4
        if any(area[stop:padded]):
            raise _broken("padding is not zero", offset + stop)
        position = padded
    return found


def _split_name(name: bytes) -> tuple[int, bytes]:
    for index, prefix in _PREFIXES.items():
        if index in _ACLS:
            if name == prefix:
                return index, b""
        elif name.startswith(prefix):
            suffix = name[len(prefix) :]
            if not suffix or len(suffix) > 0xFF or b"\0" in suffix:
                raise FormatError(f"xattr {name[:300]!r} has no usable name", field="xattr")
            return index, suffix
    namespace = name.split(b".", 1)[0]
    raise FormatError(
        f"xattr {name[:300]!r}: erofs cannot hold the namespace {namespace[:64]!r}",
        field="xattr",
        hint="user, trusted, security and system.posix_acl_access|default are possible",
    )


def _check_acl(name: bytes, value: bytes) -> None:
    # The kernel parses it on each permission check: a broken one makes the file unusable
    # (linux/posix_acl_xattr.h: le32 version 2, then entries of 8 bytes).
    if value[:4] != _ACL_VERSION or (len(value) - 4) % 8:
        raise FormatError(f"xattr {name!r} is not a version 2 posix acl", field="xattr")


def _broken(why: str, offset: int) -> FormatError:
    return FormatError(f"erofs xattrs at {offset}: {why}", field="xattr", offset=offset)
