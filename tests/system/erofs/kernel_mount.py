"""Mounts EROFS files with mount(2), with nothing of pagein in between."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_READ_ONLY_NO_DEVICES = 0x1 | 0x2 | 0x4


@contextmanager
def erofs_mount(primary: Path, target: Path, devices: list[Path]) -> Iterator[Path]:
    """Mount ``primary`` with one ``device=`` option for each further file."""
    target.mkdir()
    options = ",".join(f"device={device}" for device in devices).encode()
    result = _LIBC.mount(
        bytes(primary), bytes(target), b"erofs", _READ_ONLY_NO_DEVICES, options or None
    )
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"mount: {os.strerror(number)}", str(primary))
    try:
        yield target
    finally:
        assert _LIBC.umount2(bytes(target), 0) == 0, os.strerror(ctypes.get_errno())
