"""The start-up of a mounted image: what is brought here before it is asked for, and when that ends.

An image with a hot region starts with the read-ahead that its profile was recorded with, mostly
none: with another one, the kernel would read cold blocks beside the hot ones. The hot region is
streamed into the page cache of the file that EROFS reads it from, so that the start's reads never
leave the kernel; a read that comes before its sector waits for it as for any other.

A start may also do what no recorded one did. So the layer data of such an image goes through a page
cache of its file, too, whose read-ahead sees the device and not each file: without it, a file read
from front to back came page by page, at 68 MB/s instead of 390. When the start is over, the tree
gets the read-ahead of every day.

Rule 1. A start-up that fails costs speed, never a read.
Rule 2. Two threads at most, which begin with the mount: one brings sectors here, one waits for the
start to end. Both end with the image.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final

from pagein.daemon.config import Config
from pagein.device.backends import ServedFiles
from pagein.device.block import BlockImage, PartImage
from pagein.device.mount import set_read_ahead
from pagein.engine.pace import Pace
from pagein.errors import PageinError
from pagein.events import Kind, Observer, SnapshotterProblem
from pagein.format.index import Index
from pagein.store.hot_stream import HotStream
from pagein.store.image import LazyImage
from pagein.store.prefetch import hydrate, in_pack_order
from pagein.types import Buffer

START_S: Final = 30.0
"""How long a start may take. Files that are opened meanwhile keep its read-ahead."""

MOST_SHOWN: Final = 1 << 30
"""Bytes of the hot region that go into the page cache at most; what follows is only fetched."""


class StartUp:
    """One image from its mount on. ``body`` is what its parts show: ``image``, or what wraps it.

    ``plain``: reads are recorded, so nothing may keep them from us.
    """

    def __init__(
        self,
        name: str,
        index: Index,
        image: LazyImage,
        config: Config,
        observer: Observer,
        *,
        body: BlockImage | None = None,
        plain: bool = False,
    ) -> None:
        self._name = name
        self._image = image
        self._config = config
        self._observer = observer
        self._hot = index.hot_sectors
        self._hot_size = index.hot_sectors * index.sector_size
        self._body = body or image
        self._plain = plain
        self._ended = threading.Event()
        self._files: ServedFiles | None = None
        self._bdis: tuple[str, ...] = ()
        recorded = index.read_ahead_kb
        self.read_ahead_kb = config.read_ahead_kb if recorded is None or plain else recorded

    def parts(self) -> dict[str, BlockImage]:
        """Return the parts of the body that are not empty, in order."""
        body, hot = self._body, self._hot_size
        parts = {"hot": PartImage(body, 0, hot), "data": PartImage(body, hot, body.size - hot)}
        return {name: part for name, part in parts.items() if part.size}

    @property
    def cached(self) -> tuple[str, ...]:
        """The parts whose pages the kernel keeps."""
        return () if self._plain or not self._hot else ("hot", "data")

    @property
    def _raises(self) -> bool:
        return self.read_ahead_kb != self._config.read_ahead_kb and not self._plain

    def served(self, files: ServedFiles) -> None:
        """Begin: the parts can be read, though no tree is mounted yet."""
        self._files = files
        if self._plain:
            return
        began = time.monotonic()
        if self._streams or self._hydrates:
            self._begin(self._bring, began)
        if self._raises:
            self._begin(self._raise_read_ahead, began)

    def _begin(self, work: Callable[[float], None], began: float) -> None:
        def run() -> None:
            try:
                work(began)
            except (PageinError, OSError) as error:
                self._observer(SnapshotterProblem(f"start {self._name}", str(error)))

        # A daemon thread: a process that is told to end does not wait for what is a guess.
        thread = threading.Thread(target=run, name=f"start {self._name}", daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread to be had: all is read on demand
            thread.start()

    def mounted(self, bdis: tuple[str, ...]) -> None:
        """Note the backing devices of the mounted tree."""
        self._bdis = bdis

    def end(self) -> None:
        """Bring nothing more here. Does not wait; idempotent."""
        self._ended.set()

    @property
    def _streams(self) -> bool:
        return self._hot > 0 and self._config.prefetch != "none"

    @property
    def _hydrates(self) -> bool:
        return self._config.prefetch == "all" or self._config.hydrate_after_s is not None

    def _bring(self, began: float) -> None:
        if self._streams:
            self._stream()
        if self._hydrates:
            self._hydrate(began)

    def _stream(self) -> None:
        pace = Pace(self._config.prefetch_bytes_per_s)
        HotStream(self._image, self._hot, self._show, pace=pace, pause=self._pause).run()

    def _show(self, offset: int, data: Buffer) -> None:
        if offset < MOST_SHOWN and self._files is not None:
            self._files.store("hot", offset, data)

    def _pause(self, seconds: float) -> bool:
        return not self._ended.wait(seconds)

    def _raise_read_ahead(self, began: float) -> None:
        if self._pause(max(0.0, began + START_S - time.monotonic())):
            set_read_ahead(self._bdis, self._config.read_ahead_kb)

    def _hydrate(self, began: float) -> None:
        after = 0.0 if self._config.prefetch == "all" else self._config.hydrate_after_s or 0.0
        if not self._pause(max(0.0, began + after - time.monotonic())):
            return
        size = len(in_pack_order(self._image)) * self._image.sector_size
        if size > self._config.cache_bytes:
            reason = f"its {size} bytes do not fit the cache; set a larger cache_size"
            self._observer(SnapshotterProblem(f"hydrate {self._name}", reason))
            return
        pace = Pace(self._config.hydrate_bytes_per_s)
        hydrate(
            self._image,
            _unseen,
            kind=Kind.HYDRATE,
            go_on=lambda stored: self._pause(pace.wait_s(stored, time.monotonic())),
        )


def _unseen(done: int, total: int) -> None:
    """Show progress to nobody."""
    del done, total
