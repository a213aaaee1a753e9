"""Error numbers, and views of images."""

import errno

import pytest

from pagein.device.block import FlatImage, PartImage
from pagein.device.errno_table import errno_of
from pagein.errors import (
    CacheFullError,
    DeviceError,
    NotFoundError,
    RemoteDeniedError,
    RemoteUnavailableError,
    SectorCorruptError,
)
from pagein.types import Buffer


class MemoryImage:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def pread(self, offset: int, length: int, /) -> Buffer:
        return self.data[offset : offset + length]

    peek = pread


@pytest.mark.parametrize(
    "error",
    [
        RemoteUnavailableError("x"),
        RemoteDeniedError("x"),
        NotFoundError("x"),
        SectorCorruptError("x"),
        CacheFullError("x"),
        DeviceError("x", errno=errno.ENOENT),
        OSError(errno.ENOSPC, "x"),
        ValueError("x"),
        KeyboardInterrupt(),
    ],
)
def test_whatever_went_wrong_a_reader_sees_eio(error: BaseException):
    assert errno_of(error) == errno.EIO


def test_too_little_memory_is_said_as_such():
    assert errno_of(MemoryError()) == errno.ENOMEM


def test_a_flat_image_is_metadata_then_zeros_then_body():
    metadata, body = b"m" * 5000, bytes(range(256)) * 64
    flat = FlatImage(metadata, 8192, MemoryImage(body))
    whole = metadata + bytes(8192 - 5000) + body
    assert flat.size == len(whole)
    for offset in (0, 4096, 4999, 5000, 8191, 8192, 8193, 20000):
        for length in (1, 512, 4096):
            assert bytes(flat.pread(offset, length)) == whole[offset : offset + length]
            found = flat.peek(offset, length)
            assert found is None or bytes(found) == whole[offset : offset + length]


def test_a_part_is_an_image_of_its_own():
    body = bytes(range(256)) * 64
    part = PartImage(MemoryImage(body), 4096, 8192)
    assert part.size == 8192
    assert part.pread(10, 100) == part.peek(10, 100) == body[4106:4206]
