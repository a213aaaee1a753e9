"""The members of a plain tar file by name, read where they lie: nothing is unpacked."""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from pagein.errors import FormatError, NotFoundError
from pagein.types import ByteRange

MAX_MEMBERS: Final = 1 << 18
"""An image archive has a few members a layer; more is something else."""

_MAX_LINKS: Final = 8
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


def _scan(path: Path) -> dict[str, Member]:
    try:
        with path.open("rb") as stream:
            _check_plain(stream, path)
            return _index(stream, path)
    except FileNotFoundError:
        raise NotFoundError(f"no file {path}") from None
    except IsADirectoryError:
        raise FormatError(f"{path} is a directory, not an archive", hint="oci:DIR?") from None
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise FormatError(f"{path} is not a tar archive, or damaged: {error}") from None


def _check_plain(stream: BinaryIO, path: Path) -> None:
    head = stream.read(6)
    stream.seek(0)
    for magic, (name, command) in _COMPRESSED.items():
        if head.startswith(magic):
            raise FormatError(
                f"{path} is compressed with {name}", hint=f"unpack it first: {command} {path}"
            )


def _index(stream: BinaryIO, path: Path) -> dict[str, Member]:
    found: dict[str, Member] = {}
    links: dict[str, str] = {}
    count = 0
    with tarfile.TarFile(fileobj=stream) as archive:
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would keep them all
            count += 1
            if count > MAX_MEMBERS:
                raise FormatError(f"{path} has more than {MAX_MEMBERS} members")
            name = _clean(info.name)
            links.pop(name, None)
            found.pop(name, None)
            if info.issym():
                links[name] = _clean(posixpath.join(posixpath.dirname(name), info.linkname))
            elif info.islnk():
                links[name] = _clean(info.linkname)
            elif info.isreg() and not info.issparse():
                found[name] = Member(info.offset_data, info.size)
    for name in links:
        target = name
        for _ in range(_MAX_LINKS):
            target = links.get(target, target)
        if target in found:
            found[name] = found[target]
    return found


def _clean(name: str) -> str:
    return posixpath.normpath("/" + name).lstrip("/")
