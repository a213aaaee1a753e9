"""What the daemon must know again after its death: images, mounts, and the devices it served.

One file a record, written durably before the fact that it is about: a record without its fact is
cleared up, a fact without its record would be lost.

Rule 1. ``state`` keeps what survives a reboot: which artifact an image is, and the mounts of users.
Rule 2. ``run`` keeps what cannot: the devices, and the mounts of containers. Each says at which
boot it was written, as not every machine clears that folder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from pagein.daemon.paths import Paths
from pagein.store.atomic import write_durably


class ImageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An image by its id: where it was pulled from, and the manifest of its artifact."""

    id: str
    reference: str
    artifact: str
    backend: str = "auto"


class DeviceEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One attached device: its parts in order, what the kernel agreed to (`InitFlag`), and the
    backing devices of its tree, whose read-ahead a start changes."""

    id: str
    image: str
    parts: tuple[str, ...]
    agreed: int
    backend: str
    boot: str
    started: float
    bdis: tuple[str, ...] = ()


class MountEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One mount of a user's. ``passing``: of a container, which does not outlive the boot.

    ``upper``: the folder with the writable layer; ``own_upper``: it goes with the mount.
    """

    id: str
    image: str
    reference: str
    target: str
    backend: str
    upper: str | None = None
    own_upper: bool = False
    passing: bool = False
    boot: str = ""
    started: float = 0.0


Entry = TypeVar("Entry", ImageEntry, DeviceEntry, MountEntry)


class Records(Generic[Entry]):
    """The records of one kind, in a folder. Safe from any thread, as each id has one writer."""

    def __init__(self, paths: Paths, folder: Path, kind: type[Entry]) -> None:
        self._paths = paths
        self._folder = folder
        self._kind: type[Entry] = kind

    def put(self, entry: Entry) -> None:
        """Write a record, unless it is there as it is. Raises OSError or PageinError."""
        if self.get(entry.id) == entry:
            return
        self._paths.make(self._folder)
        write_durably(self._file(entry.id), msgspec.json.encode(entry))

    def get(self, name: str) -> Entry | None:
        """Read a record; None if there is none that can be read."""
        try:
            found: Entry = msgspec.json.decode(self._file(name).read_bytes(), type=self._kind)
        except (OSError, msgspec.MsgspecError):
            return None
        return found

    def remove(self, name: str) -> None:
        """Forget a record; idempotent."""
        with contextlib.suppress(OSError):
            self._file(name).unlink()

    def __iter__(self) -> Iterator[Entry]:
        for file in sorted(self._folder.glob("*.json")):
            entry = self.get(file.stem)
            if entry is not None:
                yield entry

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.json"


class Journal:
    """All records of this machine."""

    def __init__(self, paths: Paths) -> None:
        self.boot = boot_id()
        self.images = Records(paths, paths.state / "daemon/images", ImageEntry)
        self.mounts = Records(paths, paths.state / "daemon/mounts", MountEntry)
        self.passing = Records(paths, paths.run / "daemon/passing", MountEntry)
        self.devices = Records(paths, paths.run / "daemon/devices", DeviceEntry)

    def of(self, entry: MountEntry) -> Records[MountEntry]:
        """Return the records that a mount belongs to."""
        return self.passing if entry.passing else self.mounts


def boot_id() -> str:
    """Name this boot of the machine (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
