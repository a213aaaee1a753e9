"""Collects the blocks of a hot region: each data sector is read once, each block put in its place.

The blocks of one hot sector come from hundreds of data sectors, and a hot region may have
gigabytes: so they meet in a scratch file, not in memory.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from pagein.build.pool import InOrder, Pool
from pagein.engine.coalesce import runs
from pagein.errors import PageinError
from pagein.events import Kind
from pagein.format.hot import CopySector
from pagein.format.index import Index
from pagein.store.source import RunSource
from pagein.types import BLOCK_SIZE, Digest, Encoding, Sector, SectorRef

_RUNS_IN_FLIGHT: Final = 4
"""Requests at a time, as many as a mount makes; a run has four sectors at most."""

_RUN_BYTES: Final = 16 << 20
"""Unpacked bytes of one request: with those in flight, and the one being placed, 80 MiB."""

OnRead = Callable[[int], None]
"""Called with the stored bytes that were read since the last call."""


class _Piece(NamedTuple):
    """``length`` bytes from ``start`` of a data sector go to byte ``place`` of the scratch file."""

    start: int
    length: int
    place: int


class SourcePlan:
    """Which data sectors to read, in the order of the packs, and where their pieces go."""

    def __init__(self, index: Index, copies: Sequence[CopySector]) -> None:
        self.size = len(copies) * index.sector_size
        self.pieces: dict[Digest, list[_Piece]] = defaultdict(list)
        wanted: dict[Digest, SectorRef] = {}
        for number, copy in enumerate(copies):
            place = number * index.sector_size
            for block, count in copy.runs:
                sector, start = divmod(block * BLOCK_SIZE, index.sector_size)
                ref = index.sectors[sector]
                length = count * BLOCK_SIZE
                if ref.encoding is not Encoding.ZERO:  # the scratch file is zeros to begin with
                    wanted[ref.digest] = ref
                    self.pieces[ref.digest].append(_Piece(start, length, place))
                place += length
        self.refs = sorted(wanted.values(), key=_pack_order)

    @property
    def stored(self) -> int:
        """Stored bytes of the sectors to read."""
        return sum(ref.stored for ref in self.refs)


def _pack_order(ref: SectorRef) -> tuple[str, int]:
    return (ref.pack.hex if ref.pack else "", ref.offset)


@contextmanager
def gathered(
    path: Path, plan: SourcePlan, source: RunSource, pool: Pool, on_read: OnRead
) -> Iterator[int]:
    """Yield a descriptor of the scratch file ``path`` that has all copies, sector after sector.

    Raises what the source raises, and OSError where the disk is full.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, plan.size)
        _gather(descriptor, plan, source, pool, on_read)
        yield descriptor
    finally:
        os.close(descriptor)


def _gather(
    descriptor: int, plan: SourcePlan, source: RunSource, pool: Pool, on_read: OnRead
) -> None:
    stored = {ref.digest: ref.stored for ref in plan.refs}

    def place(sectors: list[Sector]) -> None:
        for sector in sectors:
            view = memoryview(sector.data)
            for start, length, at in plan.pieces[sector.digest]:
                _write(descriptor, view[start : start + length], at)
            on_read(stored[sector.digest])

    work = InOrder(pool, _RUNS_IN_FLIGHT, place)
    most = max(1, _RUN_BYTES // plan.refs[0].size) if plan.refs else 1
    try:
        for run in runs(plan.refs, most_sectors=min(4, most)):
            work.add(lambda run=run: _fetch(source, run))  # type: ignore[misc]
        work.finish()
    finally:
        work.abandon()


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def _fetch(source: RunSource, run: list[SectorRef]) -> list[Sector]:
    """Fetch neighbours with one request; what did not come so is asked for singly, with retries."""
    found: dict[Digest, Sector] = {}
    if len(run) > 1:
        try:
            for sector in source.get_run(run, kind=Kind.HYDRATE):
                found[sector.digest] = sector
        except PageinError:
            pass
    return [found.get(ref.digest) or source.get(ref, kind=Kind.HYDRATE) for ref in run]
