"""Recording left on: the daemon records the first starts of each image on its node.

A recording begins when an image is attached, and lasts for ``record_seconds`` after the first read,
or until the image is detached. A start never fails, and never waits, because of it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from pagein.daemon.images import FoundImage, Images
from pagein.daemon.profiles import Profiles
from pagein.daemon.record import profile_of
from pagein.device.block import BlockImage
from pagein.device.recording import RecordingImage
from pagein.errors import PageinError
from pagein.events import Observer, SnapshotterProblem
from pagein.format.reads import parse_reads
from pagein.store.profiles import save_profile

READ_AHEAD_KB: Final = 0
"""Of a mount that is recorded: with any other, the profile would have pages that nobody touched."""

_MOST_READS: Final = 1 << 20
"""20 MB of notes at most for an image; the start of one of 6 GB takes 55,000."""

_LOOK_S: Final = 0.5
_LAST_S: Final = 10.0
"""What the daemon's end waits for a profile to be written."""


class StartRecorder:
    """Decides which starts are recorded, and keeps what they touched. Safe to use from any thread.

    Images with a hot region are not recorded: that would slow down the very starts that a profile
    has made fast.
    """

    def __init__(self, images: Images, observer: Observer) -> None:
        self._images = images
        self._observer = observer
        self._config = images.node.config
        self._lock = threading.Lock()
        self._running: dict[str, StartRecording] = {}

    def begin(
        self, device_id: str, found: FoundImage, when_over: Callable[[], None]
    ) -> StartRecording | None:
        """Record the start of a device that is about to be mounted; None: it is not recorded.

        ``when_over`` is called by a thread of ours when nothing is noted any more.
        """
        wanted = self._config.record_starts
        if not wanted or found.index.hot_sectors:
            return None
        folder = self.folder(found)
        with self._lock:
            there = sum(folder == one.folder for one in self._running.values())
        # After those that run: one that ends just now counts twice, never not at all.
        if there + len(list(folder.glob("*.json"))) >= wanted:
            return None
        recording = StartRecording(device_id, found, folder)
        with self._lock:
            self._running[device_id] = recording
        thread = threading.Thread(
            target=self._record, args=(recording, when_over), name="recorder", daemon=True
        )
        recording.thread = thread
        thread.start()
        return recording

    def end(self, device_id: str) -> None:
        """End a recording, if there is one. Does not wait; idempotent."""
        with self._lock:
            recording = self._running.get(device_id)
        if recording is not None:
            recording.ended.set()

    def close(self) -> None:
        """End all recordings, and wait a moment until they are written."""
        with self._lock:
            running = list(self._running.values())
        for recording in running:
            recording.ended.set()
        until = time.monotonic() + _LAST_S
        for recording in running:
            if recording.thread is not None:
                recording.thread.join(max(0.0, until - time.monotonic()))

    def folder(self, found: FoundImage) -> Path:
        """Where the profiles of an image lie: by the digest of the manifest it was made from."""
        return self._images.node.paths.profiles / found.index.source.hex

    def _record(self, recording: StartRecording, when_over: Callable[[], None]) -> None:
        try:
            recording.wait(self._config.record_seconds)
            notes = recording.stop()
            with self._telling("set back the read-ahead", recording.found):
                when_over()
            if notes:
                with self._telling("record a start", recording.found):
                    self._keep(recording, notes)
        finally:
            with self._lock:
                self._running.pop(recording.device_id, None)

    @contextlib.contextmanager
    def _telling(self, what: str, found: FoundImage) -> Iterator[None]:
        try:
            yield
        except (PageinError, OSError) as error:
            self._observer(SnapshotterProblem(f"{what} of {found.name}", str(error)))

    def _keep(self, recording: StartRecording, notes: bytes) -> None:
        profile = profile_of(
            recording.found,
            parse_reads(notes),
            ended_at=time.monotonic(),
            began=recording.began,
            read_ahead_kb=READ_AHEAD_KB,
        )
        self._images.node.paths.make(recording.folder)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(recording.began))
        save_profile(recording.folder / f"{stamp}-{recording.device_id}.json", profile)
        if self._config.record_to == "registry":
            Profiles(self._images).push(recording.found, profile)


class StartRecording:
    """One start that is being recorded."""

    read_ahead_kb = READ_AHEAD_KB

    def __init__(self, device_id: str, found: FoundImage, folder: Path) -> None:
        self.device_id = device_id
        self.found = found
        self.folder = folder
        self.began = time.time()
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None
        self._image: RecordingImage | None = None

    def wrap(self, body: BlockImage) -> BlockImage:
        """Return an image that notes the reads of ``body``."""
        self._image = RecordingImage(body, most=_MOST_READS)
        return self._image

    def wait(self, seconds: float) -> None:
        """Wait until the recording is ended, or that long after the first read."""
        while not self.ended.wait(min(_LOOK_S, seconds)):
            first_at = None if self._image is None else self._image.first_at
            if first_at is not None and time.monotonic() - first_at >= seconds:
                return

    def stop(self) -> bytes:
        """Note nothing from now on; return the notes."""
        return b"" if self._image is None else self._image.stop()
