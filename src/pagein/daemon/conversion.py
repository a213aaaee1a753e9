"""Convert an image on the node that wants to start it, because nobody else has."""

from __future__ import annotations

import contextlib
import threading

from pagein.build.convert import convert
from pagein.build.report import ConvertOptions
from pagein.daemon.images import ShowProgress
from pagein.daemon.wiring import Node
from pagein.errors import CacheError
from pagein.store.layout import LayoutRepository
from pagein.store.repository import Repository
from pagein.store.resolve import SourceImage
from pagein.types import Sector


class CountedProgress:
    """Turns what a conversion reports into bytes done of a total."""

    def __init__(self, show: ShowProgress) -> None:
        self._show = show
        self._lock = threading.Lock()
        self._total = 0
        self._done = 0

    def start(self, total: int) -> None:
        """Note the stored bytes of all layers."""
        with self._lock:
            self._total += total

    def read(self, count: int) -> None:
        """Note ``count`` more bytes."""
        with self._lock:
            self._done += count
            done, total = self._done, self._total
        self._show(done, total)

    def note(self, text: str) -> None:
        """Ignore it: the bar says enough."""


def convert_here(
    node: Node, place: Repository, source: SourceImage, progress: ShowProgress
) -> None:
    """Convert into this machine's own layout; its sectors go straight into the cache, too."""
    cache = node.cache()

    def keep(sector: Sector) -> None:
        with contextlib.suppress(CacheError):
            cache.put(sector)

    convert(
        place,
        source.manifest,
        source.blob,
        LayoutRepository(node.paths.make(node.paths.converted)),
        ConvertOptions(scratch=node.paths.make(node.paths.scratch)),
        progress=CountedProgress(progress),
        on_sector=keep,
    )
