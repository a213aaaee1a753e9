"""What a directory occupies on the disk.

containerd asks for every active snapshot every 10 s, so a large one is not walked each time.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pagein.snapshotter.values import Usage

_CHEAP_S: Final = 0.1
_REST: Final = 20
"""A walk that was not cheap answers for this many times as long as it took: 5 % of a core."""
_REMEMBERED: Final = 1024


def disk_usage(directory: Path) -> Usage:
    """Count bytes allocated and inodes, ``directory`` included, hard links once.

    As containerd's ``fs.DiskUsage`` counts. What vanishes meanwhile is not counted.
    """
    seen: set[tuple[int, int]] = set()
    size = 0
    folders: list[str | os.DirEntry[str]] = [str(directory)]
    with contextlib.suppress(OSError):
        status = directory.lstat()
        seen.add((status.st_dev, status.st_ino))
        size = status.st_blocks * 512
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    inode = status.st_dev, status.st_ino
                    if inode not in seen:
                        seen.add(inode)
                        size += status.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry)
    return Usage(size, len(seen))


@dataclass(frozen=True, slots=True)
class _Measured:
    usage: Usage
    good_until: float


class UsageMeter:
    """`disk_usage` for directories that change, at a bounded cost. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Path, _Measured] = {}

    def measure(self, directory: Path) -> Usage:
        """Return the usage as it is, or, where the walk is long, as it was lately."""
        began = time.monotonic()
        with self._lock:
            known = self._known.get(directory)
        if known is not None and began < known.good_until:
            return known.usage
        usage = disk_usage(directory)
        ended = time.monotonic()
        cost = ended - began
        if cost > _CHEAP_S:
            with self._lock:
                while len(self._known) >= _REMEMBERED:
                    del self._known[next(iter(self._known))]
                self._known[directory] = _Measured(usage, ended + _REST * cost)
        return usage
