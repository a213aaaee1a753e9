"""The members of a plain tar file by name, read where they lie: nothing is unpacked."""

from __future__ import annotations

import io
import os
import posixpath
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from pagein.errors import FormatError, NotFoundError, UsageError
from pagein.format.tar import HARDLINK, read_entries
from pagein.format.tree import NodeKind
from pagein.types import ByteRange

MAX_MEMBERS: Final = 1 << 18
"""An image archive has a few members a layer; more is something else."""

_MAX_LINKS: Final = 8
_ZEROS: Final = bytes(1 << 20)
_COMPRESSED: Final = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"BZh": ("bzip2", "bunzip2"),
}


@dataclass(frozen=True, slots=True)
class Member:
    """``size`` bytes of the archive from ``offset``."""

    offset: int
    size: int


class _Section(io.RawIOBase):
    """One member as a file. Does not own the descriptor."""

    def __init__(self, descriptor: int, member: Member) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._at, self._end = member.offset, member.offset + member.size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")[: self._end - self._at]
        count = os.preadv(self._descriptor, [view], self._at) if view else 0
        self._at += count
        return count


class TarMembers:
    """The regular files of an archive. Scanned once, at the first use; safe from any thread.

    Names are cleaned (``./a`` is ``a``); the last of equal names counts, as for tar itself.
    Symlinks and hard links count as what they lead to inside the archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._members: dict[str, Member] | None = None

    def find(self, name: str) -> Member | None:
        """Return the member of that name. Raises FormatError for what is not a plain tar."""
        with self._lock:
            if self._members is None:
                self._members = _scan(self.path)
            return self._members.get(name)

    def _member(self, name: str) -> Member:
        member = self.find(name)
        if member is None:
            raise NotFoundError(f"no {name} in {self.path}")
        return member

    def read(self, name: str, *, limit: int) -> bytes:
        """Return a whole member of at most ``limit`` bytes."""
        member = self._member(name)
        if member.size > limit:
            raise FormatError(f"{name} in {self.path} has more than {limit} bytes", field="size")
        with self.open(name) as stream:
            return stream.read()

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Stream a member."""
        member = self._member(name)
        with self.path.open("rb", buffering=0) as archive:
            yield io.BufferedReader(_Section(archive.fileno(), member), 1 << 20)

    def pread(self, name: str, span: ByteRange) -> bytes:
        """Return exactly ``span.length`` bytes of a member."""
        member = self._member(name)
        if span.stop > member.size:
            raise FormatError(f"{name} in {self.path} ends before byte {span.stop}", field="size")
        with self.path.open("rb", buffering=0) as archive:
            data = os.pread(archive.fileno(), span.length, member.offset + span.start)
        if len(data) != span.length:
            raise FormatError(f"{self.path} was cut short", field="size")
        return data


class _Headers:
    """The archive as a stream in which data that nobody wants costs no reading: it shows as
    zeros."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self.end = size
        self.at = 0
        self.data_end = 0

    def read(self, size: int = -1, /) -> bytes:
        if self.at < self.data_end:
            piece = _ZEROS[: min(size, self.data_end - self.at)]
        else:
            piece = os.pread(self._descriptor, min(size, self.end - self.at), self.at)
        self.at += len(piece)
        return piece


def _scan(path: Path) -> dict[str, Member]:
    try:
        with path.open("rb", buffering=0) as stream:
            _check_plain(os.pread(stream.fileno(), 6, 0), path)
            headers = _Headers(stream.fileno(), os.fstat(stream.fileno()).st_size)
            return _index(headers)
    except FileNotFoundError:
        raise NotFoundError(f"no file {path}") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a directory, not an archive", hint="oci:DIR?") from None
    except OSError as error:
        raise UsageError(f"cannot read archive {path}: {error.strerror}") from None
    except FormatError as error:
        raise FormatError(f"archive {path}: {error}", hint=error.hint) from None


def _check_plain(head: bytes, path: Path) -> None:
    for magic, (name, command) in _COMPRESSED.items():
        if head.startswith(magic):
            raise FormatError(
                f"it is compressed with {name}", hint=f"unpack it first: {command} {path}"
            )


def _index(headers: _Headers) -> dict[str, Member]:
    """Our reader and not `tarfile`: that one allocates whatever size an extended header claims."""
    found: dict[str, Member] = {}
    links: dict[str, str] = {}
    for count, entry in enumerate(read_entries(headers), 1):
        if count > MAX_MEMBERS:
            raise FormatError(f"it has more than {MAX_MEMBERS} members")
        name = _clean(os.fsdecode(entry.path))
        links.pop(name, None)
        found.pop(name, None)
        target = os.fsdecode(entry.link_target)
        if entry.kind is NodeKind.SYMLINK:
            links[name] = _clean(posixpath.join(posixpath.dirname(name), target))
        elif entry.kind is HARDLINK:
            links[name] = _clean(target)
        elif entry.kind is NodeKind.FILE and entry.segments in ((), ((0, entry.size),)):
            if headers.at + entry.size > headers.end:
                raise FormatError(f"it ends early, inside {name!r}")
            found[name] = Member(headers.at, entry.size)
            headers.data_end = headers.at + entry.size
    for name in links:
        target = name
        for _ in range(_MAX_LINKS):
            target = links.get(target, target)
        if target in found:
            found[name] = found[target]
    return found


def _clean(name: str) -> str:
    return posixpath.normpath("/" + name).lstrip("/")
