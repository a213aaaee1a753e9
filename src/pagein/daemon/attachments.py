"""The images that the daemon has attached: one device and one mounted tree each, for all users.

Rule 1. A device's descriptors are in the keeper's hands before its tree is mounted: from then on
the daemon may die, and the next one goes on.
Rule 2. A tree is mounted as long as it has users. When it is taken down it lives on in the mount
namespaces of containers, and its device is served until the kernel says that nobody has it.
Rule 3. A record in the journal comes before its device, and goes after it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from pagein.daemon.device import Device
from pagein.daemon.images import FoundImage, Images, absolute_name
from pagein.daemon.journal import DeviceEntry, ImageEntry, Journal
from pagein.daemon.lost import LostImage, find_lost
from pagein.daemon.notify import Notifier
from pagein.daemon.recorder import StartRecorder, StartRecording
from pagein.daemon.start_up import StartUp
from pagein.daemon.stats import MountStats
from pagein.device.backends import Backend, ServedFiles, mount_image
from pagein.device.handover import ask_again, is_connected
from pagein.device.mount import is_mount_point, mount_table, set_read_ahead, unmount
from pagein.errors import DeviceError, NotFoundError, PageinError
from pagein.events import Event, Observer, SnapshotterProblem
from pagein.format.manifest import parse_artifact
from pagein.snapshotter.locks import KeyedLocks
from pagein.store.directory import DirectoryCache
from pagein.store.stack import ReadThreads
from pagein.types import Digest, ImageName
from pagein.wire.fuse import InitFlag

_DEMAND_WORKERS: Final = 16
"""Sectors that readers wait for, fetched at once for all images. A fetch waits for the network most
of its time, and holds one sector of memory."""


class Attachments:
    """All attached images. Safe to call from any thread; calls for one image take turns."""

    def __init__(
        self, images: Images, journal: Journal, notifier: Notifier, observer: Observer
    ) -> None:
        self._images = images
        self._journal = journal
        self._notifier = notifier
        self._observer = observer
        self._folder = images.node.paths.make(images.node.paths.attached)
        self.cache: DirectoryCache = images.node.cache(observer)
        self._threads = ReadThreads.make(
            workers=images.node.config.fetch_workers, demand_workers=_DEMAND_WORKERS
        )
        self._recorder = StartRecorder(images, observer)
        self._locks = KeyedLocks()
        self._lock = threading.Lock()
        self._users: dict[str, set[str]] = {}
        self._current: dict[str, Device] = {}
        self._served: dict[str, Device] = {}

    def remember(self, name: ImageName, artifact: bytes, *, backend: str = "auto") -> str:
        """Have an image known from now on, also after a restart; return its id."""
        image_id = id_of(name, parse_artifact(artifact).index.digest, backend)
        text = artifact.decode()
        self._journal.images.put(
            ImageEntry(id=image_id, reference=str(name), artifact=text, backend=backend)
        )
        return image_id

    def tree(self, image_id: str) -> Path:
        """Where an image's tree is mounted, when it is."""
        return self._folder / image_id / "tree"

    def attach(self, image_id: str, user: str) -> Path:
        """Return the path of the mounted tree; mount it first if need be. Raises PageinError."""
        with self._locks.holding(image_id):
            tree = self.tree(image_id)
            if image_id not in self._current or not _is_mounted(tree):
                self._mount(image_id, tree)
            self._users.setdefault(image_id, set()).add(user)
            return tree

    def detach(self, image_id: str, user: str) -> None:
        """Unmount the tree, if nobody else uses it. Idempotent. Raises DeviceError."""
        with self._locks.holding(image_id):
            users = self._users.get(image_id, set())
            if users - {user}:
                users.discard(user)
                return
            self._take_down(image_id)
            self._users.pop(image_id, None)

    def release_unused(self) -> None:
        """Unmount what was taken over and nobody asked for since."""
        with self._lock:
            unused = [image_id for image_id in self._current if not self._users.get(image_id)]
        for image_id in unused:
            with contextlib.suppress(DeviceError):
                self.detach(image_id, "")

    def devices(self) -> list[Device]:
        """Return what is served now, oldest first."""
        with self._lock:
            return sorted(self._served.values(), key=lambda device: device.entry.started)

    def current(self, image_id: str) -> Device | None:
        """Return the device under an image's mounted tree."""
        with self._lock:
            return self._current.get(image_id)

    def close(self) -> None:
        """Let cache writes end. The devices stay, for the next daemon; so do reads that wait."""
        self._recorder.close()
        self._threads.writing.shutdown(wait=True)

    def _take_down(self, image_id: str) -> None:
        tree = self.tree(image_id)
        with self._lock:
            device = self._current.pop(image_id, None)
        if device is not None:
            self._recorder.end(device.entry.id)
            device.start.end()
        if is_mount_point(tree):
            unmount(tree, lazy=True)
        with contextlib.suppress(OSError):
            tree.rmdir()
            tree.parent.rmdir()
        if device is not None and not device.entry.parts:
            self._forget(device.entry)

    def _mount(self, image_id: str, tree: Path) -> None:
        self._take_down(image_id)  # somebody else unmounted it, or a part of it is left
        known = self._journal.images.get(image_id)
        found = self._load(image_id)
        stats = MountStats()
        device_id = secrets.token_hex(6)
        tree.mkdir(parents=True, exist_ok=True)
        backend: Backend = known.backend if known else "auto"  # type: ignore[assignment]
        recording = self._recorder.begin(device_id, found, lambda: self._end_start(device_id))
        start = self._start_up(found, stats, recording)
        served: list[Device] = []

        def keep(files: ServedFiles) -> None:
            entry = self._entry(device_id, image_id, files)
            self._keep(entry, files.descriptors)
            served.append(Device.of(entry, found, stats, files, start))
            with self._lock:
                self._served[device_id] = served[0]
            start.served(files)

        try:
            mounted = mount_image(
                self._images.metadata_file(found),
                start.parts(),
                tree,
                tree.parent,
                cached=start.cached,
                backend=backend,
                read_ahead_kb=recording.read_ahead_kb if recording else start.read_ahead_kb,
                observer=self._both(stats),
                on_served=keep,
                on_end=self._on_end(device_id),
            )
        except BaseException:
            self._recorder.end(device_id)
            for one in served:
                self._forget(one.entry)
            raise
        device = served[0]
        device.entry = msgspec.structs.replace(
            device.entry, backend=mounted.backend, bdis=mounted.bdis
        )
        self._journal.devices.put(device.entry)
        start.mounted(mounted.bdis)
        with self._lock:
            self._current[image_id] = device

    def _entry(self, device_id: str, image_id: str, files: ServedFiles) -> DeviceEntry:
        return DeviceEntry(
            id=device_id,
            image=image_id,
            parts=tuple(files.descriptors),
            agreed=int(files.agreed),
            backend="",  # known when it is mounted
            boot=self._journal.boot,
            started=time.time(),
        )

    def _load(self, image_id: str) -> FoundImage:
        entry = self._journal.images.get(image_id)
        if entry is None:
            raise NotFoundError(f"no image {image_id} is known here", hint="pull it again")
        return self._images.known(absolute_name(entry.reference), entry.artifact.encode())

    def _start_up(
        self, found: FoundImage, stats: MountStats, recording: StartRecording | None = None
    ) -> StartUp:
        image = self._images.node.read_path(
            found.index,
            found.repositories,
            self._both(stats),
            cache=self.cache,
            threads=self._threads,
        ).image
        return StartUp(
            str(found.name),
            found.index,
            image,
            self._images.node.config,
            self._both(stats),
            body=None if recording is None else recording.wrap(image),
            plain=recording is not None,
        )

    def _end_start(self, device_id: str) -> None:
        """Give a mount whose start was recorded the read-ahead of every day."""
        with self._lock:
            device = self._served.get(device_id)
        if device is not None:
            set_read_ahead(device.entry.bdis, self._images.node.config.read_ahead_kb)

    def _both(self, stats: MountStats) -> Observer:
        def observe(event: Event) -> None:
            stats.observe(event)
            self._observer(event)

        return observe

    def _keep(self, entry: DeviceEntry, descriptors: Mapping[str, int]) -> None:
        self._journal.devices.put(entry)
        try:
            for part, descriptor in descriptors.items():
                self._notifier.store(_stored_name(entry, part), [descriptor])
        except PageinError as error:  # served all the same, for as long as this process lives
            self._observer(SnapshotterProblem("have a device kept", str(error)))

    def _on_end(self, device_id: str) -> Callable[[], None]:
        def ended() -> None:
            with self._lock:
                device = self._served.get(device_id)
                if device is None:
                    return
                device.left -= 1
                if device.left:
                    return
            self._forget(device.entry)

        return ended

    def _forget(self, entry: DeviceEntry) -> None:
        self._recorder.end(entry.id)
        with self._lock:
            device = self._served.pop(entry.id, None)
            if device is not None:
                device.start.end()
            if device is not None and self._current.get(entry.image) is device:
                del self._current[entry.image]
        for part in entry.parts:
            with contextlib.suppress(PageinError):
                self._notifier.remove(_stored_name(entry, part))
        self._journal.devices.remove(entry.id)

    def recover(self, inherited: Mapping[str, list[int]]) -> list[LostImage]:
        """Go on with the devices that a dead daemon left; return the images that were lost.

        Lost is what is still mounted somewhere and has no server any more: it answers EIO. What we
        had mounted of it is unmounted here.
        """
        left = {name: list(numbers) for name, numbers in inherited.items()}
        gone = set()
        for entry in sorted(self._journal.devices, key=lambda one: one.started):
            names = [_stored_name(entry, part) for part in entry.parts]
            held = [left[name].pop() for name in names if left.get(name)]
            if not self._go_on(entry, held):
                gone.add(entry.image)
        for name, numbers in left.items():
            if not numbers:
                continue
            _close(numbers)
            with contextlib.suppress(PageinError):
                self._notifier.remove(name)
        gone |= self._clear_dead()
        served = {device.entry.image for device in self.devices()}
        return find_lost({image_id: self.tree(image_id) for image_id in gone - served})

    def _go_on(self, entry: DeviceEntry, held: list[int]) -> bool:
        """Serve a device again; False where that cannot be: then it is forgotten."""
        whole = len(held) == len(entry.parts) and all(map(is_connected, held))
        if not entry.parts:
            whole = is_mount_point(self.tree(entry.image))
        if whole and entry.boot == self._journal.boot:
            try:
                self._adopt(entry, dict(zip(entry.parts, held, strict=True)))
            except PageinError as error:
                self._observer(SnapshotterProblem(f"go on serving {entry.image}", str(error)))
            else:
                return True
        _close(held)
        self._forget(entry)
        return False

    def _adopt(self, entry: DeviceEntry, descriptors: Mapping[str, int]) -> None:
        found = self._load(entry.image)
        stats = MountStats()
        start = self._start_up(found, stats)
        parts = start.parts()
        if parts.keys() != descriptors.keys():
            raise NotFoundError(f"device {entry.id} has other parts than its image")
        for descriptor in descriptors.values():
            # Before anything is read from it: what a new server has read would come twice.
            if not ask_again(descriptor, InitFlag(entry.agreed)):
                what = "have reads asked again that the dead daemon had begun"
                self._observer(SnapshotterProblem(what, "that needs kernel 6.9"))
        files = ServedFiles(self._folder, observer=self._both(stats), on_end=self._on_end(entry.id))
        device = Device.of(entry, found, stats, files, start)
        with self._lock:
            self._served[entry.id] = device
            if is_mount_point(self.tree(entry.image)):
                self._current[entry.image] = device
        for part, descriptor in descriptors.items():
            files.adopt(descriptor, parts[part], part, cached=part in start.cached)
        set_read_ahead(entry.bdis, self._images.node.config.read_ahead_kb)

    def _clear_dead(self) -> set[str]:
        """Unmount what no server is behind; return the images that this takes away."""
        lost = set()
        for mounted in reversed(mount_table()):
            target = Path(mounted.target)
            if not target.is_relative_to(self._folder) or target == self._folder:
                continue
            image_id = target.relative_to(self._folder).parts[0]
            if target == self.tree(image_id):
                if image_id in self._current:
                    continue
                lost.add(image_id)
            with contextlib.suppress(DeviceError):
                unmount(target, lazy=True)
        return lost

    def figures(self, device: Device) -> dict[str, Any]:
        """Describe a device and what it has done, for JSON."""
        return {
            "id": device.entry.id,
            "image": device.entry.image,
            "reference": device.reference,
            "size": device.size,
            "backend": device.entry.backend,
            "started": device.entry.started,
            "users": sorted(self._users.get(device.entry.image, ())),
        } | device.stats.snapshot()


def id_of(name: ImageName, index: Digest, backend: str = "auto") -> str:
    """Name a merged tree: what is mounted, and whom its data comes from.

    The same image in two repositories has two ids: who may read one may not be let into the other.
    """
    place = f"{name.transport.prefix}{name.host}/{name.repository}{name.path}"
    asked = backend if backend == "loop" else ""
    return Digest.of(f"{place}\0{index.hex}\0{asked}".encode()).hex[:20]


def _stored_name(entry: DeviceEntry, part: str) -> str:
    return f"{entry.id}.{part}"


def _is_mounted(tree: Path) -> bool:
    """Whether something is mounted at our folder; cheaper than to read the table of mounts."""
    try:
        return tree.stat().st_dev != tree.parent.stat().st_dev
    except OSError:
        return False


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
