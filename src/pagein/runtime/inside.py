"""Files of a tree that somebody else made, read as a process with that root would find them.

A symbolic link in an image may say ``/etc/passwd -> ../../../../etc/shadow``. openat2(2) with
``RESOLVE_IN_ROOT`` (kernel >= 5.6) resolves it, and every ``..``, below the tree.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path
from typing import Final

from pagein.errors import RuntimeFailedError

_SYS_OPENAT2: Final = 437  # the same on every architecture (asm-generic/unistd.h, and x86-64)
_RESOLVE_NO_MAGICLINKS: Final = 0x02  # linux/openat2.h
_RESOLVE_IN_ROOT: Final = 0x10

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def read_inside(root: Path, path: str, *, limit: int) -> bytes | None:
    """Return a regular file's bytes; None where there is none.

    Raises RuntimeFailedError for a file over ``limit`` bytes and for one that cannot be read.
    """
    try:
        with open(_open_in_root(root, path), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            data = file.read(limit + 1)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise RuntimeFailedError(f"cannot read /{path} of the image: {error.strerror}") from error
    if len(data) > limit:
        raise RuntimeFailedError(f"cannot use /{path} of the image: over {limit} bytes")
    return data


def _open_in_root(root: Path, path: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    # O_NONBLOCK: a fifo under that name must not block us.
    how = _OpenHow(
        os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY,
        0,
        _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS,
    )
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        descriptor: int = libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(directory),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
    finally:
        os.close(directory)
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return descriptor
