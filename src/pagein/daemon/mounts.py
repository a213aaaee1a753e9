"""The mounts of this machine: a folder for each, made and locked by the process that serves it.

A folder holds ``mount.json`` (written when the tree is usable), ``control.sock``, ``log`` and
``lock``. The serving process holds a lock on ``lock`` as long as it lives; a folder whose lock is
free belongs to a dead process, and the next command clears it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pagein.daemon.control import ask
from pagein.daemon.paths import Paths
from pagein.device.mount import is_mount_point, unmount
from pagein.errors import DeviceError, NotFoundError, PageinError, UsageError
from pagein.store.atomic import write_durably

_GONE_S = 15.0
_UNFINISHED_S = 60.0


class MountRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One live mount. ``started`` is in seconds since the epoch; digests are in text form."""

    id: str
    reference: str
    target: str
    artifact: str
    index: str
    backend: str
    writable: bool
    pid: int
    size: int
    started: float


class MountFolder:
    """The folder of one mount, under ``/run/pagein/mounts``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, paths: Paths) -> tuple[MountFolder, int]:
        """Make a new folder with a name of its own, and take its lock.

        The descriptor holds the lock until every process has closed it. The folder gets its name
        when it is locked: under its name, an open lock means a dead process.
        """
        name = secrets.token_hex(6)
        unfinished = paths.make(paths.make(paths.mounts) / f".{name}")
        lock = os.open(unfinished / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return cls(unfinished.rename(paths.mounts / name)), lock

    @property
    def control(self) -> Path:
        """The control socket of the serving process."""
        return self.path / "control.sock"

    @property
    def reads(self) -> Path:
        """Where the serving process puts the reads that it noted, when it is asked for them."""
        return self.path / "reads"

    def is_dead(self) -> bool:
        """Whether no process holds the lock. Without a lock file it is just being removed."""
        try:
            descriptor = self.open_lock()
        except FileNotFoundError:
            return False
        try:
            return is_free(descriptor)
        finally:
            os.close(descriptor)

    def open_lock(self) -> int:
        """Return a descriptor to look at the lock with, also when the folder is gone."""
        return os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)

    def write_record(self, record: MountRecord) -> None:
        """Publish the mount: from now on ``status`` and ``umount`` find it."""
        write_durably(self.path / "mount.json", msgspec.json.encode(record))

    def record(self) -> MountRecord | None:
        """Read the record; None while there is none."""
        try:
            return msgspec.json.decode((self.path / "mount.json").read_bytes(), type=MountRecord)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def remove(self) -> None:
        """Delete the folder; nothing of it may be mounted any more."""
        shutil.rmtree(self.path, ignore_errors=True)


def is_free(lock: int) -> bool:
    """Whether nobody holds the lock behind a descriptor: its process has ended."""
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(lock, fcntl.LOCK_UN)
    return True


def folders(paths: Paths) -> Iterator[MountFolder]:
    """Yield the folder of every mount, live or dead, oldest name first."""
    try:
        found = sorted(paths.mounts.iterdir())
    except FileNotFoundError:
        return
    except PermissionError:
        raise PageinError(f"cannot look into {paths.mounts}", hint="sudo") from None
    for path in found:
        if not path.name.startswith("."):
            yield MountFolder(path)


def live(paths: Paths) -> list[tuple[MountFolder, MountRecord]]:
    """Return the mounts that are served now."""
    found = []
    for folder in folders(paths):
        record = folder.record()
        if record is not None and not folder.is_dead():
            found.append((folder, record))
    return found


def sweep(paths: Paths) -> list[str]:
    """Clear what killed processes left: their mounts and folders. Return the freed targets."""
    freed = []
    _sweep_unfinished(paths)
    for folder in folders(paths):
        if not folder.is_dead():
            continue
        record = folder.record()
        targets = [folder.path / name for name in ("rootfs", "lower", "data", "hot")]
        if record is not None:
            targets.insert(0, Path(record.target))
            freed.append(record.target)
        for target in targets:
            with contextlib.suppress(DeviceError):
                if is_mount_point(target):
                    unmount(target, lazy=True)
        folder.remove()
        shutil.rmtree(paths.state / "writable" / folder.path.name, ignore_errors=True)
    return freed


def _sweep_unfinished(paths: Paths) -> None:
    """Clear what processes left that were killed while they made or removed their folder."""
    for path in paths.mounts.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            is_whole = not path.name.startswith(".") and (path / "lock").exists()
            if not is_whole and time.time() - path.stat().st_mtime > _UNFINISHED_S:
                MountFolder(path).remove()


def find(paths: Paths, target: Path) -> tuple[MountFolder, MountRecord]:
    """Return the live mount at a directory. Raises UsageError where there is none."""
    wanted = os.path.realpath(target)
    for folder, record in live(paths):
        if record.target == wanted:
            return folder, record
    raise UsageError(f"{target} is not mounted by pagein", hint="pagein status lists the mounts")


def umount(paths: Paths, target: Path, *, force: bool = False) -> None:
    """Unmount, and wait until the serving process has ended and cleared up.

    ``force`` detaches a tree that is in use. Raises UsageError or DeviceError.
    """
    folder, record = find(paths, target)
    lock = folder.open_lock()
    try:
        unmount(Path(record.target), lazy=force)
        deadline = time.monotonic() + _GONE_S
        while not force and not is_free(lock):
            if time.monotonic() > deadline:
                raise PageinError(
                    f"{target} is unmounted, but process {record.pid} that served it has not ended",
                    hint=f"look into {folder.path / 'log'}",
                )
            time.sleep(0.005)
    finally:
        os.close(lock)


def status(folder: MountFolder) -> dict[str, Any] | None:
    """Ask one serving process for its figures; None when it ended meanwhile."""
    try:
        return ask(folder.control, {"op": "status"})
    except NotFoundError:
        return None
