"""The mounts that users and containers asked the daemon for.

Each is a bind mount of an image's tree, or an overlay on it. The image's tree itself is mounted
once, in a folder of ours: all mounts of an image share one device and one page cache.

Rule 1. A mount may be unmounted by anybody, at any time: the table of mounts says what is there.
Rule 2. A writable layer that is thrown away goes when no namespace has it mounted any more: a
container may go on in one that we do not see.
"""

from __future__ import annotations

import contextlib
import select
import shutil
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from pagein.daemon.attachments import Attachments
from pagein.daemon.journal import Journal, MountEntry
from pagein.daemon.lost import is_used
from pagein.daemon.paths import Paths
from pagein.daemon.writable import lay_overlay
from pagein.device.mount import MS_BIND, is_mount_point, mount, mount_table, unmount
from pagein.errors import DeviceError, PageinError, UsageError
from pagein.events import Observer, SnapshotterProblem
from pagein.types import ImageName

_LOOK_AGAIN_S: Final = 30.0
_LINGERING_S: Final = 1.0
_BREATH_S: Final = 0.2
"""Between two looks at the table: starting containers change it hundreds of times a second."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A mount that is asked for. One of that ``id`` that is there already is taken for it.

    Without a target it is made in a folder of its own. ``upper``: where the writable layer is kept
    (None: it is thrown away at umount). ``passing``: it is a container's, which ends with the
    machine.
    """

    id: str
    name: ImageName
    artifact: bytes
    target: Path | None
    backend: str = "auto"
    writable: bool = False
    upper: Path | None = None
    passing: bool = False


