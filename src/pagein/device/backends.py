"""Mount a tree that is split over several images and files.

Rule 1. Nothing has to be taken down after ``umount``: the device files are detached, and loop
devices let go, as soon as EROFS has them open. When the last user of the tree goes, so do they,
and with them their servers.
Rule 2. No thread is started before `ServedFiles.serve` or `mount_image`, so that a process can
fork before.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pagein.device.block import BlockImage
from pagein.device.fuse_server import (
    DEMAND_THREADS,
    FuseServer,
    mount_fuse_file,
    open_fuse_device,
)
from pagein.device.loop import attach_loop
from pagein.device.mount import mount_erofs, unmount
from pagein.errors import DeviceError
from pagein.events import Observer, ignore

_LOOP_NEEDED: Final = frozenset({errno.ENOTBLK, errno.EINVAL})
"""What mount(2) of EROFS on a file answers where the kernel wants a block device (< 6.12)."""

Backend = Literal["auto", "fuse", "loop"]


class ServedFiles:
    """Device files in ``folder``, each a mount of its own, and the threads that serve them."""

    def __init__(
        self, folder: Path, *, observer: Observer = ignore, demand_threads: int = DEMAND_THREADS
    ) -> None:
        self._folder = folder
        self._observer = observer
        self._demand_threads = demand_threads
        self._visible: list[Path] = []
        self._running: list[tuple[FuseServer, threading.Thread]] = []

    def serve(self, image: BlockImage, name: str) -> Path:
        """Show an image as a file, and serve it from a thread. Raises DeviceError."""
        path = self._folder / name
        descriptor = open_fuse_device()
        server = FuseServer(
            descriptor, image, observer=self._observer, demand_threads=self._demand_threads
        )
        try:
            path.touch(mode=0o600)
            mount_fuse_file(descriptor, path)
            self._visible.append(path)
            # A daemon thread: a process that is told to end does not wait for its mounts.
            thread = threading.Thread(target=server.serve, name=f"fuse {name}", daemon=True)
            thread.start()
        except BaseException:
            server.close()
            raise
        self._running.append((server, thread))
        return path

    def hide(self) -> None:
        """Take the files out of sight; what has them open keeps them. Idempotent."""
        for path in self._visible:
            with contextlib.suppress(DeviceError):  # somebody else unmounted it
                unmount(path, lazy=True)
            path.unlink(missing_ok=True)
        self._visible.clear()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until every server has ended by itself; False when time ran out before."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for _, thread in self._running:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for _, thread in self._running)

    def close(self) -> None:
        """End the servers, also of files that are in use: reads of those then fail. Idempotent.

        Waits for the reads that wait for a source.
        """
        self.hide()
        for server, _ in self._running:
            server.stop()
        self.wait()


@dataclass(frozen=True, slots=True)
class ImageMount:
    """A mounted tree and the servers of its parts. ``backend`` is the one that worked.

    ``files.wait()`` returns when the tree has been unmounted, by whomever, and nothing of it is in
    use. A tree all of whose parts are local has no servers, and nothing to wait for.
    """

    target: Path
    backend: Backend
    files: ServedFiles


def mount_image(
    metadata: Path,
    parts: Mapping[str, Path | BlockImage],
    target: Path,
    folder: Path,
    *,
    backend: Backend = "auto",
    read_ahead_kb: int | None = None,
    observer: Observer = ignore,
    demand_threads: int = DEMAND_THREADS,
) -> ImageMount:
    """Mount a split image at ``target``, and serve it until it is unmounted.

    ``metadata`` is a local file with the metadata part; ``parts`` are the others that are not
    empty, in order: local files, or images, which are served as files of that name in ``folder``
    until the tree is mounted. Raises DeviceError; then nothing is left behind.
    """
    files = ServedFiles(folder, observer=observer, demand_threads=demand_threads)
    try:
        paths = [
            part if isinstance(part, Path) else files.serve(part, name)
            for name, part in parts.items()
        ]
        used = _mount_split(metadata, paths, target, backend, read_ahead_kb)
    except BaseException:
        files.close()
        raise
    files.hide()
    return ImageMount(target, used, files)


def _mount_split(
    metadata: Path, paths: list[Path], target: Path, backend: Backend, read_ahead_kb: int | None
) -> Backend:
    """Mount with the backend that was asked for, or the first that works; return which."""
    if backend != "loop":
        try:
            mount_erofs(metadata, target, paths, read_ahead_kb=read_ahead_kb)
        except DeviceError as error:
            if backend == "fuse" or error.errno not in _LOOP_NEEDED:
                raise
        else:
            return "fuse"
    with contextlib.ExitStack() as stack:
        loops = [stack.enter_context(attach_loop(path)) for path in (metadata, *paths)]
        mount_erofs(loops[0], target, loops[1:], read_ahead_kb=read_ahead_kb)
    return "loop"
