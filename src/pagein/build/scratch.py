"""A scratch folder that goes away with its owner, however that one ends.

On any exception, and on SIGTERM, the owner removes it. After ``kill -9`` the next run does: a
folder is alive while somebody holds its ``flock``, which the kernel drops with the process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from pagein.errors import CacheError

PREFIX = "pagein-convert-"

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Make an empty folder in ``parent``; sweep out those of dead runs first.

    Raises CacheError where ``parent`` cannot be written, or is full before the block is done: who
    writes elsewhere in the block translates a full disk first.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent)
        folder, lock = _claim_new(parent)
    except OSError as error:
        raise CacheError(
            f"making a scratch folder in {parent}: {error.strerror}",
            hint="name a writable folder with room for the image's largest layer",
        ) from error
    try:
        yield folder
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise CacheError(
            f"writing temporary files in {parent}: {error.strerror}",
            hint="set TMPDIR to a folder with room for the image's largest layer",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep(parent: Path) -> list[Path]:
    """Remove scratch folders whose owner is dead; returns which."""
    removed = []
    for folder in sorted(parent.glob(PREFIX + "*")):
        lock = _try_lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
            removed.append(folder)
    return removed


def _claim_new(parent: Path) -> tuple[Path, int]:
    """Make and lock a folder; one that a sweeper takes in between is given up for another."""
    while True:
        folder = parent / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        lock = _try_lock(folder)
        if lock is None:
            continue
        if folder.exists():
            return folder, lock
        os.close(lock)


def _try_lock(folder: Path) -> int | None:
    """Lock a folder without waiting; None if it is held, gone, or not ours."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def unwinding_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit(143) for a while, so that ``finally`` blocks run.

    Only where this is the main thread and nobody else handles the signal.
    """
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if not ours:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
