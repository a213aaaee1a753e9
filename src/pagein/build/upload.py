"""Sends finished packs while the next layer is converted."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

from pagein.build.pack import Pack
from pagein.build.report import PackReport, Stage, StageClock
from pagein.store.repository import WritableRepository
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

    def __enter__(self) -> Uploader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def add(self, pack: Pack, layer: Digest) -> None:
        """Queue a pack; waits where two are on their way. Raises what an earlier upload raised."""
        self._futures.append(self._thread.submit(self._send, pack, layer))
        if len(self._futures) > _WAITING:
            with self._clock.stage(Stage.UPLOAD):
                self._futures[-1 - _WAITING].result()

    def finish(self) -> tuple[PackReport, ...]:
        """Wait for all packs."""
        with self._clock.stage(Stage.UPLOAD):
            return tuple(future.result() for future in self._futures)

    def _send(self, pack: Pack, layer: Digest) -> PackReport:
        sent = self._destination.put_blob(pack.digest, pack.path, progress=self._check)
        pack.path.unlink(missing_ok=True)
        return PackReport(pack.digest, pack.size, layer, sent)

    def _check(self, count: int) -> None:
        del count
        if self._stop.is_set():
            raise _StoppedError
