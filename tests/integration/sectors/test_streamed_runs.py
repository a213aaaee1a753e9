"""The sectors of a run are used as they come, and not when the last byte is here."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from pagein.engine.coalesce import runs
from pagein.errors import RemoteUnavailableError, SectorCorruptError
from pagein.events import Kind
from pagein.store.pack import PackSource
from pagein.store.registry import RegistryRepository
from pagein.testing.contract_sources import packed
from pagein.testing.link import Link
from pagein.testing.registry import FakeRegistry
from pagein.transport.http import HttpTransport
from pagein.types import MIN_SECTOR_SIZE, Buffer, ByteRange, Digest, ImageName

_draw = random.Random(9)
DATA = tuple(_draw.randbytes(MIN_SECTOR_SIZE) for _ in range(4))
PACK, REFS = packed(DATA)


class Trickle:
    """A place that gives the first of several ranges, and the others when it is told to."""

    name = "trickle"

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.closed = False

    def read_range(self, digest: Digest, span: ByteRange, /) -> Buffer:
        raise AssertionError("a run is asked for in one")

    def read_ranges(self, digest: Digest, spans: Sequence[ByteRange], /) -> Iterator[Buffer]:
        try:
            for number, span in enumerate(spans):
                if number and not self.go_on.wait(10):
                    raise RemoteUnavailableError("held up for too long")
                yield PACK[span.start : span.stop]
        finally:
            self.closed = True


def test_the_first_sector_of_a_run_is_there_before_the_others():
    place = Trickle()
    found = PackSource(place).get_run(REFS, kind=Kind.PREFETCH)
    assert bytes(next(found).data) == DATA[0]
    place.go_on.set()
    assert [bytes(sector.data) for sector in found] == list(DATA[1:])
    assert place.closed


def test_a_run_that_is_given_up_frees_its_connection():
    place = Trickle()
    found = PackSource(place).get_run(REFS, kind=Kind.PREFETCH)
    next(found)
    found.close()
    assert place.closed


def test_wrong_bytes_end_a_run_after_the_right_ones():
    class Damaged(Trickle):
        def read_ranges(self, digest: Digest, spans: Sequence[ByteRange], /) -> Iterator[Buffer]:
            for number, piece in enumerate(super().read_ranges(digest, spans)):
                yield piece if number < 2 else bytes(len(piece))

    place = Damaged()
    place.go_on.set()
    found = PackSource(place).get_run(REFS, kind=Kind.PREFETCH)
    assert [bytes(next(found).data) for _ in range(2)] == list(DATA[:2])
    with pytest.raises(SectorCorruptError):
        next(found)


def test_a_registry_gives_a_run_in_one_request_and_piece_by_piece():
    transport = HttpTransport(timeout_s=10)
    # 1 MB at 2 MB/s: a quarter of it comes in an eighth of a second.
    with FakeRegistry(link=Link(bits_per_s=16e6)) as registry:
        place = RegistryRepository(ImageName.parse(f"{registry.host}/app:v1"), transport)
        place.put_blob(Digest.of(PACK), PACK)
        registry.forget_requests()
        (run,) = runs(REFS)
        began = time.monotonic()
        came = []
        for sector, data in zip(
            PackSource(place).get_run(run, kind=Kind.PREFETCH), DATA, strict=True
        ):
            assert bytes(sector.data) == data
            came.append(time.monotonic() - began)
        assert len(registry.requests("GET", "blobs")) == 1
    transport.close()
    assert came[0] < came[-1] / 2
