"""What a conversion is told, and what it tells: options, progress, times, result."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from pagein.errors import UsageError
from pagein.format.hot import ProfileMatch
from pagein.types import DEFAULT_SECTOR_SIZE, Digest, is_sector_size

DEFAULT_LEVEL = 3
"""zstd level of sectors. `bench/convert.py` compares levels: time grows faster than size falls."""


class Stage(StrEnum):
    """Where the time of a conversion goes.

    The first group is time on the converting thread and adds up to the whole, but for what it reads
    before the first layer. The second is time on the thread that reads layers, the ``*_CPU`` group
    processor time on the pool's threads, both beside it.
    """

    SOURCE_WAIT = "wait for the source"
    TREE = "tar and tree"
    WAIT = "wait for the pool"
    PLACE = "place files"
    METADATA = "metadata and index"
    UPLOAD = "wait for upload"
    READ = "reader: read source"
    DECOMPRESS = "reader: decompress"
    SPOOL_CPU = "pool: small files"
    HASH_CPU = "pool: hash sectors"
    ENCODE_CPU = "pool: compress sectors"


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How to convert. ``sector_size`` and ``level`` decide the digests; the others do not.

    ``jobs``: threads that hash and compress (0: one a core). ``scratch``: a folder on a disk with
    room for the largest layer's pack and a lightly compressed copy of its small files (None:
    `$TMPDIR` or /var/tmp).
    """

    sector_size: int = DEFAULT_SECTOR_SIZE
    level: int = DEFAULT_LEVEL
    jobs: int = 0
    scratch: Path | None = None

    def __post_init__(self) -> None:
        if not is_sector_size(self.sector_size):
            raise UsageError(
                f"not a sector size: {self.sector_size}",
                hint="a power of two from 256 KiB to 16 MiB",
            )
        if not 1 <= self.level <= 22:
            raise UsageError(f"not a zstd level: {self.level}", hint="1 to 22")
        if self.jobs < 0:
            raise UsageError(f"not a number of jobs: {self.jobs}", hint="0 means one a core")

    @property
    def threads(self) -> int:
        """Threads in the pool."""
        return self.jobs or os.cpu_count() or 1

    @property
    def scratch_parent(self) -> Path:
        """Folder that scratch folders are made in."""
        if self.scratch is not None:
            return self.scratch
        return Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108


class ConvertProgress(Protocol):
    """Watches a conversion. Called from the converting thread and the one that reads layers; must
    not block."""

    def start(self, total: int) -> None:
        """The source's layers have ``total`` stored bytes."""
        ...

    def read(self, count: int) -> None:
        """``count`` more stored bytes of the source are done."""
        ...

    def note(self, text: str) -> None:
        """A new step began; ``text`` names it for people."""
        ...


class Unwatched:
    """Progress that nobody sees."""

    def start(self, total: int) -> None:
        """Ignore it."""

    def read(self, count: int) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""


class StageClock:
    """Adds up seconds a stage. Stages nest: the outer one does not count the inner one's time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[Stage, float] = dict.fromkeys(Stage, 0.0)
        self._current = threading.local()

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Count the time of the block towards ``stage``."""
        outer: list[float] | None = getattr(self._current, "inner", None)
        inner = [0.0]
        self._current.inner = inner
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self._current.inner = outer
            if outer is not None:
                outer[0] += spent
            self.add(stage, spent - inner[0])

    def add(self, stage: Stage, seconds: float) -> None:
        """Count ``seconds`` measured elsewhere."""
        with self._lock:
            self._seconds[stage] += seconds

    def seconds(self) -> dict[Stage, float]:
        """Seconds a stage so far."""
        with self._lock:
            return dict(self._seconds)


@dataclass(frozen=True, slots=True)
class PackReport:
    """One pack: what it is, for which layer, and whether its bytes had to be sent.

    ``layer``: None for a pack that was there before the conversion.
    """

    digest: Digest
    size: int
    layer: Digest | None
    sent: bool


@dataclass(frozen=True, slots=True)
class Converted:
    """A published conversion. Sizes in bytes.

    ``content_size``: regular files of all layers, uncompressed. ``files``: regular files met in the
    layers. ``sectors``: rows of the sector table; ``stored_sectors``: different ones, no zeros.
    ``reused_size``: stored bytes of those that are in packs of a base.
    """

    artifact: Digest
    artifact_size: int
    index: Digest
    packs: tuple[PackReport, ...]
    index_size: int
    metadata_size: int
    source_size: int
    content_size: int
    files: int
    sectors: int
    stored_sectors: int
    reused_size: int
    seconds: float
    stages: dict[Stage, float] = field(default_factory=dict)

    @property
    def pack_size(self) -> int:
        """Stored bytes of all packs."""
        return sum(pack.size for pack in self.packs)


@dataclass(frozen=True, slots=True)
class Reused:
    """An artifact of the image that was there already, so that nothing was converted.

    The one that nodes find; ``optimized_from`` is the one that it was made from for a profile.
    """

    artifact: Digest
    artifact_size: int
    optimized_from: Digest | None
    index: Digest
    packs: tuple[PackReport, ...]
    index_size: int
    sectors: int


@dataclass(frozen=True, slots=True)
class Optimized:
    """A published artifact with a hot region. Sizes in bytes.

    ``hot_stored``: what a start-up streams; ``pack_size`` is that of the copies among it. Of
    ``hot_sectors``, ``whole_sectors`` are sectors of the layer data. ``read_size``: stored bytes of
    the sectors that were read. ``was_there``: an earlier run had published it.
    """

    artifact: Digest
    artifact_size: int
    optimized_from: Digest
    profile: Digest
    index: Digest
    match: ProfileMatch
    hot_sectors: int
    whole_sectors: int
    hot_size: int
    hot_stored: int
    pack_size: int
    index_size: int
    plain_index_size: int
    metadata_size: int
    plain_metadata_size: int
    read_size: int
    sent_size: int
    was_there: bool
    seconds: float
