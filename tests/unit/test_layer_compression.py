"""Layer blobs to tar bytes: every form in, the same bytes out, and no damage unseen."""

import bz2
import gzip
import io
import lzma
import os
import tracemalloc

import pytest
import zstandard

from pagein.errors import FormatError
from pagein.format.compression import open_decompressed
from pagein.testing.layer_corpus import COMPRESSIONS, file, gzip_members, tar_layer, zstd_frames

ARCHIVE = tar_layer(*(file(b"%d" % n, os.urandom(3000) + bytes(5000)) for n in range(60)))


class Trickle(io.RawIOBase):
    """A stream of short reads, as sockets give."""

    def __init__(self, data: bytes, size: int) -> None:
        self.inner, self.size = io.BytesIO(data), size

    def read(self, size: int = -1) -> bytes:
        return self.inner.read(min(size, self.size))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
def test_every_form_gives_the_same_bytes_however_they_arrive(compression: str, size: int) -> None:
    archive = ARCHIVE[: 20 * 512] if size == 1 else ARCHIVE
    blob = COMPRESSIONS[compression][1](archive)
    assert open_decompressed(Trickle(blob, size)).read() == archive


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_readinto_fills_what_it_is_given(compression: str) -> None:
    stream = open_decompressed(io.BytesIO(COMPRESSIONS[compression][1](ARCHIVE)))
    buffer, out = bytearray(12345), bytearray()
    while count := stream.readinto(buffer):
        out += buffer[:count]
    assert out == ARCHIVE


def test_the_bytes_decide_and_not_the_media_type() -> None:
    blob = gzip.compress(ARCHIVE)
    assert open_decompressed(io.BytesIO(blob), "application/x-tar").read() == ARCHIVE


def test_an_empty_blob_is_an_empty_archive() -> None:
    assert open_decompressed(io.BytesIO(b"")).read() == b""


@pytest.mark.parametrize("compress", [gzip.compress, gzip_members, zstd_frames])
def test_a_blob_cut_anywhere_is_an_error(compress) -> None:
    archive = ARCHIVE[: 16 * 512]
    blob = compress(archive)
    ends = whole_ends(blob, compress)
    for cut in range(1, len(blob), 37):
        if cut not in ends:
            with pytest.raises(FormatError):
                open_decompressed(io.BytesIO(blob[:cut])).read()


def whole_ends(blob: bytes, compress) -> set[int]:
    """Lengths at which a cut leaves whole members or frames."""
    if compress is zstd_frames:
        return {at for at in range(len(blob)) if blob[at : at + 4] in (b"\x28\xb5\x2f\xfd", SKIP)}
    if compress is gzip_members:
        padding = set(range(len(blob) - 100, len(blob)))
        return padding | {at for at in range(len(blob)) if blob[at : at + 4] == b"\x1f\x8b\x08\0"}
    return set()


SKIP = b"\x53\x2a\x4d\x18"


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_blob_that_lacks_its_last_bytes_is_an_error(compression: str, cut: int) -> None:
    blob = COMPRESSIONS[compression][1](ARCHIVE)
    with pytest.raises(FormatError, match="ends too early"):
        open_decompressed(io.BytesIO(blob[:-cut])).read()


@pytest.mark.parametrize("compression", ["gzip", "gzip-members", "zstd", "zstd-frames"])
def test_garbage_after_the_end_is_an_error(compression: str) -> None:
    blob = COMPRESSIONS[compression][1](ARCHIVE) + b"garbage!" * 4
    with pytest.raises(FormatError, match="cannot decompress layer"):
        open_decompressed(io.BytesIO(blob)).read()


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"not a layer" * 100, "neither gzip nor zstd nor a tar archive"),
        (b"short", "ends too early"),
        (b"\x1f\x8b", "ends too early"),
        (bz2.compress(b"x" * 1000), "compressed with bzip2"),
        (lzma.compress(b"x" * 1000), "compressed with xz"),
    ],
)
def test_what_is_no_layer_gets_one_clear_line(blob: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        open_decompressed(io.BytesIO(blob), "a/type").read()


def test_a_wrong_gzip_checksum_is_an_error() -> None:
    blob = bytearray(gzip.compress(ARCHIVE))
    blob[-8] ^= 1
    with pytest.raises(FormatError):
        open_decompressed(io.BytesIO(bytes(blob))).read()


def test_a_zstd_frame_that_asks_for_a_huge_window_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    out = io.BytesIO()
    with compressor.stream_writer(out, closefd=False) as writer:
        writer.write(ARCHIVE)
    with pytest.raises(FormatError):
        open_decompressed(io.BytesIO(out.getvalue())).read()


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_bomb_is_read_in_the_memory_of_what_was_asked(compress) -> None:
    blob = compress(bytes(200 << 20))
    tracemalloc.start()
    try:
        stream = open_decompressed(io.BytesIO(blob))
        total = 0
        while data := stream.read(1 << 20):
            total += len(data)
        assert total == 200 << 20
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
