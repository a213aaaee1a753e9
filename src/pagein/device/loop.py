"""Loop devices, through ioctl(2) on /dev/loop-control (linux/loop.h; LOOP_CONFIGURE: kernel 5.8).

Rule 1. A loop device is read-only and clears itself when its last user closes it, so that nobody
has to: the descriptor that made it is closed as soon as EROFS is mounted on it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pagein.device.mount import learn_size
from pagein.errors import DeviceError

_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4
_DIRECT_IO: Final = 16

# struct loop_config: fd, block_size, struct loop_info64 (of which only lo_flags and lo_file_name
# are set), reserved.
_CONFIG: Final = struct.Struct("<II 40x IIII 64s 64x 32x 16x 64x")
_TRIES: Final = 64
"""Others race us for the free number; each try is a new number, so 64 losses mean trouble."""

_HINTS: Final = {
    errno.ENOENT: "modprobe loop; in a container, /dev/loop-control and /dev/loopN must be there",
    errno.EACCES: "loop devices need root",
    errno.EPERM: "loop devices need root",
    errno.ENOSPC: "no loop device is free; raise max_loop",
}


@contextlib.contextmanager
def attach_loop(file: Path) -> Iterator[Path]:
    """Make a read-only loop device of a regular file; yield its path. Raises DeviceError.

    Afterwards it lives for as long as something else, such as a mount, has it open.
    """
    device, descriptor = _attach(file)
    try:
        yield device
    finally:
        os.close(descriptor)


def _attach(file: Path) -> tuple[Path, int]:
    learn_size(file)
    backing = control = -1
    try:
        backing = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        for _ in range(_TRIES):
            device = Path(f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}")
            descriptor = _configure(device, backing, str(file))
            if descriptor is not None:
                return device, descriptor
    except OSError as error:
        raise _failed(file, error.errno or errno.EIO) from None
    finally:
        for descriptor_to_close in (backing, control):
            if descriptor_to_close >= 0:
                os.close(descriptor_to_close)
    raise _failed(file, errno.EBUSY)


def _configure(device: Path, backing: int, name: str) -> int | None:
    """Bind ``device`` to an open file and return a descriptor; None where somebody else took it."""
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    # Direct I/O: reads go to the file side by side, and are not cached a second time. A file that
    # cannot do it is read through the page cache all the same.
    flags = _READ_ONLY | _AUTOCLEAR | _DIRECT_IO
    config = _CONFIG.pack(backing, 0, 0, 0, 0, flags, os.fsencode(name)[-63:])
    try:
        fcntl.ioctl(descriptor, _LOOP_CONFIGURE, config)
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EBUSY:
            return None
        raise
    return descriptor


def _failed(file: Path, number: int) -> DeviceError:
    return DeviceError(
        f"cannot make a loop device of {file}: {os.strerror(number)}",
        errno=number,
        hint=_HINTS.get(number),
    )
