"""Tar archives, read forward once: ustar, PAX, GNU, star and v7 headers, sparse files.

Not `tarfile`: it allocates what a header claims before it reads it, gives times as floats and
names as text, and takes longer an entry (50,000 small files, one core: GNU headers 21 us, here 8;
PAX headers of three records 50 us, here 23).

Rule 1. Nothing is allocated on a header's word: see `MAX_PAX`, `MAX_NAME`, `MAX_SEGMENTS`.
Rule 2. A type we do not know is an error, not a guess: skipping it could drop a file. Only GNU
        volume labels (``V``) hold no file.
Rule 3. Where archives are read in more than one way, Go's archive/tar decides, because containerd
        unpacks with it: links and directories have no data whatever their size says; a trailing
        slash makes a directory only of type NUL (v7). Global PAX headers, which Go ignores, apply
        as POSIX says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from pagein.errors import FormatError
from pagein.format import tar_sparse
from pagein.format.compression import ByteStream
from pagein.format.tar_fields import decimal, header_time, number, pax_records, pax_time
from pagein.format.tree import NodeKind

MAX_PAX: Final = 1 << 20
"""Bytes of one PAX header, and of all global records together."""

MAX_NAME: Final = 64 << 10
"""Bytes of a GNU long name or link target."""

MAX_FILE_SIZE: Final = 1 << 44
"""Logical bytes of a file (16 TiB, what ext4 can hold); a larger claim is an attack."""

CHUNK_SIZE: Final = 1 << 20
"""The longest piece that `TarEntry.chunks` gives."""


class LinkKind(Enum):
    """What an entry is when it is not an inode of its own."""

    HARDLINK = "hard link"


HARDLINK: Final = LinkKind.HARDLINK

Records = list[tuple[bytes, bytes]]

_BLOCK: Final = 512
_ZERO_BLOCK = bytes(_BLOCK)
# name mode uid gid size mtime checksum type linkname magic+version (uname gname) major minor prefix
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12x")
_CHECKSUM = slice(148, 156)
_STAR_MAGIC = slice(508, 512)
_STAR_PREFIX_LENGTH = 131
_REAL_SIZE = slice(483, 495)
_XATTR = b"SCHILY.xattr."
_MAX_ID: Final = (1 << 32) - 2  # the last value means "leave as is" to chown(2)

_KINDS: dict[bytes, NodeKind | LinkKind] = {
    b"0": NodeKind.FILE,
    b"\0": NodeKind.FILE,
    b"7": NodeKind.FILE,
    b"S": NodeKind.FILE,
    b"1": HARDLINK,
    b"2": NodeKind.SYMLINK,
    b"3": NodeKind.CHAR_DEVICE,
    b"4": NodeKind.BLOCK_DEVICE,
    b"5": NodeKind.DIRECTORY,
    b"6": NodeKind.FIFO,
}
_LINKS = (HARDLINK, NodeKind.SYMLINK)


@dataclass(slots=True, eq=False)
class TarEntry:
    """One entry, names as the archive has them. ``size`` is logical: holes count.

    ``mode`` holds the 12 permission bits. ``link_target`` is of a symlink or of a hard link (a
    path in the tree).
    """

    path: bytes
    kind: NodeKind | LinkKind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    link_target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    segments: tar_sparse.SparseMap = ()
    _archive: _Archive | None = field(default=None, repr=False)
    _serial: int = field(default=0, repr=False)

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """Yield ``(logical offset, bytes)`` in order, holes left out, up to 1 MiB each.

        One pass, and only until the next entry is read. Raises FormatError where the archive ends.
        """
        archive = self._archive
        for start, length in self.segments if archive else ():
            at, end = start, start + length
            while at < end:
                if archive is None or archive.serial != self._serial:
                    raise RuntimeError("the archive was read past this entry")
                data = archive.data(min(end - at, CHUNK_SIZE))
                yield at, data
                at += len(data)


def read_entries(stream: ByteStream) -> Iterator[TarEntry]:
    """Yield the entries of the archive in ``stream``, which should be buffered.

    Data that the caller did not take is passed over when the next entry is asked for. Ends after
    two zero blocks, or where the input ends between entries; what follows stays in ``stream``.
    Raises FormatError, with the offset, for anything that is not a whole, well-formed archive.
    """
    return _Archive(stream).entries()


@dataclass(slots=True)
class _Extended:
    """What the headers before an entry say about it."""

    records: Records = field(default_factory=list)
    name: bytes | None = None
    link: bytes | None = None


class _Archive:
    """Position in the stream, and what belongs to more than one entry."""

    __slots__ = ("_globals", "_left", "_padding", "_start", "_stream", "offset", "serial")

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._globals: dict[bytes, bytes] = {}
        self._left = 0
        self._padding = 0
        self._start = 0
        self.offset = 0
        self.serial = 0

    def entries(self) -> Iterator[TarEntry]:
        extended = _Extended()
        while header := self._header():
            kind = header[156:157]
            try:
                if kind in b"xXgLK":
                    self._extend(extended, kind, number(header[124:136]))
                    continue
                entry = self._entry(header, kind, extended)
            except FormatError as error:
                raise FormatError(
                    f"tar header at byte {self._start}: {error}",
                    field=error.field,
                    offset=self._start,
                ) from error
            extended = _Extended()
            if entry is not None:
                yield entry
            self._finish()
        if extended != _Extended():  # a header that belongs to an entry which never came
            raise self._truncated()

    def data(self, size: int) -> bytes:
        """Read up to ``size`` bytes of the current entry, at least one."""
        data = self._stream.read(size)
        if not data:
            raise self._truncated()
        self.offset += len(data)
        self._left -= len(data)
        return data

    def _finish(self) -> None:
        """Pass over what is left of the current entry.

        An archive may end in the padding (Rule 3): umoci 0.4 leaves it out at the end of a layer.
        """
        self.serial += 1
        while self._left:
            self.data(min(self._left, CHUNK_SIZE))
        while self._padding and (piece := self._stream.read(self._padding)):
            self.offset += len(piece)
            self._padding -= len(piece)

    def _begin(self, size: int) -> None:
        self._left = size
        self._padding = -size % _BLOCK

    def _truncated(self) -> FormatError:
        return FormatError(f"tar archive ends early, at byte {self.offset}", offset=self.offset)

    def _exactly(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.offset += len(data)
        while len(data) < size:
            more = self._stream.read(size - len(data))
            if not more:
                raise self._truncated()
            self.offset += len(more)
            data += more
        return data

    def _header_block(self) -> bytes:
        """Read 512 bytes, or nothing at the end of the input."""
        block = self._stream.read(_BLOCK)
        self.offset += len(block)
        if 0 < len(block) < _BLOCK:
            block += self._exactly(_BLOCK - len(block))
        return block

    def _header(self) -> bytes:
        """Read the next header with a right checksum; nothing at the end of the archive."""
        self._start = self.offset
        block = self._header_block()
        if not block:
            return b""
        if block == _ZERO_BLOCK:
            second = self._header_block()
            if second and second != _ZERO_BLOCK:
                raise FormatError(
                    f"tar archive goes on after a lone zero block, at byte {self._start}",
                    offset=self._start,
                )
            return b""
        checksum = block[_CHECKSUM]
        total = sum(block) - sum(checksum) + 8 * 0x20
        try:
            stored = number(checksum)
        except FormatError:
            stored = -1
        if stored != total and stored != _signed_sum(block):
            raise FormatError(
                f"tar header at byte {self._start} has a bad checksum", offset=self._start
            )
        return block

    def _data_block(self) -> bytes:
        """Read one whole block that belongs to the current entry's data."""
        if self._left + self._padding < _BLOCK:
            raise FormatError("sparse map is longer than the entry", field="GNU.sparse")
        block = self._extension()
        taken = min(self._left, _BLOCK)
        self._left -= taken
        self._padding -= _BLOCK - taken
        return block

    def _extension(self) -> bytes:
        return self._exactly(_BLOCK)

    def _extend(self, extended: _Extended, kind: bytes, size: int) -> None:
        limit = MAX_NAME if kind in b"LK" else MAX_PAX
        if not 0 <= size <= limit:
            raise FormatError(f"{size} bytes of extended header, at most {limit} are read")
        data = self._exactly(size + -size % _BLOCK)[:size]
        if kind == b"L":
            extended.name = data.partition(b"\0")[0]
        elif kind == b"K":
            extended.link = data.partition(b"\0")[0]
        elif kind == b"g":
            self._globals.update(pax_records(data))
            if sum(len(key) + len(value) for key, value in self._globals.items()) > MAX_PAX:
                raise FormatError(f"more than {MAX_PAX} bytes of global pax records", field="pax")
        else:
            extended.records = pax_records(data)

    def _entry(self, header: bytes, flag: bytes, extended: _Extended) -> TarEntry | None:
        name, mode, uid, gid, size, mtime, _, _, link, magic, major, minor, prefix = _HEADER.unpack(
            header
        )
        path = name.partition(b"\0")[0]
        posix = magic.startswith(b"ustar\0")
        if posix and prefix[0]:
            if header[_STAR_MAGIC] == b"tar\0":
                prefix = prefix[:_STAR_PREFIX_LENGTH]
            path = prefix.partition(b"\0")[0] + b"/" + path
        kind = _KINDS.get(flag)
        if kind is None and flag != b"V":
            raise FormatError(f"entry {path[:100]!r} has unknown type {flag!r}", field="typeflag")
        entry = TarEntry(
            path, kind or NodeKind.FILE, number(mode) & 0o7777, mtime_ns=header_time(number(mtime))
        )
        stored = number(size)
        if kind in _LINKS:
            entry.link_target = link.partition(b"\0")[0]
        elif (kind is NodeKind.CHAR_DEVICE or kind is NodeKind.BLOCK_DEVICE) and magic[0]:
            entry.device = (number(major), number(minor))
        records = extended.records
        if records or self._globals:
            pax = {**self._globals, **dict(records)} if self._globals else dict(records)
            stored = _apply(entry, pax, stored)
            entry.uid = _owner(pax, b"uid", uid)
            entry.gid = _owner(pax, b"gid", gid)
        else:
            pax = {}
            entry.uid, entry.gid = number(uid), number(gid)
        if extended.name is not None:
            entry.path = extended.name
        if extended.link is not None and kind in _LINKS:
            entry.link_target = extended.link
        if not (0 <= entry.uid <= _MAX_ID and 0 <= entry.gid <= _MAX_ID):
            raise FormatError(f"owner {entry.uid}:{entry.gid} out of range", field="uid")
        self._place(entry, header, flag, stored, pax, records)
        return None if kind is None else entry

    def _place(
        self,
        entry: TarEntry,
        header: bytes,
        flag: bytes,
        stored: int,
        pax: dict[bytes, bytes],
        records: Records,
    ) -> None:
        """Set where the data lies and how long the file is."""
        entry._archive, entry._serial = self, self.serial
        if entry.kind is not NodeKind.FILE:
            stored = 0
        if not 0 <= stored <= MAX_FILE_SIZE:
            raise FormatError(f"size {stored} out of range", field="size")
        self._begin(stored)
        entry.size = stored
        if flag == b"\0" and entry.path.endswith(b"/"):
            entry.kind, entry.size = NodeKind.DIRECTORY, 0
        elif flag == b"S":
            entry.size = number(header[_REAL_SIZE])
            self._sparse(entry, tar_sparse.gnu_map(header, self._extension))
        elif pax and any(key.startswith(b"GNU.sparse.") for key in pax):
            self._pax_sparse(entry, pax, records)
        elif stored:
            entry.segments = ((0, stored),)

    def _pax_sparse(self, entry: TarEntry, pax: dict[bytes, bytes], records: Records) -> None:
        major, minor = pax.get(b"GNU.sparse.major", b"0"), pax.get(b"GNU.sparse.minor", b"0")
        entry.path = pax.get(b"GNU.sparse.name", entry.path)
        size = pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size")
        if size is not None:
            entry.size = decimal(size, "GNU.sparse.size")
        if (major, minor) == (b"1", b"0"):
            self._sparse(entry, tar_sparse.pax_map_1(self._data_block))
        elif major == b"0":
            found = tar_sparse.pax_map_0(records)
            self._sparse(entry, [(0, self._left)] if found is None else found)
        else:
            raise FormatError(f"unknown sparse format {major!r}.{minor!r}", field="GNU.sparse")

    def _sparse(self, entry: TarEntry, segments: list[tuple[int, int]]) -> None:
        if not 0 <= entry.size <= MAX_FILE_SIZE:
            raise FormatError(f"size {entry.size} out of range", field="size")
        entry.segments = tar_sparse.checked(segments, entry.size, self._left)


def _apply(entry: TarEntry, pax: dict[bytes, bytes], stored: int) -> int:
    """Let PAX records override the header; an empty one is none. Returns the stored size."""
    entry.path = pax.get(b"path") or entry.path
    if entry.kind in _LINKS:
        entry.link_target = pax.get(b"linkpath") or entry.link_target
    if mtime := pax.get(b"mtime"):
        entry.mtime_ns = pax_time(mtime)
    for key, value in pax.items():
        if value and key.startswith(_XATTR):
            entry.xattrs[key[len(_XATTR) :]] = value
    size = pax.get(b"size")
    return decimal(size, "size") if size else stored


def _owner(pax: dict[bytes, bytes], key: bytes, header: bytes) -> int:
    """Read an owner; the header's field may be unusable where the record replaces it."""
    value = pax.get(key)
    return decimal(value, key.decode()) if value else number(header)


def _signed_sum(block: bytes) -> int:
    """Sum a header as the old tars did whose ``char`` was signed."""
    rest = block[: _CHECKSUM.start] + block[_CHECKSUM.stop :]
    return sum(rest) - 256 * sum(byte > 0x7F for byte in rest) + 8 * 0x20
