"""The directories of snapshots: ``snapshots/ID/fs`` and, for a writable one, ``work`` beside it.

Rule 1. A directory that the catalogue does not list is garbage, and an id is never used twice.
Rule 2. Garbage is first renamed, while the catalogue cannot change, and then removed at leisure.
Rule 3. The files of a placeholder are there once its ``fs`` is: the rename is the commit.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

_GARBAGE: Final = "removed-"
_HALF: Final = "unpacking"
_libc = ctypes.CDLL(None, use_errno=True)


class SnapshotDirectories:
    """The folder ``snapshots`` below a root."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "snapshots"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def of(self, number: int) -> Path:
        """Return the directory of the snapshot with this id."""
        return self._folder / str(number)

    def files(self, number: int) -> Path:
        """Return the directory that holds the files of the snapshot with this id."""
        return self.of(number) / "fs"

    def make(self, number: int, *, writable: bool, like: Path | None) -> None:
        """Make the directories of a new snapshot; its root gets the owner of ``like``.

        Modes are those that containerd's overlayfs snapshotter gives.
        """
        own = self.of(number)
        if own.exists():
            self._discard(own)  # of a transaction that a crash undid
        own.mkdir(mode=0o700)
        try:
            files = own / "fs"
            files.mkdir()
            files.chmod(0o755)
            if writable:
                (own / "work").mkdir()
                (own / "work").chmod(0o711)
            if like is not None:
                owner = like.stat()
                os.chown(files, owner.st_uid, owner.st_gid)
        except BaseException:
            self._discard(own)
            raise

    def fill(self, number: int, unpack: Callable[[Path], None]) -> Path:
        """Have ``unpack`` make the files of a placeholder, unless they are there; return where.

        The caller sees to it that only one thread fills a directory. What is there after a power
        cut is whole: everything is on the disk before the rename.
        """
        files = self.files(number)
        if files.exists():
            return files
        files.parent.mkdir(mode=0o700, exist_ok=True)
        half = files.with_name(_HALF)
        if half.exists():
            shutil.rmtree(half)
        unpack(half)
        _sync_file_system(half)
        half.rename(files)
        _sync_file_system(files)
        return files

    def drop_unfinished(self) -> None:
        """Remove what a crash left half unpacked. Nothing may be unpacking."""
        for half in self._folder.glob(f"*/{_HALF}"):
            shutil.rmtree(half)

    def put_aside(self, living: Iterable[int]) -> None:
        """Rename what is not of a living snapshot; the catalogue must not change meanwhile."""
        names = {str(number) for number in living}
        for path in list(self._folder.iterdir()):
            if path.name not in names and not path.name.startswith(_GARBAGE):
                self._discard(path)

    def remove_garbage(self) -> list[OSError]:
        """Remove what was put aside; return what stood in the way."""
        problems: list[OSError] = []
        for path in list(self._folder.glob(f"{_GARBAGE}*")):
            try:
                shutil.rmtree(path)
            except FileNotFoundError:
                pass  # another cleanup was faster
            except OSError as error:
                problems.append(error)
        return problems

    def _discard(self, path: Path) -> None:
        path.rename(self._folder / f"{_GARBAGE}{path.name}-{secrets.token_hex(4)}")


def _sync_file_system(path: Path) -> None:
    """Call syncfs(2): one call for all files of a tree, where fsync(2) would be one for each."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)
