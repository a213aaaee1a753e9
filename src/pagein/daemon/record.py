"""``pagein record``: run a container on a fresh mount of its own, and say what it read.

The page cache of a new mount is empty, so each first touch of a block comes to the serving process
as a read. With a read-ahead of 0 these are the pages that were touched, and no others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from dataclasses import dataclass
from typing import Final

from pagein.daemon.containers import ContainerOptions, PreparedContainer, prepared
from pagein.daemon.control import ask
from pagein.daemon.images import FoundImage, Images
from pagein.daemon.mount_server import MountOptions
from pagein.daemon.mounts import MountFolder, MountRecord
from pagein.daemon.record_until import Conditions, Until, answers
from pagein.daemon.serve import serve_mount
from pagein.errors import PageinError, UsageError
from pagein.format.erofs.read import ErofsReader
from pagein.format.profile import Profile
from pagein.format.profile_from_reads import touched_files
from pagein.format.reads import Read, parse_reads
from pagein.runtime.container import RunningContainer

_HAND_OVER_S: Final = 60.0
_GRACE_S: Final = 3.0
"""Between stop signal and SIGKILL: less than elsewhere, as nothing of the container is kept.
Process 1 ignores a signal that it has no handler for, and Python has none for SIGTERM."""

_NOT_STARTED: Final = (126, 127)
"""Exit codes for a command that is not executable, or not there; shells use them, too."""


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """How a start is recorded. Without ``until`` it is recorded to the end of its command."""

    container: ContainerOptions
    until: Until
    read_ahead_kb: int = 0


@dataclass(frozen=True, slots=True)
class Recorded:
    """A profile, and the exit code for who asked. There is no profile of a command that could not
    start. ``is_cut``: there were more reads than are noted, the first of which made the profile."""

    profile: Profile | None
    code: int
    is_cut: bool


def record_image(images: Images, found: FoundImage, options: RecordOptions) -> Recorded:
    """Run a container, and return what it touched of its image.

    The exit code is the command's, or 0 where the condition was met, after which the container was
    stopped. Raises PageinError where the command ended before that, unless it was told to end.
    """
    if options.until.url is not None and answers(options.until.url):
        raise UsageError(
            f"{options.until.url} answers already, before the container runs",
            hint="stop what listens there, or name another address",
        )

    def mount(images: Images, found: FoundImage, mounting: MountOptions, claim: int) -> MountRecord:
        mounting = dataclasses.replace(mounting, record=True, read_ahead_kb=options.read_ahead_kb)
        return serve_mount(images, found, mounting, keep_from_server=(claim,))

    began = time.time()
    with prepared(images, found, options.container, mount) as container:
        folder = MountFolder(images.node.paths.mounts / container.mount.id)
        run = _Run(folder, options.until)
        code = run.run(container)
        command = json.loads((container.bundle / "config.json").read_bytes())["process"]["args"]
    if code in _NOT_STARTED:
        return Recorded(None, code, is_cut=False)
    profile = profile_of(
        found,
        run.reads,
        ended_at=run.ended_at,
        began=began,
        read_ahead_kb=options.read_ahead_kb,
        command=tuple(command),
    )
    if not profile.touches:
        raise PageinError(f"the command read nothing of {found.name}")
    return Recorded(profile, code, run.is_cut)


def profile_of(
    found: FoundImage,
    reads: list[Read],
    *,
    ended_at: float,
    began: float,
    read_ahead_kb: int,
    command: tuple[str, ...] = (),
) -> Profile:
    """Make the profile of one start. ``ended_at`` is by the clock of the reads; ``began`` is in
    seconds since the epoch. Raises FormatError where the image's metadata is broken."""
    files, touches = touched_files(reads, ErofsReader(found.index.metadata))
    first = min((read.seconds for read in reads), default=ended_at)
    return Profile(
        recorded=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        reference=str(found.name),
        source=found.index.source,
        command=command,
        read_ahead_kb=read_ahead_kb,
        seconds=round(ended_at - first, 3),
        files=files,
        touches=touches,
    )


class _Run:
    """One run of a container, and what was read until it ended or the condition was met."""

    def __init__(self, folder: MountFolder, until: Until) -> None:
        self._folder = folder
        self._until = until
        self._met = False
        self._failure: PageinError | None = None
        self._watcher: threading.Thread | None = None
        self._running: RunningContainer | None = None
        self.reads: list[Read] = []
        self.is_cut = False
        self.ended_at = 0.0

    def run(self, container: PreparedContainer) -> int:
        """Return the exit code: the command's, or 0 where the condition was met."""
        with Conditions(self._until) as conditions:

            def on_start(running: RunningContainer) -> None:
                self._running = running
                conditions.started()
                if self._until:
                    self._watcher = threading.Thread(target=self._watch, args=(conditions, running))
                    self._watcher.start()

            try:
                code = container.run(output=conditions.output(), on_start=on_start)
            finally:
                conditions.end()
                if self._watcher is not None:
                    self._watcher.join()
        if self._failure is not None:
            raise self._failure
        if self._met:
            return 0
        if self._until and not (self._running and self._running.was_asked_to_end):
            raise PageinError(
                f"the command ended with {code} before {self._until}; no profile was written"
            )
        self._take()
        return code

    def _watch(self, conditions: Conditions, running: RunningContainer) -> None:
        if not conditions.wait():
            return
        self._met = True
        try:
            self._take()  # first: what is read in order to stop is no part of a start
        except PageinError as error:
            self._failure = error
        finally:
            with contextlib.suppress(OSError):
                running.stop(_GRACE_S)

    def _take(self) -> None:
        """Have the serving process hand over the reads."""
        reply = ask(self._folder.control, {"op": "reads"}, timeout_s=_HAND_OVER_S)
        self.ended_at = time.monotonic()
        self.is_cut = bool(reply["full"])
        self.reads = parse_reads(self._folder.reads.read_bytes())