class UserMounts:
    """Makes, finds and forgets mounts. Safe to call from any thread."""

    def __init__(
        self, paths: Paths, attachments: Attachments, journal: Journal, observer: Observer
    ) -> None:
        self._paths = paths
        self._attachments = attachments
        self._journal = journal
        self._observer = observer
        self._lock = threading.Lock()
        self._mounts: dict[str, MountEntry] = {}
        self._lingering: list[Path] = []

    def mount(self, wanted: Wanted) -> MountEntry:
        """Make a mount. Raises PageinError; then nothing is left of it."""
        with self._lock:
            there = self._mounts.get(wanted.id)
        return there or self._make_new(wanted)

    def _make_new(self, wanted: Wanted) -> MountEntry:
        if wanted.target is not None and not wanted.target.is_dir():
            raise UsageError(f"{wanted.target} is not a directory")
        image = self._attachments.remember(wanted.name, wanted.artifact, backend=wanted.backend)
        number = wanted.id
        upper = wanted.upper
        if wanted.writable and upper is None:
            upper = self._paths.state / "writable" / number
        entry = MountEntry(
            id=number,
            image=image,
            reference=str(wanted.name),
            target=str(wanted.target or self._folder(number) / "rootfs"),
            backend=wanted.backend,
            upper=str(upper) if wanted.writable else None,
            own_upper=wanted.writable and wanted.upper is None,
            passing=wanted.passing,
            boot=self._journal.boot,
            started=time.time(),
        )
        self._journal.of(entry).put(entry)
        try:
            self._make(entry)
        except BaseException:
            self._forget(entry)
            raise
        with self._lock:
            self._mounts[entry.id] = entry
        return entry

    def unmount(self, target: str, *, force: bool = False) -> bool:
        """Take a mount down; False if there is none of ours. Raises DeviceError."""
        entry = next((one for one in self.all() if one.target == target), None)
        if entry is None:
            return False
        if is_mount_point(Path(target)):
            unmount(Path(target), lazy=force)
        self._forget(entry)
        return True

    def all(self) -> list[MountEntry]:
        """Return the mounts, oldest first."""
        with self._lock:
            return sorted(self._mounts.values(), key=lambda entry: entry.started)

    def recover(self, lost: Collection[str]) -> list[MountEntry]:
        """Bring mounts back after a restart; return the ones of containers that cannot be.

        ``lost``: images that have no server any more.
        """
        kept, over, gone = [], [], []
        for entry in [*self._journal.mounts, *self._journal.passing]:
            there = is_mount_point(Path(entry.target))
            same_boot = entry.boot == self._journal.boot
            dead = there and entry.image in lost
            if dead:
                with contextlib.suppress(DeviceError):
                    unmount(Path(entry.target), lazy=True)
            if entry.passing and (dead or not same_boot):
                over.append(entry)
                gone += [entry] if dead else []
            elif same_boot and not there:
                over.append(entry)  # its user has unmounted it meanwhile
            else:
                kept.append((entry, there and not dead))
        for entry, mounted in kept:
            self._bring_back(entry, mounted=mounted)
        for entry in over:  # last, so that no image is unmounted that another needs
            self._forget(entry)
        self._sweep_writable()
        return gone

    def _sweep_writable(self) -> None:
        """Take up what an earlier daemon could not remove yet."""
        known = {entry.upper for entry in self.all()}
        for folder in (self._paths.state / "writable").glob("*"):
            if str(folder) not in known and not (self._paths.mounts / folder.name).exists():
                self._lingering.append(folder)
        self._clear_writable()

    def _bring_back(self, entry: MountEntry, *, mounted: bool) -> None:
        try:
            if mounted:
                self._attachments.attach(entry.image, entry.id)
            else:
                self._make(entry)
        except (PageinError, OSError) as error:
            # The record stays: the next start tries again.
            self._observer(SnapshotterProblem(f"mount {entry.reference} again", str(error)))
            return
        renewed = msgspec.structs.replace(entry, boot=self._journal.boot)
        self._journal.of(entry).put(renewed)
        with self._lock:
            self._mounts[entry.id] = renewed

    def _make(self, entry: MountEntry) -> None:
        target = Path(entry.target)
        if target.parent == self._folder(entry.id):
            target.mkdir(mode=0o755, parents=True, exist_ok=True)
        tree = self._attachments.attach(entry.image, entry.id)
        if entry.upper is None:
            mount(str(tree), target, "", MS_BIND, "")
        else:
            lay_overlay(tree, self._paths.make(Path(entry.upper)), target)

    def _forget(self, entry: MountEntry) -> None:
        """Clear up behind a mount that is gone."""
        with self._lock:
            self._mounts.pop(entry.id, None)
        try:
            self._attachments.detach(entry.image, entry.id)
        except PageinError as error:
            self._observer(SnapshotterProblem(f"unmount {entry.reference}", str(error)))
        folder = self._folder(entry.id)
        with contextlib.suppress(OSError):
            (folder / "rootfs").rmdir()
            folder.rmdir()
        if entry.own_upper and entry.upper is not None:
            with self._lock:
                self._lingering.append(Path(entry.upper))
            self._clear_writable()
        self._journal.of(entry).remove(entry.id)

    def _clear_writable(self) -> None:
        with self._lock:
            waiting, self._lingering = self._lingering, []
        still = []
        for folder in waiting:
            if is_used(folder):
                still.append(folder)
            else:
                shutil.rmtree(folder, ignore_errors=True)
        with self._lock:
            self._lingering += still

    def look(self) -> None:
        """Forget what somebody else has unmounted."""
        mounted = {entry.target for entry in mount_table()}
        for entry in self.all():
            if entry.target not in mounted:
                self._forget(entry)
        if self._lingering:
            self._clear_writable()

    def watch(self, ended: int) -> None:
        """Call `look` whenever the table of mounts changes, until ``ended`` can be read."""
        with open("/proc/self/mountinfo", "rb") as table:
            poll = select.poll()
            poll.register(table, select.POLLPRI | select.POLLERR)
            poll.register(ended, select.POLLIN)
            while True:
                again = _LINGERING_S if self._lingering else _LOOK_AGAIN_S
                ready = dict(poll.poll(again * 1000))
                if ended in ready:
                    return
                try:
                    self.look()
                except (PageinError, OSError) as error:
                    self._observer(SnapshotterProblem("look at the mounts", str(error)))
                time.sleep(_BREATH_S)

    def _folder(self, number: str) -> Path:
        return self._paths.run / "daemon/rootfs" / number
