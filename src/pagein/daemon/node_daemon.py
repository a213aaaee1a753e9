"""``pagein daemon``: the node's one process, put together, started, and stopped.

Start: take over what a dead daemon left, listen, say READY. Stop: say STOPPING, answer what was
asked, end. Nothing is unmounted at the end; the keeper (systemd, or `holder`) has the descriptors,
and readers wait for the next daemon.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final, NoReturn

from pagein import __version__
from pagein.daemon.attachments import Attachments
from pagein.daemon.config import Config
from pagein.daemon.control import ControlServer
from pagein.daemon.image_mounts import NodeImages
from pagein.daemon.images import Images
from pagein.daemon.journal import Journal
from pagein.daemon.log import ProblemLog
from pagein.daemon.lost import LostImage
from pagein.daemon.metrics import MetricsServer, SnapshotCounts, write_metrics
from pagein.daemon.notify import Notifier, take_descriptors, watchdog_period_s
from pagein.daemon.paths import Paths
from pagein.daemon.service import ControlService
from pagein.daemon.stats import MountStats
from pagein.daemon.user_mounts import UserMounts
from pagein.daemon.wiring import Node
from pagein.errors import PageinError, UsageError
from pagein.events import Event, SnapshotterProblem
from pagein.snapshotter.grpc_server import SnapshotsServer
from pagein.snapshotter.service import Snapshotter
from pagein.store.captured_credentials import CapturedCredentials

_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2
"""glibc gives each thread an arena, up to 8 a core, and hands little of them back: with two, the
daemon stays at half the memory."""


def run_daemon(paths: Paths, config: Config, environment: MutableMapping[str, str]) -> NoReturn:
    """Run until SIGTERM or SIGINT, and exit. Raises UsageError where one runs already."""
    notifier = Notifier.from_environment(environment)
    inherited = take_descriptors(environment, os.getpid())
    _spare_memory()
    _raise_limits()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with _alone(paths), NodeDaemon(paths, config, notifier, inherited) as daemon:
        notifier.ready(daemon.summary())
        _wait(ended, notifier, watchdog_period_s(environment, os.getpid()))
        with contextlib.suppress(PageinError):
            notifier.stopping()
    sys.stderr.flush()
    # Without the interpreter's own end: threads serve devices up to the last moment, and what they
    # leave unanswered is the next daemon's.
    os._exit(0)


class NodeDaemon:
    """All parts of the daemon. ``with`` starts and stops them."""

    def __init__(
        self,
        paths: Paths,
        config: Config,
        notifier: Notifier,
        inherited: Mapping[str, list[int]],
    ) -> None:
        self._paths = paths
        self._config = config
        self._notifier = notifier
        self._inherited = inherited
        self._started = time.time()
        self._log = ProblemLog()
        self._totals = MountStats()
        self._counts = SnapshotCounts()
        self._lost: list[LostImage] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> NodeDaemon:
        with self._stack:
            self._start()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        paths, own = self._paths, self._stack
        for folder in (paths.state, paths.run):
            paths.make(folder)
        secrets = paths.state / "credentials.json"
        captured = CapturedCredentials(
            secrets if self._config.persist_credentials else None, observer=self._observe
        )
        images = Images(Node(paths, self._config, captured=captured))
        journal = Journal(paths)
        self._attachments = Attachments(images, journal, self._notifier, self._observe)
        own.callback(self._attachments.close)
        self._mounts = UserMounts(paths, self._attachments, journal, self._observe)
        node_images = NodeImages(images, self._attachments)
        snapshotter = Snapshotter(
            paths.snapshots, node_images, observer=self._observe, image_usage=node_images.usage
        )
        own.callback(snapshotter.close)
        self._recover(snapshotter)
        own.enter_context(self._watching())
        self._listen(snapshotter, captured)

    def _recover(self, snapshotter: Snapshotter) -> None:
        """Bring back what was there, from local state alone; readers wait until this is done."""
        lost = self._attachments.recover(self._inherited)
        snapshotter.ensure()
        gone = self._mounts.recover({one.image for one in lost})
        self._attachments.release_unused()
        told = {entry.target for entry in [*self._mounts.all(), *gone]}
        for entry in gone:
            self._report(f"{entry.reference} at {entry.target}")
        for one in lost:
            for pid, target in one.users:
                if target not in told:
                    self._report(f"image {one.image} at {target} of process {pid}")
        self._lost = [one for one in lost if one.users]

    def _report(self, what: str) -> None:
        reason = "nobody kept its device while the daemon was dead; restart its container"
        self._observe(SnapshotterProblem(f"go on serving {what}", reason))

    def _listen(self, snapshotter: Snapshotter, captured: CapturedCredentials) -> None:
        paths, own = self._paths, self._stack
        if self._config.metrics_address:
            metrics = MetricsServer(self._config.metrics_address, self.metrics)
            own.callback(metrics.close)
        if self._config.cri_image_service:
            from pagein.snapshotter.cri_proxy import CriProxy

            proxy = CriProxy(paths.cri_socket, Path(self._config.cri_image_service), captured)
            proxy.start()
            own.callback(proxy.stop)
        server = SnapshotsServer(snapshotter, paths.snapshotter_socket, observer=self._observe)
        server.start()
        own.callback(server.stop)
        service = ControlService(
            self._config, self._attachments, self._mounts, self.describe, os.getpid()
        )
        control = ControlServer(paths.control, service.answer)
        own.callback(paths.control.unlink, missing_ok=True)
        own.callback(control.close)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        thread = threading.Thread(
            target=self._mounts.watch, args=(reader,), name="mounts", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            os.close(writer)
            thread.join()
            os.close(reader)

    def _observe(self, event: Event) -> None:
        self._totals.observe(event)
        self._counts.observe(event)
        self._log.observe(event)

    def summary(self) -> str:
        """Say in a line what is served."""
        return f"{len(self._attachments.devices())} images, {len(self._mounts.all())} mounts"

    def describe(self) -> dict[str, Any]:
        """Describe the process, for status."""
        return {
            "pid": os.getpid(),
            "version": __version__,
            "started": self._started,
            "resident_bytes": resident_bytes(),
            "kept": self._notifier.listened_to,
            "lost": [
                {"image": one.image, "users": [list(user) for user in one.users]}
                for one in self._lost
            ],
            **self._counts.snapshot(),
        }

    def metrics(self) -> str:
        """Write all figures for Prometheus."""
        devices = self._attachments.devices()
        totals = self._totals.snapshot() | self._counts.snapshot()
        totals |= {
            "images_attached": len(devices),
            "images_lost": len(self._lost),
            "mounts": len(self._mounts.all()),
            "resident_bytes": resident_bytes(),
            "up": 1,
        }
        each = (
            ({"image": one.reference, "device": one.entry.id}, one.stats.snapshot())
            for one in devices
        )
        return write_metrics(totals, each)


@contextlib.contextmanager
def _alone(paths: Paths) -> Iterator[None]:
    lock = os.open(paths.make(paths.run) / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UsageError(
            f"another pagein daemon serves {paths.run}", hint="stop it first"
        ) from None
    finally:
        os.close(lock)


def _wait(ended: threading.Event, notifier: Notifier, period_s: float | None) -> None:
    while not ended.wait(period_s):
        with contextlib.suppress(PageinError):
            notifier.alive()


def resident_bytes() -> int:
    """Return the memory that this process has (proc(5), statm)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _spare_memory() -> None:
    mallopt: Callable[[int, int], int] | None = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc's
        mallopt(_M_ARENA_MAX, _ARENAS)


def _raise_limits() -> None:
    """Allow as many descriptors as we may: an image takes about ten."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
