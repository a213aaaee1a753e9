"""How sectors are stored, and what is refused. The stored forms are made with `zstandard`."""

from __future__ import annotations

import hashlib
import tracemalloc

import pytest
import zstandard

from pagein.errors import FormatError
from pagein.format.codec import decode_sector, encode_sector, is_zero
from pagein.types import Digest, Encoding, SectorRef

SECTOR = 256 << 10
TEXT = (b"the quick brown fox %d\n" * 20_000)[:SECTOR]
NOISE = hashlib.shake_128(b"noise").digest(SECTOR)
PACK = Digest.of(b"pack")


def ref_of(data: bytes, encoding: Encoding, stored: int) -> SectorRef:
    pack = None if encoding is Encoding.ZERO else PACK
    return SectorRef(Digest.of(data), SECTOR, encoding, pack, stored=stored)


def zstd_ref(stored: bytes) -> SectorRef:
    return ref_of(TEXT, Encoding.ZSTD, len(stored))


def test_text_is_compressed_noise_is_stored_raw_and_zeros_are_not_stored() -> None:
    encoding, stored = encode_sector(TEXT, level=3)
    assert encoding is Encoding.ZSTD
    assert zstandard.ZstdDecompressor().decompress(stored) == TEXT
    assert encode_sector(NOISE, level=3) == (Encoding.RAW, NOISE)
    assert encode_sector(bytes(SECTOR), level=3) == (Encoding.ZERO, b"")


def test_what_gains_less_than_three_percent_is_stored_raw() -> None:
    almost = NOISE[: SECTOR - 4096] + bytes(4096)
    assert encode_sector(almost, level=3)[0] is Encoding.RAW
    worth_it = NOISE[: SECTOR - SECTOR // 10] + bytes(SECTOR // 10)
    assert encode_sector(worth_it, level=3)[0] is Encoding.ZSTD


def test_a_frame_names_its_size_and_carries_no_checksum() -> None:
    stored = encode_sector(TEXT, level=3)[1]
    parameters = zstandard.get_frame_parameters(stored)
    assert parameters.content_size == SECTOR
    assert not parameters.has_checksum
    assert parameters.dict_id == 0


@pytest.mark.parametrize("where", [0, 1, 65_535, 65_536, SECTOR - 1])
def test_one_byte_makes_a_sector_not_zero(where: int) -> None:
    data = bytearray(SECTOR)
    assert is_zero(data)
    data[where] = 1
    assert not is_zero(data)
    assert not is_zero(memoryview(bytes(data)))


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_537, 100_000])
def test_zeros_of_any_length_are_zero(size: int) -> None:
    assert is_zero(bytes(size))


@pytest.mark.parametrize("data", [TEXT, NOISE, bytes(SECTOR)])
def test_every_encoding_comes_back(data: bytes) -> None:
    encoding, stored = encode_sector(data, level=3)
    assert bytes(decode_sector(ref_of(data, encoding, len(stored)), stored)) == data


def test_a_stored_form_of_another_length_is_refused() -> None:
    stored = zstandard.compress(TEXT)
    for wrong in (stored[:-1], stored + b"\0"):
        with pytest.raises(FormatError, match="is stored in"):
            decode_sector(zstd_ref(stored), wrong)


def streamed(data: bytes) -> bytes:
    """A frame without a content size."""
    compressor = zstandard.ZstdCompressor().compressobj()
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    "stored",
    [
        streamed(TEXT),
        zstandard.compress(TEXT[:-1]),
        zstandard.compress(TEXT + b"x"),
        zstandard.compress(TEXT[:1000]) + zstandard.compress(TEXT[1000:]),
        zstandard.compress(TEXT) + zstandard.compress(b""),
        zstandard.compress(TEXT) + b"trailing",
        zstandard.compress(TEXT)[:-3],
        b"no zstd at all",
        b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstandard.compress(TEXT),
    ],
    ids=["no size", "short", "long", "two frames", "empty frame after", "trailing", "cut",
         "not zstd", "skippable frame first"],
)  # fmt: skip
def test_anything_but_one_whole_frame_of_the_sector_size_is_refused(stored: bytes) -> None:
    with pytest.raises(FormatError):
        decode_sector(zstd_ref(stored), stored)


def test_a_bomb_costs_no_more_than_a_sector() -> None:
    stored = zstandard.compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="unpacks to 67108864 bytes"):
            decode_sector(zstd_ref(stored), stored)
        assert tracemalloc.get_traced_memory()[1] < 2 * SECTOR
    finally:
        tracemalloc.stop()
