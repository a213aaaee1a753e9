"""The durable write: a file is wholly its old self or its new one, also after a power cut."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from pagein.types import Buffer


def temporary_beside(path: Path) -> Path:
    """Return a new name in the same folder, so that a rename stays on one file system."""
    return path.with_name(f".{path.name[:64]}.{secrets.token_hex(6)}.tmp")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (fsync(2) of the directory)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o600) -> Iterator[int]:
    """Yield a descriptor to write the new content to; at the end it takes ``path``'s place.

    tmp in the same folder, write, fsync, rename, fsync(folder). On any error the temporary file is
    removed and ``path`` is untouched.
    """
    temporary = temporary_beside(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def write_all(descriptor: int, data: Buffer) -> None:
    """Write every byte: write(2) may take fewer than it was given."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_durably(path: Path, data: Buffer, *, mode: int = 0o600) -> None:
    """Replace ``path`` with ``data``. Raises OSError; then nothing has changed."""
    with replacing(path, mode=mode) as descriptor:
        write_all(descriptor, data)
