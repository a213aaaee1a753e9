"""Keeps a layer's small files until they can be sorted by path.

They are kept in batches of a few hundred KiB: the first ones in memory as they are, the others on
disk, each batch one zstd frame. A tar lists files folder by folder, so that files that end up in
one sector mostly come from few batches.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from pagein.build.pool import InOrder, Pool
from pagein.build.report import Stage
from pagein.format.sectors import aligned
from pagein.format.tree import Node
from pagein.types import Buffer

_BATCH_BYTES = 256 << 10
"""Small enough that files in random order cost one cheap decompression each, not a big one."""

_IN_MEMORY_BYTES = 128 << 20
"""Most layers' small files fit, and need no compression that is undone at once."""

_BATCHES_IN_FLIGHT = 64
_LEVEL = 1


@dataclass(frozen=True, slots=True, eq=False)
class _Frame:
    """A batch: ``size`` bytes, here as ``data`` or packed on disk."""

    size: int
    data: bytes | None = None
    offset: int = 0
    stored: int = 0


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """A small file on the spool: ``size`` bytes from ``start`` of the unpacked ``frame``."""

    key: bytes
    node: Node
    size: int
    digest: bytes
    frame: _Frame
    start: int


@dataclass(frozen=True, slots=True)
class _Arrival:
    key: bytes
    node: Node
    data: Buffer


class Spool:
    """One layer's small files. Used by the converting thread; what `reader` returns, by any."""

    def __init__(self, path: Path, pool: Pool) -> None:
        self._pool = pool
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        path.unlink()
        self._lock = threading.Lock()
        self._end = 0
        self._in_memory = 0
        self._batch: list[_Arrival] = []
        self._batch_bytes = 0
        self._files: list[SpooledFile] = []
        self._work: InOrder[list[SpooledFile]] = InOrder(
            pool, _BATCHES_IN_FLIGHT, self._files.extend
        )

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._work.abandon()
        os.close(self._descriptor)

    def add(self, key: bytes, node: Node, data: Buffer) -> None:
        """Keep a file's bytes, which must not change, to be placed in order of ``key``."""
        self._batch.append(_Arrival(key, node, data))
        self._batch_bytes += len(data)
        if self._batch_bytes >= _BATCH_BYTES:
            self._flush()

    def finish(self) -> list[SpooledFile]:
        """Return all files in order of arrival."""
        self._flush()
        self._work.finish()
        return self._files

    def reader(self, files: Sequence[SpooledFile], length: int) -> Callable[[], Buffer]:
        """Return what makes a sector of ``length`` bytes: each file at the next 4096 bytes."""
        return lambda: self._read(files, length)

    def _flush(self) -> None:
        batch = self._batch
        self._batch, self._batch_bytes = [], 0
        if batch:
            self._work.add(lambda: self._store(batch))

    def _store(self, batch: list[_Arrival]) -> list[SpooledFile]:
        """On the pool: hash each file, compress all together, write at a place of its own."""
        with self._pool.cpu(Stage.SPOOL_CPU):
            digests = [hashlib.sha256(arrival.data).digest() for arrival in batch]
            joined = b"".join(arrival.data for arrival in batch)
            frame = self._keep(joined)
        files = []
        start = 0
        for arrival, digest in zip(batch, digests, strict=True):
            size = len(arrival.data)
            files.append(SpooledFile(arrival.key, arrival.node, size, digest, frame, start))
            start += size
        return files

    def _keep(self, joined: bytes) -> _Frame:
        with self._lock:
            if self._in_memory + len(joined) <= _IN_MEMORY_BYTES:
                self._in_memory += len(joined)
                return _Frame(len(joined), data=joined)
        packed = zstandard.ZstdCompressor(level=_LEVEL).compress(joined)
        with self._lock:
            frame = _Frame(len(joined), offset=self._end, stored=len(packed))
            self._end += len(packed)
        _write_all(self._descriptor, packed, frame.offset)
        return frame

    def _load(self, frame: _Frame) -> memoryview:
        if frame.data is not None:
            return memoryview(frame.data)
        packed = os.pread(self._descriptor, frame.stored, frame.offset)
        unpacked = zstandard.ZstdDecompressor().decompress(packed, max_output_size=frame.size)
        return memoryview(unpacked)

    def _read(self, files: Sequence[SpooledFile], length: int) -> Buffer:
        """On the pool: fill a sector, unpacking each frame once."""
        with self._pool.cpu(Stage.SPOOL_CPU):
            by_frame: dict[_Frame, list[tuple[int, SpooledFile]]] = {}
            at = 0
            for file in files:
                by_frame.setdefault(file.frame, []).append((at, file))
                at += aligned(file.size)
            sector = bytearray(length)
            for frame, placed in by_frame.items():
                data = self._load(frame)
                for at, file in placed:
                    sector[at : at + file.size] = data[file.start : file.start + file.size]
            return sector


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
