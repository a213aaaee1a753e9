"""Sees from outside when `pagein run` has mounted its image, and what serving it costs."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any

import msgspec

from cells import Record
from pagein.daemon import mounts
from pagein.daemon.paths import Paths
from pagein.errors import PageinError
from pagein.format.profile import decode_profile


def resident_bytes(pid: int) -> float | None:
    """Return a process's resident memory; None where it has ended."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return None


class MountWatch:
    """Watches a pagein root for its one mount, each 5 ms; ``mounted``: when it was usable.

    With a profile, reads its ranges through the mount then.
    """

    def __init__(self, root: Path, profile: Path | None) -> None:
        self._root = root
        self._ranges = [] if profile is None else _ranges(profile)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._record: dict[str, Any] = {}
        self.mounted: float | None = None

    def __enter__(self) -> MountWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def figures(self) -> Record:
        """Ask the process that serves the mount for its memory and counts."""
        found: Record = {}
        if self._record:
            found["resident"] = resident_bytes(self._record["pid"])
            folder = mounts.MountFolder(self._mounts / self._record["id"])
            with contextlib.suppress(PageinError, OSError):
                told = mounts.status(folder) or {}
                found["bytes_read"] = told.get("read_bytes")
                found["sectors"] = told.get("sectors_fetched")
        return found

    @property
    def _mounts(self) -> Path:
        return Paths.from_environment({"PAGEIN_ROOT": str(self._root)}, root=True).mounts

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            for record in self._mounts.glob("[!.]*/mount.json"):
                with contextlib.suppress(OSError, msgspec.DecodeError):
                    self._record = msgspec.json.decode(record.read_bytes())
                    self.mounted = self._record["started"]
                    self._read_ahead()
                    return

    def _read_ahead(self) -> None:
        if not self._ranges:
            return
        tree = self._record["target"]

        def read(part: list[tuple[str, int, int]]) -> None:
            for path, offset, length in part:
                if self._stop.is_set():
                    return
                with contextlib.suppress(OSError), open(f"{tree}/{path}", "rb") as stream:
                    os.pread(stream.fileno(), length, offset)

        readers = [
            threading.Thread(target=read, args=(self._ranges[start::4],)) for start in range(4)
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()


def _ranges(profile: Path) -> list[tuple[str, int, int]]:
    found = decode_profile(profile.read_bytes())
    return [
        (os.fsdecode(found.files[touch.file].path), touch.offset, touch.length)
        for touch in found.touches
    ]
