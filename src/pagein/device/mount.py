"""mount(2) and its neighbours, through ctypes.

mount(8) is not used: it silently makes a loop device where EROFS can stand on a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pagein.errors import DeviceError

# linux/mount.h
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOATIME: Final = 1024
MS_BIND: Final = 4096
MNT_DETACH: Final = 2

_BDI: Final = Path("/sys/class/bdi")
_libc = ctypes.CDLL(None, use_errno=True)
_ESCAPE = re.compile(r"\\([0-7]{3})")

_HINTS: Final = {
    errno.EPERM: "mounting needs root",
    errno.ENODEV: "this kernel lacks that file system; pagein doctor says more",
    errno.EBUSY: "something still uses it; close it, or detach it with --force",
    errno.ENOTBLK: "EROFS on a file needs kernel 6.12; use --backend loop",
}


def _fail(what: str) -> DeviceError:
    number = ctypes.get_errno()
    return DeviceError(
        f"cannot {what}: {os.strerror(number)}", errno=number, hint=_HINTS.get(number)
    )


def mount(source: str, target: Path, kind: str, flags: int, options: str) -> None:
    """Call mount(2). ``options`` is at most a page. Raises DeviceError."""
    data = options.encode("utf-8", "surrogateescape")
    if len(data) >= 4095:
        raise DeviceError(f"mount options of {len(data)} bytes", errno=errno.EINVAL)
    arguments = (source.encode("utf-8", "surrogateescape"), os.fsencode(target), kind.encode())
    if _libc.mount(*arguments, ctypes.c_ulong(flags), data) != 0:
        raise _fail(f"mount {kind} at {target}")


def unmount(target: Path, *, lazy: bool = False) -> None:
    """Call umount2(2); ``lazy`` detaches a tree that is in use. Raises DeviceError.

    What is detached lives on for as long as something has it open.
    """
    if _libc.umount2(os.fsencode(target), MNT_DETACH if lazy else 0) != 0:
        raise _fail(f"unmount {target}")


def mount_erofs(
    metadata: Path, target: Path, devices: Sequence[Path], *, read_ahead_kb: int | None = None
) -> list[str]:
    """Mount a split image: its metadata, and a device for each part that is not empty, in order.

    Each may be a regular file (kernel 6.12 with EROFS_FS_BACKED_BY_FILE; else DeviceError with
    ENOTBLK) or a block device. A container's root needs its device nodes and set-user-id programs,
    as on overlayfs, so neither is switched off. ``read_ahead_kb`` is set before anyone can have
    opened a file: the kernel copies it at each open. Returns the tree's backing devices, for
    `set_read_ahead`.
    """
    for path in (metadata, *devices):
        learn_size(path)
    options = ",".join(f"device={_plain(device)}" for device in devices)
    with _new_bdis() as new:
        mount(str(metadata), target, "erofs", MS_RDONLY, options)
    try:
        bdis = new or [_block_bdi(target)]
        if read_ahead_kb is not None:
            set_read_ahead(bdis, read_ahead_kb)
    except BaseException:
        unmount(target)
        raise
    return bdis


def learn_size(path: Path) -> None:
    """Have the kernel ask for the size of a device file. Raises DeviceError.

    It takes the root of a FUSE mount for empty until somebody asks (GETATTR), and a direct read of
    an empty file ends at once: EROFS then answers every read of data with EIO.
    """
    try:
        path.stat()
    except OSError as error:
        number = error.errno or errno.EIO
        raise DeviceError(f"cannot use {path}: {os.strerror(number)}", errno=number) from None


def _block_bdi(target: Path) -> str:
    """Name the backing device of a mount on a block device: the block device's own."""
    number = target.stat().st_dev
    return f"{os.major(number)}:{os.minor(number)}"


@contextlib.contextmanager
def _new_bdis() -> Iterator[list[str]]:
    """Yield a list that holds, afterwards, the backing devices that EROFS made meanwhile.

    On regular files the kernel names them erofs-1, erofs-2, ... and says nowhere to which mount
    they belong, so one process at a time looks at what its mount(2) adds.
    """
    found: list[str] = []
    folder = os.open(_BDI, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        before = set(os.listdir(_BDI))
        yield found
        found += [name for name in os.listdir(_BDI) if name not in before and "erofs" in name]
    finally:
        os.close(folder)


def set_read_ahead(bdis: Iterable[str], kilobytes: int) -> None:
    """Set the read-ahead of backing devices; files that are open keep theirs. Raises DeviceError.

    One that has gone, with its mount, is passed over.
    """
    for name in bdis:
        setting = _BDI / name / "read_ahead_kb"
        try:
            setting.write_text(str(kilobytes))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DeviceError(
                f"cannot set {setting}: {error.strerror}", errno=error.errno or errno.EIO
            ) from None


def mount_overlay(lower: Path, upper: Path, work: Path, target: Path) -> None:
    """Mount a writable overlay. Raises DeviceError."""
    parts = (("lowerdir", lower), ("upperdir", upper), ("workdir", work))
    options = ",".join(f"{name}={_escaped(path)}" for name, path in parts)
    mount("overlay", target, "overlay", 0, options)


def _plain(path: Path) -> str:
    if "," in str(path):
        raise DeviceError(f"a comma in the path {path}", errno=errno.EINVAL)
    return str(path)


def _escaped(path: Path) -> str:
    # overlayfs reads a backslash as "the next character is no separator".
    return re.sub(r"([\\:,])", r"\\\1", str(path))


@dataclass(frozen=True, slots=True)
class MountEntry:
    """A line of /proc/self/mountinfo (proc(5))."""

    device: str
    target: str
    kind: str
    source: str


def mount_table() -> list[MountEntry]:
    """Return what is mounted in this mount namespace, in order of mounting."""
    entries = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        dash = fields.index("-", 6)
        entries.append(
            MountEntry(
                fields[2], _unescape(fields[4]), fields[dash + 1], _unescape(fields[dash + 2])
            )
        )
    return entries


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def is_mount_point(target: Path) -> bool:
    """Whether something is mounted right at ``target``; does not touch what is mounted."""
    wanted = str(Path(target).absolute())
    return any(entry.target == wanted for entry in mount_table())
