"""Sends packs while layers are converted: a large one while it grows, others when finished."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pagein.build.growing import GrowingPack
from pagein.build.pack import Pack
from pagein.build.report import PackReport, Stage, StageClock
from pagein.errors import FormatError, NotFoundError, RemoteError
from pagein.store.repository import GrowingTaker, WritableRepository
from pagein.types import Digest

_WAITING = 2
"""Packs on the scratch disk at most, beside the one being written."""


class _StoppedError(Exception):
    """The conversion was given up."""


class Uploader:
    """One thread that sends packs in order, and deletes each file when it is there.

    Leaving the `with` block early stops the upload at its next report of progress. What was sent
    whole stays there, unreferenced, and is not sent again by the next run.
    """

    def __init__(self, destination: WritableRepository, clock: StageClock) -> None:
        self._destination = destination
        self._clock = clock
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pagein-upload")
        self._futures: list[Future[PackReport]] = []
        self._begun: dict[Path, Future[bool]] = {}
        self._growing: list[GrowingPack] = []

    def __enter__(self) -> Uploader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for pack in self._growing:
            pack.stop()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def begin(self, pack: GrowingPack) -> None:
        """Send a pack from now on, where the destination can take one that grows."""
        if isinstance(self._destination, GrowingTaker):
            self._growing.append(pack)
            self._begun[pack.path] = self._thread.submit(self._follow, self._destination, pack)

    def add(self, pack: Pack, layer: Digest) -> None:
        """Queue a pack; waits where two are on their way. Raises what an earlier upload raised."""
        begun = self._begun.pop(pack.path, None)
        self._futures.append(self._thread.submit(self._send, pack, layer, begun))
        if len(self._futures) > _WAITING:
            with self._clock.stage(Stage.UPLOAD):
                self._futures[-1 - _WAITING].result()

    def finish(self) -> tuple[PackReport, ...]:
        """Wait for all packs."""
        with self._clock.stage(Stage.UPLOAD):
            return tuple(future.result() for future in self._futures)

    def _follow(self, destination: GrowingTaker, pack: GrowingPack) -> bool:
        """Say whether the pack is there; if not, it is sent once more when it is finished."""
        try:
            destination.put_growing(pack)
        except (NotFoundError, RemoteError, FormatError):
            return False
        return True

    def _send(self, pack: Pack, layer: Digest, begun: Future[bool] | None) -> PackReport:
        sent = begun is not None and begun.result()
        if not sent:
            sent = self._destination.put_blob(pack.digest, pack.path, progress=self._check)
        pack.path.unlink(missing_ok=True)
        return PackReport(pack.digest, pack.size, layer, sent)

    def _check(self, count: int) -> None:
        del count
        if self._stop.is_set():
            raise _StoppedError
