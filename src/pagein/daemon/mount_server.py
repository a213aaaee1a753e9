"""Attach one image's device, mount its tree, answer status, and clear up at the end."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagein.daemon.control import ControlServer
from pagein.daemon.images import FoundImage, Images
from pagein.daemon.log import ProblemLog
from pagein.daemon.mounts import MountFolder, MountRecord
from pagein.daemon.stats import MountStats
from pagein.daemon.writable import lay_overlay
from pagein.device.block import BlockImage, PartImage
from pagein.device.fuse_server import FuseServer, mount_fuse_file, open_fuse_device
from pagein.device.loop import attach_loop
from pagein.device.mount import is_mount_point, mount_erofs, unmount
from pagein.device.recording import RecordingImage
from pagein.errors import DeviceError
from pagein.events import Event

LOOP_NEEDED = frozenset({errno.ENOTBLK, errno.EINVAL})
"""What mount(2) of EROFS on a file answers where the kernel wants a block device (< 6.12)."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Where and how. Without a target the tree is mounted inside the mount's own folder.

    ``upper_parent`` keeps the writable layer (None: it is thrown away at umount). ``read_ahead_kb``
    takes the place of the image's and the configuration's. With ``record`` the reads are noted, and
    asked for over the control socket; ``stream`` fills the page cache unasked, which would hide
    reads from a recording.
    """

    target: Path | None
    backend: str = "auto"
    writable: bool = False
    upper_parent: Path | None = None
    read_ahead_kb: int | None = None
    record: bool = False
    stream: bool = True


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
        self._servers: list[threading.Thread] = []
        self._backend = options.backend
        self._recording: RecordingImage | None = None

    def run(self, ready: Callable[[], None]) -> None:
        """Mount, call ``ready``, and serve until the tree is unmounted. Raises DeviceError."""
        metadata = self._images.metadata_file(self._found)
        with self._images.node.read_path(
            self._found.index, self._found.repositories, self._observe
        ) as path:
            try:
                self._mount(metadata, self._attach(self._recorded(path.image)))
            except BaseException:
                self._take_down()
                raise
            with contextlib.closing(ControlServer(self._folder.control, self._answer)):
                self._folder.write_record(self._record())
                signal.signal(signal.SIGTERM, self._on_terminate)
                ready()
                for server in self._servers:
                    server.join()
        self._clear()

    def _observe(self, event: Event) -> None:
        self._stats.observe(event)
        self._log.observe(event)

    def _recorded(self, body: BlockImage) -> BlockImage:
        if not self._options.record:
            return body
        self._recording = RecordingImage(body)
        return self._recording

    def _attach(self, body: BlockImage) -> list[Path]:
        """Serve each part of the body that is not empty as a file; return the files in order."""
        index = self._found.index
        hot = index.hot_sectors * index.sector_size
        parts = {"hot": PartImage(body, 0, hot), "data": PartImage(body, hot, body.size - hot)}
        return [self._serve(name, part) for name, part in parts.items() if part.size]

    def _serve(self, name: str, image: BlockImage) -> Path:
        path = self._folder.path / name
        path.touch(mode=0o600)
        descriptor = open_fuse_device()
        mount_fuse_file(descriptor, path)
        server = FuseServer(descriptor, image, observer=self._observe)
        thread = threading.Thread(target=server.serve, name=f"fuse-{name}")
        thread.start()
        self._servers.append(thread)
        # The kernel takes the file for empty until it has asked for its size, and EROFS never asks.
        path.stat()
        return path

    def _mount(self, metadata: Path, devices: list[Path]) -> None:
        tree = self._folder.path / "lower" if self._options.writable else self._target
        if tree.parent == self._folder.path:
            tree.mkdir(mode=0o755)
        self._mount_tree(metadata, tree, devices)
        if self._options.writable:
            self._mount_writable(tree)
        # The file system holds the open device files, so their own mounts may go: a plain umount of
        # the target then drops the last reference, and ends this process.
        for device in devices:
            unmount(device, lazy=True)

    def _mount_tree(self, metadata: Path, tree: Path, devices: list[Path]) -> None:
        ahead = self._options.read_ahead_kb
        if ahead is None:
            ahead = self._found.index.read_ahead_kb
        if ahead is None:
            ahead = self._images.node.config.read_ahead_kb
        if self._backend != "loop":
            try:
                mount_erofs(metadata, tree, devices, read_ahead_kb=ahead)
            except DeviceError as error:
                if self._backend == "fuse" or error.errno not in LOOP_NEEDED:
                    raise
            else:
                self._backend = "fuse"
                return
        with contextlib.ExitStack() as owned:
            loops = [owned.enter_context(attach_loop(path)) for path in (metadata, *devices)]
            mount_erofs(loops[0], tree, loops[1:], read_ahead_kb=ahead)
        self._backend = "loop"

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

    def _take_down(self) -> None:
        """Undo a mount that was not finished, so that the servers end."""
        for name in ("rootfs", "lower", "hot", "data"):
            path = self._folder.path / name
            with contextlib.suppress(DeviceError):
                if is_mount_point(path):
                    unmount(path, lazy=True)
        if self._options.target is not None and not self._options.writable:
            with contextlib.suppress(DeviceError):
                if is_mount_point(self._target):
                    unmount(self._target, lazy=True)
        for server in self._servers:
            server.join()

    def _clear(self) -> None:
        if self._options.writable and self._options.upper_parent is None:
            writable = self._images.node.paths.state / "writable" / self._folder.path.name
            shutil.rmtree(writable, ignore_errors=True)
        self._folder.remove()
