"""What a recording notes of the reads that come to a device."""

from __future__ import annotations

import threading
from itertools import count

from pagein.device.block import PartImage
from pagein.device.recording import RecordingImage
from pagein.format.reads import Read, parse_reads


class Zeros:
    """A body of zeros, half of which is at hand at once."""

    size = 1 << 20

    def peek(self, offset: int, length: int, /) -> bytes | None:
        return bytes(length) if offset < self.size // 2 else None

    def pread(self, offset: int, length: int, /) -> bytes:
        return bytes(length)


def recording(most: int = 100) -> RecordingImage:
    ticks = count(5)
    return RecordingImage(Zeros(), most=most, monotonic=lambda: float(next(ticks)))


def test_each_read_is_noted_once_where_it_lies_in_the_body():
    image = recording()
    hot, data = PartImage(image, 0, 4096), PartImage(image, 4096, image.size - 4096)
    assert image.first_at is None
    assert hot.peek(0, 4096) == bytes(4096)
    assert data.peek(1 << 19, 8192) is None
    assert data.pread(1 << 19, 8192) == bytes(8192)  # the reply to the same read
    assert image.first_at == 5
    wanted = [Read(5, 0, 4096), Read(6, (1 << 19) + 4096, 8192)]
    assert parse_reads(image.notes()) == wanted
    assert image.size == 1 << 20
    assert not image.is_full


def test_after_so_many_reads_none_is_noted_and_all_are_answered():
    image = recording(most=2)
    for number in range(3):
        assert image.is_full == (number > 2)
        assert image.peek(number * 4096, 4096) == bytes(4096)
    assert image.is_full
    assert [read.offset for read in parse_reads(image.notes())] == [0, 4096]


def test_what_is_stopped_notes_nothing_more_and_answers():
    image = recording()
    image.peek(0, 4096)
    assert len(parse_reads(image.stop())) == 1
    assert image.peek(4096, 4096) == bytes(4096)
    assert image.notes() == b""
    assert not image.is_full


def test_two_threads_note_whole_reads():
    image = RecordingImage(Zeros())

    def read(first: int) -> None:
        for number in range(first, 200, 2):
            image.peek(number * 4096, 4096)

    threads = [threading.Thread(target=read, args=(first,)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.offset for one in parse_reads(image.notes())) == [
        number * 4096 for number in range(200)
    ]
