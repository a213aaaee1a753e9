"""A hot region comes in its order, in few requests, and never in the way of a reader."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest

from pagein.engine.backoff import Backoff
from pagein.engine.pace import Pace
from pagein.errors import RemoteUnavailableError
from pagein.events import Kind, Observer, SectorFetched, ignore
from pagein.store.directory import DirectoryCache
from pagein.store.hot_stream import HotStream
from pagein.store.stack import ReadPath
from pagein.testing.contract_sources import packed
from pagein.testing.faulty_source import PackFile
from pagein.types import MIN_SECTOR_SIZE, Buffer, ByteRange

SIZE = MIN_SECTOR_SIZE
HOT = 10
_draw = random.Random(4)
DATA = tuple(
    bytes(SIZE) if number == 6 else _draw.randbytes(SIZE // 2) + bytes(SIZE // 2)
    for number in range(20)
)
PACK, REFS = packed(DATA)


class Shown:
    """What a stream has shown, in order."""

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.data: dict[int, bytes] = {}

    def __call__(self, offset: int, data: Buffer) -> None:
        self.offsets.append(offset)
        self.data[offset] = bytes(data)


def _path(folder: Path, pack: PackFile, watcher: Observer = ignore) -> ReadPath:
    return ReadPath(
        REFS,
        SIZE,
        [pack],
        DirectoryCache(folder, limit_bytes=64 << 20),
        backoff=Backoff(0.001, 0.01),
        read_timeout_s=0.5,
        observer=watcher,
    )


def _stream(path: ReadPath, shown: Shown, **more: object) -> HotStream:
    return HotStream(path.image, HOT, shown, pause=more.pop("pause", lambda s: True), **more)


def test_sectors_are_shown_in_order_and_once_but_for_zeros(tmp_path: Path, watcher: Any):
    pack, shown = PackFile([PACK]), Shown()
    with _path(tmp_path, pack, watcher) as path:
        assert _stream(path, shown).run() is True
    assert shown.offsets == [number * SIZE for number in range(HOT) if number != 6]
    assert all(shown.data[at] == DATA[at // SIZE] for at in shown.offsets)
    assert {event.kind for event in watcher.of(SectorFetched)} == {Kind.PREFETCH}
    assert len(watcher.of(SectorFetched)) == HOT - 1
    assert len(pack.reads) <= 3  # four sectors a request


def test_what_is_in_the_cache_is_shown_without_a_request(tmp_path: Path):
    pack, again = PackFile([PACK]), Shown()
    with _path(tmp_path, pack) as path:
        _stream(path, Shown()).run()
    pack.reads.clear()
    with _path(tmp_path, pack) as path:
        assert _stream(path, again).run() is True
    assert pack.reads == []
    assert all(again.data[at] == DATA[at // SIZE] for at in again.offsets)
    assert len(again.offsets) == HOT - 1


def test_a_source_that_fails_ends_the_stream_and_no_reader(tmp_path: Path):
    failing = threading.Event()
    failing.set()

    def damage(span: ByteRange, data: bytes) -> bytes:
        if failing.is_set():
            raise RemoteUnavailableError("the registry is away")
        return data

    shown = Shown()
    with _path(tmp_path, PackFile([PACK], damage=damage)) as path:
        assert _stream(path, shown).run() is False
        assert shown.offsets == []
        failing.clear()
        assert bytes(path.image.pread(0, SIZE)) == DATA[0]


def test_a_reader_far_ahead_does_not_wait_for_the_stream(tmp_path: Path):
    """The stream is held up over its first request; the last hot sector comes all the same."""
    first, go_on = threading.Event(), threading.Event()

    def damage(span: ByteRange, data: bytes) -> bytes:
        if span.start == 0:
            first.set()
            assert go_on.wait(10)
        return data

    shown = Shown()
    with _path(tmp_path, PackFile([PACK], damage=damage)) as path:
        thread = threading.Thread(target=_stream(path, shown).run)
        thread.start()
        assert first.wait(10)
        assert bytes(path.image.pread((HOT - 1) * SIZE, SIZE)) == DATA[HOT - 1]
        assert shown.offsets == []
        go_on.set()
        thread.join(10)
        assert not thread.is_alive()
    assert len(shown.offsets) == HOT - 1


def test_a_stream_that_is_told_to_end_asks_for_nothing_more(tmp_path: Path):
    pack, shown = PackFile([PACK]), Shown()
    with _path(tmp_path, pack) as path:
        assert _stream(path, shown, pause=lambda seconds: False).run() is False
    assert len(shown.offsets) == 4
    assert len(pack.reads) == 1


@pytest.mark.parametrize("rate", [None, 1e6])
def test_a_stream_keeps_to_its_pace(rate: float | None, tmp_path: Path):
    waits: list[float] = []

    def pause(seconds: float) -> bool:
        waits.append(seconds)
        return True

    with _path(tmp_path, PackFile([PACK])) as path:
        _stream(path, Shown(), pace=Pace(rate), pause=pause, monotonic=lambda: 50.0).run()
    assert (max(waits) > 0) is (rate is not None)
