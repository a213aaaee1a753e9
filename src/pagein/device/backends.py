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
import functools
import operator
import threading
import time
from collections.abc import Callable, Collection, Mapping
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
from pagein.device.mount import learn_size, mount_erofs, unmount
from pagein.errors import DeviceError
from pagein.events import Observer, ignore
from pagein.types import Buffer
from pagein.wire.fuse import InitFlag

_LOOP_NEEDED: Final = frozenset({errno.ENOTBLK, errno.EINVAL})
"""What mount(2) of EROFS on a file answers where the kernel wants a block device (< 6.12)."""

Backend = Literal["auto", "fuse", "loop"]


class ServedFiles:
    """Device files in ``folder``, each a mount of its own, and the threads that serve them.

    ``on_end`` is called by a thread whose file is no longer used by anybody.
    """

    def __init__(
        self,
        folder: Path,
        *,
        observer: Observer = ignore,
        demand_threads: int = DEMAND_THREADS,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self._folder = folder
        self._observer = observer
        self._demand_threads = demand_threads
        self._on_end = on_end
        self._visible: list[Path] = []
        self._running: dict[str, tuple[FuseServer, threading.Thread]] = {}

    def serve(self, image: BlockImage, name: str, *, cached: bool = False) -> Path:
        """Show an image as a file, and serve it from a thread. Raises DeviceError.

        ``cached``: the kernel keeps the file's pages, also those that `store` gives it unasked.
        """
        path = self._folder / name
        descriptor = open_fuse_device()
        server = self._server(descriptor, image, cached=cached)
        try:
            path.touch(mode=0o600)
            mount_fuse_file(descriptor, path)
            self._visible.append(path)
            self._start(server, name)
        except BaseException:
            server.close()
            raise
        return path

    def adopt(self, descriptor: int, image: BlockImage, name: str, *, cached: bool = False) -> None:
        """Go on serving a file whose server has died; the descriptor belongs to us from now on."""
        server = self._server(descriptor, image, cached=cached)
        try:
            self._start(server, name)
        except BaseException:
            server.close()
            raise

    def _server(self, descriptor: int, image: BlockImage, *, cached: bool = False) -> FuseServer:
        return FuseServer(
            descriptor,
            image,
            observer=self._observer,
            demand_threads=self._demand_threads,
            cached=cached,
        )

    def store(self, name: str, offset: int, data: Buffer) -> bool:
        """Put bytes of a ``cached`` file into the page cache; False where nobody uses the file.

        See `FuseServer.store`.
        """
        return self._running[name][0].store(offset, data)

    def _start(self, server: FuseServer, name: str) -> None:
        # A daemon thread: a process that is told to end does not wait for its mounts.
        thread = threading.Thread(
            target=self._serve, args=(server,), name=f"fuse {name}", daemon=True
        )
        thread.start()
        self._running[name] = (server, thread)

    def _serve(self, server: FuseServer) -> None:
        try:
            server.serve()
        finally:
            if self._on_end is not None:
                self._on_end()

    @property
    def descriptors(self) -> dict[str, int]:
        """The descriptor of each file by its name, for whoever keeps copies of them."""
        return {name: server.descriptor for name, (server, _) in self._running.items()}

    @property
    def agreed(self) -> InitFlag:
        """What the kernel and every server have agreed on; nothing where no file was used yet."""
        both = [server.agreed for server, _ in self._running.values()]
        return functools.reduce(operator.and_, both) if both else InitFlag(0)

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
        threads = [thread for _, thread in self._running.values()]
        for thread in threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def close(self) -> None:
        """End the servers, also of files that are in use: reads of those then fail. Idempotent.

        Waits for the reads that wait for a source.
        """
        self.hide()
        for server, _ in self._running.values():
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
    bdis: tuple[str, ...]
    """The backing devices of the tree, whose read-ahead can be set (`device.mount`)."""


def mount_image(
    metadata: Path,
    parts: Mapping[str, Path | BlockImage],
    target: Path,
    folder: Path,
    *,
    cached: Collection[str] = (),
    backend: Backend = "auto",
    read_ahead_kb: int | None = None,
    observer: Observer = ignore,
    demand_threads: int = DEMAND_THREADS,
    on_served: Callable[[ServedFiles], None] | None = None,
    on_end: Callable[[], None] | None = None,
) -> ImageMount:
    """Mount a split image at ``target``, and serve it until it is unmounted.

    ``metadata`` is a local file with the metadata part; ``parts`` are the others that are not
    empty, in order: local files, or images, which are served as files of that name in ``folder``
    until the tree is mounted; ``cached`` names those whose pages the kernel keeps. ``on_served`` is
    called in between: once it has kept copies of the
    descriptors, this process may die. ``on_end``: see `ServedFiles`. Raises DeviceError, and what
    ``on_served`` raises; then nothing is left behind.
    """
    files = ServedFiles(folder, observer=observer, demand_threads=demand_threads, on_end=on_end)
    try:
        paths = [
            part if isinstance(part, Path) else files.serve(part, name, cached=name in cached)
            for name, part in parts.items()
        ]
        if on_served is not None:
            for path in paths:
                learn_size(path)  # the kernel has said by then what it can
            on_served(files)
        used, bdis = _mount_split(metadata, paths, target, backend, read_ahead_kb)
    except BaseException:
        files.close()
        raise
    files.hide()
    return ImageMount(target, used, files, tuple(bdis))


def _mount_split(
    metadata: Path, paths: list[Path], target: Path, backend: Backend, read_ahead_kb: int | None
) -> tuple[Backend, list[str]]:
    """Mount with the backend that was asked for, or the first that works.

    Return which, and the tree's backing devices.
    """
    if backend != "loop":
        try:
            return "fuse", mount_erofs(metadata, target, paths, read_ahead_kb=read_ahead_kb)
        except DeviceError as error:
            if backend == "fuse" or error.errno not in _LOOP_NEEDED:
                raise
    with contextlib.ExitStack() as stack:
        loops = [stack.enter_context(attach_loop(path)) for path in (metadata, *paths)]
        return "loop", mount_erofs(loops[0], target, loops[1:], read_ahead_kb=read_ahead_kb)
