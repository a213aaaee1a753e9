"""Any index comes back; any damage to its bytes is found or changes nothing."""

from __future__ import annotations

import hashlib
import struct

import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pagein.errors import FormatError
from pagein.format.codec import decode_sector, encode_sector
from pagein.format.index import Index, decode_index, encode_index
from pagein.types import Digest, Encoding, SectorRef

SIZES = [256 << 10, 512 << 10, 4 << 20, 16 << 20]
ZEROS = {size: Digest.of(bytes(size)) for size in SIZES}
digests = st.integers(0, 50).map(lambda n: Digest.of(b"%d" % n))


@st.composite
def sector_refs(draw: st.DrawFn, size: int) -> SectorRef:
    encoding = draw(st.sampled_from(Encoding))
    if encoding is Encoding.ZERO:
        return SectorRef(ZEROS[size], size, encoding)
    stored = size if encoding is Encoding.RAW else draw(st.integers(1, size))
    offset = draw(st.integers(0, 1 << 50))
    return SectorRef(draw(digests), size, encoding, draw(digests), offset=offset, stored=stored)


@st.composite
def indexes(draw: st.DrawFn) -> Index:
    size = draw(st.sampled_from(SIZES))
    sectors = draw(st.lists(sector_refs(size), max_size=20))
    return Index(
        sector_size=size,
        metadata=draw(st.binary(min_size=1, max_size=64)) * 4096,
        config=draw(st.binary(max_size=200)),
        source=draw(digests),
        hot_sectors=draw(st.integers(0, len(sectors))),
        sectors=tuple(sectors),
        read_ahead_kb=draw(st.none() | st.integers(0, 0xFFFFFFFE)),
    )


def places(index: Index) -> list[tuple[Digest | None, int, int]]:
    """What the equality of `SectorRef` leaves out."""
    return [(ref.pack, ref.offset, ref.stored) for ref in index.sectors]


@given(indexes())
def test_an_index_comes_back_as_it_was(index: Index) -> None:
    data = encode_index(index)
    again = decode_index(data)
    assert again == index
    assert places(again) == places(index)
    assert encode_index(again) == data


def small_index() -> Index:
    size = SIZES[0]
    pack = Digest.of(b"pack")
    sectors = (
        SectorRef(Digest.of(b"a"), size, Encoding.ZSTD, pack, offset=0, stored=100),
        SectorRef(ZEROS[size], size, Encoding.ZERO),
        SectorRef(Digest.of(b"b"), size, Encoding.RAW, pack, offset=100, stored=size),
    )
    return Index(
        size, hashlib.shake_128(b"m").digest(4096), b"{}", Digest.of(b"s"), 1, sectors, 128
    )


BLOB = encode_index(small_index())


def read_or_refuse(data: bytes) -> Index | None:
    try:
        return decode_index(data)
    except FormatError:
        return None


def test_no_flipped_bit_outside_the_data_changes_the_value_unseen() -> None:
    """The frame has no checksum: the blob's digest is one. So a flip inside may give another index,
    but never an exception of another kind; the prelude, though, is checked bit by bit."""
    for bit in range(24 * 8):
        damaged = bytearray(BLOB)
        damaged[bit // 8] ^= 1 << bit % 8
        assert read_or_refuse(bytes(damaged)) is None


@given(st.integers(24, len(BLOB) - 1), st.integers(1, 255))
@settings(max_examples=300)
def test_a_flipped_byte_is_refused_or_gives_a_valid_index(at: int, flip: int) -> None:
    damaged = bytearray(BLOB)
    damaged[at] ^= flip
    found = read_or_refuse(bytes(damaged))
    if found is not None:
        assert decode_index(encode_index(found)) == found


UNPACKED = zstandard.ZstdDecompressor().decompress(BLOB[24:])


@given(st.integers(0, len(UNPACKED) - 4097), st.integers(1, 255))
@settings(max_examples=300)
def test_a_flipped_byte_under_the_compression_is_refused_or_gives_a_valid_index(
    at: int, flip: int
) -> None:
    damaged = bytearray(UNPACKED)
    damaged[at] ^= flip
    prelude = struct.pack("<8sHHIQ", b"PAGEIN\r\n", 1, 0, 0, len(damaged))
    found = read_or_refuse(prelude + zstandard.compress(bytes(damaged)))
    if found is not None:
        assert found != small_index() or places(found) != places(small_index())
        assert decode_index(encode_index(found)) == found


@given(st.integers(0, len(BLOB)))
def test_a_cut_blob_is_refused(length: int) -> None:
    assert length == len(BLOB) or read_or_refuse(BLOB[:length]) is None


@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    assert read_or_refuse(data) is None
    assert read_or_refuse(BLOB[:24] + data) is None


@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(1, 70_000)), min_size=1, max_size=8),
    st.binary(max_size=4096),
)
@settings(max_examples=50)
def test_a_sector_comes_back_from_its_stored_form(
    runs: list[tuple[int, int]], noise: bytes
) -> None:
    size = SIZES[0]
    data = (b"".join(bytes([value]) * count for value, count in runs) + noise)[:size].ljust(
        size, b"\0"
    )
    encoding, stored = encode_sector(data, level=3)
    pack = None if encoding is Encoding.ZERO else Digest.of(b"pack")
    ref = SectorRef(Digest.of(data), size, encoding, pack, stored=len(stored))
    assert bytes(decode_sector(ref, stored)) == data
    assert (encoding is Encoding.ZERO) == (not any(data))
