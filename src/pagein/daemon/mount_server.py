"""Attach one image's device, mount its tree, answer status, and clear up at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagein.daemon.control import ControlServer
from pagein.daemon.images import FoundImage, Images
from pagein.daemon.log import ProblemLog
from pagein.daemon.mounts import MountFolder, MountRecord
from pagein.daemon.start_up import StartUp
from pagein.daemon.stats import MountStats
from pagein.daemon.writable import lay_overlay
from pagein.device.backends import Backend, ImageMount, mount_image
from pagein.device.mount import is_mount_point, unmount
from pagein.device.recording import RecordingImage
from pagein.errors import DeviceError
from pagein.events import Event
from pagein.store.image import LazyImage


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Where and how. Without a target the tree is mounted inside the mount's own folder.

    ``upper_parent`` keeps the writable layer (None: it is thrown away at umount). ``read_ahead_kb``
    takes the place of the image's and the configuration's. With ``record`` the reads are noted, and
    asked for over the control socket; nothing is brought here unasked then.
    """

    target: Path | None
    backend: Backend = "auto"
    writable: bool = False
    upper_parent: Path | None = None
    read_ahead_kb: int | None = None
    record: bool = False


class MountServer:
    """Serves one mount, in a process of its own."""

    def __init__(
        self, images: Images, found: FoundImage, options: MountOptions, folder: MountFolder
    ) -> None:
        self._images = images
        self._found = found
        self._options = options
        self._folder = folder
        self._target = options.target or folder.path / "rootfs"
        self._stats = MountStats()
        self._log = ProblemLog()
        self._backend = options.backend
        self._recording: RecordingImage | None = None

    def run(self, ready: Callable[[], None]) -> None:
        """Mount, call ``ready``, and serve until the tree is unmounted. Raises DeviceError."""
        metadata = self._images.metadata_file(self._found)
        with self._images.node.read_path(
            self._found.index, self._found.repositories, self._observe
        ) as path:
            start = self._start_up(path.image)
            try:
                mounted = self._mount(metadata, start)
                with contextlib.closing(ControlServer(self._folder.control, self._answer)):
                    self._folder.write_record(self._record())
                    signal.signal(signal.SIGTERM, self._on_terminate)
                    ready()
                    mounted.files.wait()
            finally:
                start.end()
        self._clear()

    def _observe(self, event: Event) -> None:
        self._stats.observe(event)
        self._log.observe(event)

    def _start_up(self, image: LazyImage) -> StartUp:
        if self._options.record:
            self._recording = RecordingImage(image)
        return StartUp(
            str(self._found.name),
            self._found.index,
            image,
            self._images.node.config,
            self._observe,
            body=self._recording,
            plain=self._options.record,
        )

    def _mount(self, metadata: Path, start: StartUp) -> ImageMount:
        tree = self._folder.path / "lower" if self._options.writable else self._target
        if tree.parent == self._folder.path:
            tree.mkdir(mode=0o755)
        ahead = self._options.read_ahead_kb
        mounted = mount_image(
            metadata,
            start.parts(),
            tree,
            self._folder.path,
            cached=start.cached,
            backend=self._options.backend,
            read_ahead_kb=start.read_ahead_kb if ahead is None else ahead,
            observer=self._observe,
            on_served=start.served,
        )
        self._backend = mounted.backend
        start.mounted(mounted.bdis)
        try:
            if self._options.writable:
                self._mount_writable(tree)
        except BaseException:
            self._take_down(tree)
            mounted.files.close()
            raise
        return mounted

    def _mount_writable(self, tree: Path) -> None:
        parent = self._options.upper_parent
        if parent is None:
            parent = self._images.node.paths.state / "writable" / self._folder.path.name
        if self._target.parent == self._folder.path:
            self._target.mkdir(mode=0o755, exist_ok=True)
        lay_overlay(tree, self._images.node.paths.make(parent), self._target)
        unmount(tree, lazy=True)

    def _record(self) -> MountRecord:
        found = self._found
        return MountRecord(
            id=self._folder.path.name,
            reference=str(found.name),
            target=os.path.realpath(self._target),
            artifact=str(found.artifact.digest),
            index=str(found.artifact.artifact.index.digest),
            backend=self._backend,
            writable=self._options.writable,
            pid=os.getpid(),
            size=found.index.device_size,
            started=time.time(),
        )

    def _answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        if request.get("op") == "reads" and self._recording is not None:
            # In a file, as a line of the socket is too short for a long recording.
            self._folder.reads.write_bytes(self._recording.notes())
            return {"full": self._recording.is_full}
        if request.get("op") != "status":
            return {"error": f"unknown request {request.get('op')!r}"}
        return self._stats.snapshot()

    def _on_terminate(self, *_: object) -> None:
        # A tree that is in use goes on being served: better a late shutdown than a dead container.
        with contextlib.suppress(DeviceError):
            unmount(self._target)

    def _take_down(self, tree: Path) -> None:
        """Undo a mount that was not finished, so that its servers end."""
        for path in (self._target, tree):
            with contextlib.suppress(DeviceError):
                if is_mount_point(path):
                    unmount(path, lazy=True)

    def _clear(self) -> None:
        if self._options.writable and self._options.upper_parent is None:
            writable = self._images.node.paths.state / "writable" / self._folder.path.name
            shutil.rmtree(writable, ignore_errors=True)
        self._folder.remove()
