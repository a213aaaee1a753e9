"""The sector cache: a folder of files named by digest, shared by every image and process.

Rule 1. A file is written under a temporary name and renamed: it is whole, or it is not there.
Rule 2. No fsync: after a power cut a file may hold anything, and that is found, because a process
verifies each file before its first use of it.
Rule 3. Access time: the last use. Modification time: the use before it (see `engine.eviction`).
Rule 4. Eviction unlinks. Who has the file open goes on reading it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pagein.engine.eviction import KEEP_SHARE, CacheEntry, victims
from pagein.errors import CacheError, CacheFullError, NotFoundError
from pagein.events import Kind, Observer, SectorCorrupt, SectorEvicted, ignore
from pagein.store.atomic import temporary_beside, write_all
from pagein.store.source import OpenSector
from pagein.types import BLOCK_SIZE, Buffer, Digest, Sector, SectorRef

OPEN_FILES: Final = 256
TOUCH_EVERY_NS: Final = 60 * 10**9
"""A use within a minute of the last one is the same use: a burst of reads is one."""

_SCAN_SHARE: Final = 32
_LEAST_SCAN: Final = 64 << 20
_STALE_NS: Final = 3600 * 10**9
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ZEROS: Final = bytes(1 << 16)


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """Bytes on disk and number of sectors."""

    bytes: int
    sectors: int


class DirectoryCache:
    """A `SectorCache` in a folder. Safe to call from any thread, and from several processes."""

    def __init__(self, path: Path, *, limit_bytes: int, observer: Observer = ignore) -> None:
        self._path = path
        self._limit = limit_bytes
        self._observer = observer
        self._lock = threading.Lock()
        self._open: OrderedDict[str, OpenSector] = OrderedDict()
        self._verified: dict[str, tuple[int, int]] = {}  # inode and size of what was hashed
        self._touched: dict[str, int] = {}
        self._unscanned = max(limit_bytes // _SCAN_SHARE, _LEAST_SCAN)
        self._scanning = threading.Lock()

    def _file(self, name: str) -> Path:
        return self._path / name[:2] / name

    def peek(self, ref: SectorRef) -> OpenSector | None:
        """Return the sector as a file if it is open already: no system call, no wait."""
        name = ref.digest.hex
        with self._lock:
            found = self._open.get(name)
            if found is not None:
                self._open.move_to_end(name)
        return found

    def open(self, ref: SectorRef, /) -> OpenSector | None:
        """Return the sector as a file, verified by this process at least once; None if absent."""
        name = ref.digest.hex
        found = self.peek(ref)
        if found is None:
            found = self._open_file(ref)
            if found is None:
                return None
            self._keep_open(name, found)
        self._touch(name, found.fd)
        return found

    def _open_file(self, ref: SectorRef) -> OpenSector | None:
        name = ref.digest.hex
        try:
            descriptor = os.open(self._file(name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheError(f"cannot open cached sector {ref.digest}: {error.strerror}") from None
        found = OpenSector(descriptor, ref.size)
        status = os.fstat(descriptor)
        if self._verified.get(name) != (status.st_ino, status.st_size):
            if not _is_intact(descriptor, status.st_size, ref):
                self._observer(SectorCorrupt(ref.digest, "cache"))
                self.remove(ref)
                return None
            self._verified[name] = (status.st_ino, status.st_size)
        return found

    def _keep_open(self, name: str, opened: OpenSector) -> None:
        with self._lock:
            self._open[name] = opened
            self._open.move_to_end(name)
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)

    def _touch(self, name: str, descriptor: int) -> None:
        now = time.time_ns()
        last = self._touched.get(name, 0)
        if now - last < TOUCH_EVERY_NS:
            return
        self._touched[name] = now
        with contextlib.suppress(OSError):
            os.utime(descriptor, ns=(now, os.fstat(descriptor).st_atime_ns))

    def get(self, ref: SectorRef, /, *, kind: Kind = Kind.DEMAND) -> Sector:
        """Return a sector held. Raises NotFoundError, or CacheError where the disk fails."""
        del kind
        found = self.open(ref)
        if found is None:
            raise NotFoundError(f"sector {ref.digest} is not in the cache")
        data = os.pread(found.fd, ref.size, 0)
        if len(data) != ref.size:
            self.remove(ref)
            raise NotFoundError(f"cached sector {ref.digest} was cut short")
        return Sector(ref.digest, data)

    def put(self, sector: Sector, /) -> None:
        """Keep a sector. Raises CacheError if it was not kept; nothing half-written is left."""
        name = sector.digest.hex
        path = self._file(name)
        if path.exists():
            return
        try:
            descriptor = self._write(path, sector.data)
        except OSError as error:
            kind = CacheFullError if error.errno in _FULL else CacheError
            raise kind(f"cannot keep sector {sector.digest}: {error.strerror}") from None
        status = os.fstat(descriptor)
        self._verified[name] = (status.st_ino, status.st_size)
        self._touched[name] = time.time_ns()
        self._keep_open(name, OpenSector(descriptor, len(sector.data)))
        self._account(len(sector.data))

    def _write(self, path: Path, data: Buffer) -> int:
        temporary = temporary_beside(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            descriptor = os.open(temporary, flags, 0o600)
        except FileNotFoundError:  # the first of its folder, or the cache was deleted under us
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(temporary, flags, 0o600)
        try:
            write_all(descriptor, memoryview(data)[: _without_trailing_zeros(data)])
            os.ftruncate(descriptor, len(data))
            os.utime(descriptor, ns=(time.time_ns(), 0))
            temporary.rename(path)
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        return descriptor

    def _account(self, size: int) -> None:
        with self._lock:
            self._unscanned += size
            due = self._unscanned >= max(self._limit // _SCAN_SHARE, _LEAST_SCAN)
            if due:
                self._unscanned = 0
        if due and self._scanning.acquire(blocking=False):
            try:
                entries = self._entries()
                if sum(entry.size for entry in entries) > self._limit:
                    self._drop(victims(entries, int(self._limit * KEEP_SHARE)))
            finally:
                self._scanning.release()

    def _entries(self) -> list[CacheEntry]:
        found = []
        now = time.time_ns()
        for path in self._files():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if path.name.startswith("."):
                if now - status.st_ctime_ns > _STALE_NS:  # left behind by a killed process
                    path.unlink(missing_ok=True)
                continue
            found.append(
                CacheEntry(
                    path.name, status.st_blocks * 512, status.st_atime_ns, status.st_mtime_ns
                )
            )
        return found

    def _files(self) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError):
            for folder in sorted(self._path.iterdir()):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    yield from sorted(folder.iterdir())

    def _drop(self, entries: list[CacheEntry]) -> int:
        freed = 0
        for entry in entries:
            self._forget(entry.name)
            with contextlib.suppress(FileNotFoundError):
                self._file(entry.name).unlink()
                freed += entry.size
                self._observer(SectorEvicted(Digest(entry.name), entry.size))
        return freed

    def _forget(self, name: str) -> None:
        with self._lock:
            self._open.pop(name, None)
        self._verified.pop(name, None)
        self._touched.pop(name, None)

    def remove(self, ref: SectorRef, /) -> None:
        """Forget the sector; absent is no error."""
        self._forget(ref.digest.hex)
        with contextlib.suppress(OSError):
            self._file(ref.digest.hex).unlink()

    def refs(self) -> Iterator[str]:
        """Yield the hex digest of every sector held."""
        return (path.name for path in self._files() if not path.name.startswith("."))

    def du(self) -> CacheUsage:
        """Add up what is on disk."""
        entries = self._entries()
        return CacheUsage(sum(entry.size for entry in entries), len(entries))

    def prune(self, to_bytes: int) -> int:
        """Drop sectors until at most ``to_bytes`` are left; return the bytes freed."""
        return self._drop(victims(self._entries(), to_bytes))

    def verify(self) -> tuple[int, int]:
        """Hash every sector again and drop the bad ones; return how many of each."""
        checked = dropped = 0
        for name in list(self.refs()):
            checked += 1
            digest = hashlib.sha256()
            try:
                with self._file(name).open("rb") as stream:
                    while piece := stream.read(1 << 20):
                        digest.update(piece)
            except OSError:
                digest.update(b"unreadable")
            if digest.hexdigest() != name:
                dropped += 1
                self._forget(name)
                self._file(name).unlink(missing_ok=True)
        return checked, dropped


def _is_intact(descriptor: int, size: int, ref: SectorRef) -> bool:
    if size != ref.size:
        return False
    try:
        data = os.pread(descriptor, size, 0)
    except OSError:
        return False
    return len(data) == size and hashlib.sha256(data).hexdigest() == ref.digest.hex


def _without_trailing_zeros(data: Buffer) -> int:
    """Return the length up to the last 64 KiB that are not all zero: the rest becomes a hole."""
    view = memoryview(data)
    end = len(view)
    while end:
        start = max(0, end - len(_ZEROS))
        if view[start:end] != _ZEROS[: end - start]:
            break
        end = start
    return -(-end // BLOCK_SIZE) * BLOCK_SIZE if end < len(view) else len(view)
