"""The sector cache: a folder of files named by digest, shared by every image and process.

Rule 1. A file is written under a temporary name and renamed: it is whole, or it is not there.
Rule 2. No fsync: a power cut may leave anything in a file, and that is found, because each process
hashes a file before its first use of it. What it wrote itself counts as hashed.
Rule 3. Access time is the last use, modification time the use before it (`engine.eviction`). Files
are opened with O_NOATIME, so that the kernel does not count a hash as a use.
Rule 4. Eviction unlinks. Who has the file open goes on reading it; a process that reads looks once
a minute for open files that another one deleted, and lets go of their room.
Rule 5. The lock is for the dictionaries, never held across a system call on a file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pagein.engine.eviction import (
    KEEP_SHARE,
    TOUCH_PERIOD_NS,
    CacheEntry,
    after_use,
    scan_after,
    victims,
)
from pagein.errors import CacheError, CacheFullError, NotFoundError, SectorCorruptError
from pagein.events import Kind, Observer, SectorCorrupt, SectorEvicted, ignore
from pagein.store.atomic import temporary_beside, write_all
from pagein.store.source import OpenSector
from pagein.types import BLOCK_SIZE, MAX_SECTOR_SIZE, Buffer, Digest, Sector, SectorRef

OPEN_FILES: Final = 256
"""Of the 1024 descriptors that a process may have by default."""

_STALE_NS: Final = 3600 * 10**9
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ZEROS: Final = bytes(1 << 16)
_NAME: Final = "cache"
_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """Bytes on disk and number of sectors."""

    bytes: int
    sectors: int


@dataclass(slots=True)
class _Opened:
    file: OpenSector
    touch_at_ns: int


class DirectoryCache:
    """A `SectorCache` in a folder. Safe to call from any thread, and from several processes."""

    def __init__(
        self,
        path: Path,
        *,
        limit_bytes: int,
        observer: Observer = ignore,
        open_files: int = OPEN_FILES,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._path = path
        self._limit = limit_bytes
        self._observer = observer
        self._most_open = open_files
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Opened] = OrderedDict()
        self._verified: dict[str, int] = {}  # the inode that was hashed, by name
        self._unscanned = scan_after(limit_bytes)  # the first put looks at what is there
        self._scanning = threading.Lock()
        self._let_go_at_ns = now_ns() + TOUCH_PERIOD_NS

    def _file(self, name: str) -> Path:
        return self._path / name[:2] / name

    def peek(self, ref: SectorRef, /) -> OpenSector | None:
        """Return the sector as a file if this process has verified it: at most open(2), no hash."""
        name = ref.digest.hex
        with self._lock:
            opened = self._open.get(name)
            if opened is not None:
                self._open.move_to_end(name)
        now = self._now_ns()
        if now >= self._let_go_at_ns:
            self._let_go_of_deleted(now)
        if opened is None:
            return self._reopen(ref) if name in self._verified else None
        if now >= opened.touch_at_ns and not self._touch(opened):
            self._forget(name)
            return None
        return opened.file

    def open(self, ref: SectorRef, /) -> OpenSector | None:
        """Return the sector as a file, verified by this process at least once; None if absent."""
        found = self.peek(ref)
        if found is not None:
            return found
        try:
            self.get(ref)
        except NotFoundError:
            return None
        return self.peek(ref)

    def get(self, ref: SectorRef, /, *, kind: Kind = Kind.DEMAND) -> Sector:
        """Read and verify a sector. NotFoundError: absent, or dropped because it was damaged;
        CacheError: the disk does not let us look."""
        del kind
        try:
            file = self._open_file(ref)
            data = os.pread(file.fd, ref.size + 1, 0)
            inode = os.fstat(file.fd).st_ino
        except FileNotFoundError:
            raise NotFoundError(f"sector {ref.digest} is not in the cache") from None
        except OSError as error:
            raise CacheError(f"cannot read cached sector {ref.digest}: {error.strerror}") from None
        try:
            sector = Sector.verify(ref, data)
        except SectorCorruptError:
            self._observer(SectorCorrupt(ref.digest, _NAME))
            self.remove(ref)
            raise NotFoundError(f"cached sector {ref.digest} was damaged") from None
        self._keep_open(ref.digest.hex, file, inode)
        return sector

    def _open_file(self, ref: SectorRef) -> OpenSector:
        path = self._file(ref.digest.hex)
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(path, flags | os.O_NOATIME)
        except PermissionError:  # not our file: open(2) keeps O_NOATIME to owners
            descriptor = os.open(path, flags)
        return OpenSector(descriptor, ref.size)

    def _reopen(self, ref: SectorRef) -> OpenSector | None:
        """Open what was verified and fell out of the open files."""
        name = ref.digest.hex
        try:
            file = self._open_file(ref)
            status = os.fstat(file.fd)
        except OSError:
            self._forget(name)
            return None
        if status.st_size != ref.size or self._verified.get(name) != status.st_ino:
            self._forget(name)
            return None
        self._keep_open(name, file, status.st_ino)
        return file

    def _keep_open(self, name: str, file: OpenSector, inode: int, *, touched: bool = False) -> None:
        opened = _Opened(file, self._now_ns() + TOUCH_PERIOD_NS)
        if not touched:
            self._touch(opened)
        with self._lock:
            self._verified[name] = inode
            self._open[name] = opened
            self._open.move_to_end(name)
            dropped = self._open.popitem(last=False) if len(self._open) > self._most_open else None
        del dropped  # its descriptor is closed here, outside the lock

    def _touch(self, opened: _Opened) -> bool:
        """Note a use on the disk; False: another process has deleted the file.

        Going on with it would keep its room, and keep the sector from being written anew.
        """
        now = self._now_ns()
        opened.touch_at_ns = now + TOUCH_PERIOD_NS
        with contextlib.suppress(OSError):
            status = os.fstat(opened.file.fd)
            times = after_use(status.st_atime_ns, status.st_mtime_ns, now)
            os.utime(opened.file.fd, ns=times)
            return status.st_nlink > 0
        return True

    def _let_go_of_deleted(self, now: int) -> None:
        """Close files that another process evicted and that nobody here reads any more.

        They would keep their room on the disk: up to 1 GiB a process, of which there may be many.
        """
        self._let_go_at_ns = now + TOUCH_PERIOD_NS
        with self._lock:
            held = [(name, opened.file) for name, opened in self._open.items()]
        for name, file in held:
            if os.fstat(file.fd).st_nlink == 0:
                self._forget(name)

    def put(self, sector: Sector, /) -> None:
        """Keep a sector. Raises CacheError if it was not kept; nothing half-written is left."""
        name = sector.digest.hex
        path = self._file(name)
        try:
            if name in self._verified and path.exists():
                return
            file = self._write(path, sector.data)
            status = os.fstat(file.fd)
        except OSError as error:
            full = error.errno in _FULL
            raise (CacheFullError if full else CacheError)(
                f"cannot keep sector {sector.digest} in {self._path}: {error.strerror}",
                hint="make room on that disk, or set a smaller cache_size" if full else None,
            ) from None
        self._keep_open(name, file, status.st_ino, touched=True)
        self._account(status.st_blocks * 512)

    def _write(self, path: Path, data: Buffer) -> OpenSector:
        temporary = temporary_beside(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(temporary, flags, 0o600)
        except FileNotFoundError:  # the first of its folder, or the cache was deleted under us
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(temporary, flags, 0o600)
        file = OpenSector(descriptor, len(data))
        try:
            write_all(descriptor, memoryview(data)[: _without_trailing_zeros(data)])
            os.ftruncate(descriptor, len(data))
            os.utime(descriptor, ns=(self._now_ns(), 0))
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        return file

    def _account(self, size: int) -> None:
        with self._lock:
            self._unscanned += size
            due = self._unscanned >= scan_after(self._limit)
        if not due or not self._scanning.acquire(blocking=False):
            return
        try:
            with self._lock:
                self._unscanned = 0
            entries = list(self._entries())
            if sum(entry.size for entry in entries) > self._limit:
                self._drop(victims(entries, to_bytes=int(self._limit * KEEP_SHARE)))
        finally:
            self._scanning.release()

    def _entries(self) -> Iterator[CacheEntry]:
        """Yield what is on disk; remove what a killed process left behind."""
        for file in self._files():
            with contextlib.suppress(FileNotFoundError):
                status = file.stat(follow_symlinks=False)
                if _is_sector_name(file.name):
                    yield CacheEntry(
                        file.name, status.st_blocks * 512, status.st_atime_ns, status.st_mtime_ns
                    )
                # utime(2) has set the other times of a file about to be renamed: ctime is honest.
                elif file.name.endswith(".tmp") and self._now_ns() - status.st_ctime_ns > _STALE_NS:
                    Path(file.path).unlink()

    def _files(self) -> Iterator[os.DirEntry[str]]:
        for prefix in range(256):
            with (
                contextlib.suppress(FileNotFoundError, NotADirectoryError),
                os.scandir(self._path / f"{prefix:02x}") as folder,
            ):
                yield from folder

    def _drop(self, entries: list[CacheEntry]) -> int:
        freed = 0
        for entry in entries:
            self._forget(entry.name)
            with contextlib.suppress(FileNotFoundError):  # another process evicts the same ones
                self._file(entry.name).unlink()
                freed += entry.size
                self._observer(SectorEvicted(Digest(entry.name), entry.size))
        return freed

    def _forget(self, name: str) -> None:
        with self._lock:
            opened = self._open.pop(name, None)
            self._verified.pop(name, None)
        del opened  # closed outside the lock

    def remove(self, ref: SectorRef, /) -> None:
        """Forget the sector; absent is no error."""
        self._forget(ref.digest.hex)
        with contextlib.suppress(OSError):
            self._file(ref.digest.hex).unlink()

    def refs(self) -> Iterator[str]:
        """Yield the hex digest of every sector held."""
        return (file.name for file in self._files() if _is_sector_name(file.name))

    def du(self) -> CacheUsage:
        """Add up what is on disk."""
        entries = list(self._entries())
        return CacheUsage(sum(entry.size for entry in entries), len(entries))

    def prune(self, to_bytes: int) -> int:
        """Drop sectors, the least useful first, until at most ``to_bytes`` are left; return the
        bytes freed."""
        return self._drop(victims(self._entries(), to_bytes=to_bytes))

    def verify(self) -> tuple[int, int]:
        """Hash every sector again and drop the bad ones; return how many of each."""
        checked = dropped = 0
        for name in list(self.refs()):
            try:
                with self._file(name).open("rb", buffering=0) as stream:
                    found = Digest.of(stream.read(MAX_SECTOR_SIZE + 1)).hex
            except FileNotFoundError:
                continue
            except OSError:
                found = ""
            checked += 1
            if found != name:
                dropped += 1
                self._observer(SectorCorrupt(Digest(name), _NAME))
                self._forget(name)
                self._file(name).unlink(missing_ok=True)
        return checked, dropped


def _is_sector_name(name: str) -> bool:
    return len(name) == 64 and _HEX.issuperset(name)


def _without_trailing_zeros(data: Buffer) -> int:
    """Return the length up to the last block that is not all zero: the rest becomes a hole."""
    view = memoryview(data)
    end = len(view)
    for step in (len(_ZEROS), BLOCK_SIZE):
        while end >= step and view[end - step : end] == _ZEROS[:step]:
            end -= step
    return end
