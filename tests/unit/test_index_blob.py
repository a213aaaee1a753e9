"""The index blob against hostile and foreign bytes. The fixtures pack bytes by docs/format.md, with
`struct` and `zstandard` alone, so that the encoder is no witness for the decoder."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc
from typing import Any

import pytest
import zstandard

from pagein.errors import FormatError
from pagein.format.index import Index, decode_index, encode_index
from pagein.types import Digest, Encoding, SectorRef

SECTOR = 256 << 10
METADATA = b"M" * 4096
NO_READ_AHEAD = 0xFFFFFFFF
CONFIG = b'{"os":"linux"}'
PACK = hashlib.sha256(b"pack").digest()
OTHER_PACK = hashlib.sha256(b"other pack").digest()
DATA = hashlib.sha256(b"sector").digest()
SOURCE = hashlib.sha256(b"source manifest").digest()


def row(
    digest: bytes = DATA, pack: int = 0, encoding: int = 2, stored: int = 100, offset: int = 0
) -> bytes:
    return struct.pack("<32sHBBIQ", digest, pack, encoding, 0, stored, offset)


def body(
    rows: tuple[bytes, ...] = (row(),),
    packs: tuple[bytes, ...] = (PACK,),
    content: bytes = METADATA,
    **header: int,
) -> bytes:
    values = {
        "sector_size": SECTOR,
        "hot": 0,
        "count": len(rows),
        "pack_count": len(packs),
        "read_ahead": NO_READ_AHEAD,
        "config": len(CONFIG),
        "reserved": 0,
        "metadata": len(content),
        **header,
    }
    head = struct.pack("<II", values.pop("sector_size"), values.pop("hot")) + SOURCE
    head += struct.pack("<IIIIIQ", *values.values())
    return head + b"".join(packs) + b"".join(rows) + CONFIG + content


def blob(
    unpacked: bytes,
    *,
    magic: bytes = b"PAGEIN\r\n",
    version: int = 1,
    flags: int = 0,
    reserved: int = 0,
    length: int | None = None,
) -> bytes:
    said = len(unpacked) if length is None else length
    prelude = struct.pack("<8sHHIQ", magic, version, flags, reserved, said)
    return prelude + zstandard.ZstdCompressor(level=1).compress(unpacked)


def test_an_index_packed_by_hand_is_read() -> None:
    zero = row(digest=hashlib.sha256(bytes(SECTOR)).digest(), pack=0xFFFF, encoding=0, stored=0)
    raw = row(pack=1, encoding=1, stored=SECTOR, offset=7)
    index = decode_index(blob(body((row(), zero, raw), (PACK, OTHER_PACK), hot=1, read_ahead=128)))
    assert index.sector_size == SECTOR
    assert index.metadata == METADATA
    assert index.config == CONFIG
    assert index.source.raw == SOURCE
    assert (index.hot_sectors, index.data_sectors, index.read_ahead_kb) == (1, 2, 128)
    assert [ref.encoding for ref in index.sectors] == [Encoding.ZSTD, Encoding.ZERO, Encoding.RAW]
    assert [pack.raw for pack in index.packs] == [PACK, OTHER_PACK]
    assert (index.sectors[2].offset, index.sectors[2].stored) == (7, SECTOR)
    assert index.sectors[1].pack is None
    assert index.device_size == SECTOR * 4


def test_an_index_without_sectors_is_an_image_without_data() -> None:
    index = decode_index(blob(body((), ())))
    assert index.body_size == 0
    assert index.read_ahead_kb is None
    assert index.device_size == SECTOR


@pytest.mark.parametrize(
    ("prelude", "message"),
    [
        ({"magic": b"PAGEIN\n\n"}, "not a pagein index"),
        ({"version": 2}, "format version 2; this pagein reads version 1"),
        ({"version": 0}, "format version 0"),
        ({"flags": 1}, "unknown index flags"),
        ({"reserved": 1}, "unknown index flags"),
        ({"length": 10 << 30}, "cannot unpack to 10737418240 bytes"),
        ({"length": 1 << 63}, "cannot unpack"),
        ({"length": 100}, "not as long as it says"),
        ({"length": len(body()) + 1}, "not as long as it says"),
    ],
)
def test_a_prelude_that_lies_is_refused(prelude: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        decode_index(blob(body(), **prelude))


def test_a_version_from_the_future_says_what_to_do() -> None:
    with pytest.raises(FormatError) as caught:
        decode_index(blob(b"whatever comes then", version=7))
    assert caught.value.field == "version"
    assert "newer pagein" in str(caught.value.hint)


@pytest.mark.parametrize(
    "unpacked",
    [
        body(sector_size=0),
        body(sector_size=SECTOR + 4096),
        body(sector_size=SECTOR // 2),
        body(sector_size=32 << 20),
        body(hot=2),
        body(hot=0xFFFFFFFF),
        body(count=2),
        body(count=0xFFFFFFFF),
        body(pack_count=0xFFFFFFFF),
        body(pack_count=2),
        body(reserved=1),
        body(config=len(CONFIG) + 1),
        body(config=0xFFFFFFFF),
        body(metadata=1 << 62),
        body(metadata=(1 << 64) - 1),
        body(metadata=4095),
        body(content=b""),
        body(content=b"M" * 4097),
        body()[:-1],
        body() + b"\0",
        body()[:40],
        b"",
    ],
)
def test_a_header_that_does_not_fit_the_rest_is_refused(unpacked: bytes) -> None:
    with pytest.raises(FormatError):
        decode_index(blob(unpacked))


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (row(pack=1), "pack"),
        (row(pack=0xFFFE), "pack"),
        (row(pack=0xFFFF), "pack"),
        (row(encoding=3), "encoding"),
        (row(encoding=255), "encoding"),
        (row(encoding=0, stored=0), "pack"),
        (row(pack=0xFFFF, encoding=0, stored=1), "stored"),
        (row(pack=0xFFFF, encoding=0, stored=0, offset=8), "stored"),
        (row(stored=0), "stored"),
        (row(stored=SECTOR + 1), "stored"),
        (row(stored=0xFFFFFFFF), "stored"),
        (row(encoding=1, stored=SECTOR - 1), "stored"),
        (row(offset=(1 << 64) - 1), "stored"),
        (row(offset=1 << 63), "stored"),
        (row()[:35] + b"\1" + row()[36:], "encoding"),
    ],
)
def test_a_row_out_of_bounds_is_refused(bad: bytes, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        decode_index(blob(body((bad,))))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("rows", "packs"),
    [
        ((row(),), (PACK, OTHER_PACK)),
        ((row(pack=1), row(pack=0)), (PACK, OTHER_PACK)),
        ((row(pack=0), row(pack=1)), (PACK, PACK)),
    ],
    ids=["unused", "out of order", "twice"],
)
def test_packs_are_listed_once_in_order_of_first_use(
    rows: tuple[bytes, ...], packs: tuple[bytes, ...]
) -> None:
    with pytest.raises(FormatError, match="packs"):
        decode_index(blob(body(rows, packs)))


@pytest.mark.parametrize("cut", [0, 1, 23, 24, 25, 40, -1])
def test_a_truncated_blob_is_refused(cut: int) -> None:
    with pytest.raises(FormatError):
        decode_index(blob(body())[:cut])


@pytest.mark.parametrize("extra", [b"\0", zstandard.compress(b""), b"x" * 5000])
def test_bytes_after_the_frame_are_refused(extra: bytes) -> None:
    with pytest.raises(FormatError):
        decode_index(blob(body()) + extra)


def test_a_limit_holds_for_the_packed_and_the_unpacked_size() -> None:
    data = blob(body())
    assert decode_index(data, limit=len(body())).metadata == METADATA
    with pytest.raises(FormatError, match="unpack"):
        decode_index(data, limit=len(body()) - 1)
    with pytest.raises(FormatError):
        decode_index(data, limit=len(data) - 1)


def peak_of_refusing(data: bytes) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            decode_index(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_small_blob_that_claims_ten_gigabytes_costs_nothing() -> None:
    assert peak_of_refusing(blob(body(), length=10 << 30)) < 1 << 20


def test_a_bomb_is_stopped_soon_after_the_length_it_admits_to() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(256 << 20))
    prelude = struct.pack("<8sHHIQ", b"PAGEIN\r\n", 1, 0, 0, 1 << 20)
    assert peak_of_refusing(prelude + bomb) < 48 << 20


def test_a_frame_with_a_huge_window_is_refused_before_its_memory_is_taken() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=30)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = frame.compress(body()) + frame.flush()
    prelude = struct.pack("<8sHHIQ", b"PAGEIN\r\n", 1, 0, 0, len(body()))
    assert peak_of_refusing(prelude + packed) < 1 << 20


def test_header_counts_allocate_nothing_before_they_are_checked() -> None:
    assert peak_of_refusing(blob(body(count=0xFFFFFFFF, pack_count=4096))) < 1 << 20


def refs(count: int, pack: Digest) -> tuple[SectorRef, ...]:
    return tuple(
        SectorRef(Digest.of(b"%d" % i), SECTOR, Encoding.ZSTD, pack, offset=i * 9, stored=9)
        for i in range(count)
    )


def test_decoding_takes_little_more_memory_than_the_index_itself() -> None:
    metadata = hashlib.shake_128(b"metadata").digest(32 << 20)
    index = Index(
        SECTOR, metadata, CONFIG, Digest.from_raw(SOURCE), 0, refs(10, Digest(PACK.hex()))
    )
    data = encode_index(index)
    tracemalloc.start()
    try:
        assert decode_index(data) == index
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # At the worst moment: the pieces and their join, then the join and the metadata cut from it.
    assert peak < 2.2 * len(metadata)


def test_what_an_index_cannot_hold_is_refused_when_it_is_made() -> None:
    source = Digest.from_raw(SOURCE)
    with pytest.raises(FormatError, match="sector of another size"):
        Index(SECTOR * 2, METADATA, CONFIG, source, 0, refs(1, Digest(PACK.hex())))
    with pytest.raises(FormatError, match="config"):
        Index(SECTOR, METADATA, bytes((4 << 20) + 1), source, 0, ())
    with pytest.raises(FormatError, match="hot"):
        Index(SECTOR, METADATA, CONFIG, source, 1, ())


@pytest.mark.parametrize("size", [-1, NO_READ_AHEAD, 1 << 40])
def test_a_read_ahead_that_the_index_cannot_say_is_refused(size: int) -> None:
    with pytest.raises(FormatError, match="read-ahead"):
        Index(SECTOR, METADATA, CONFIG, Digest(SOURCE.hex()), 0, (), read_ahead_kb=size)


@pytest.mark.parametrize("size", [None, 0, 128, NO_READ_AHEAD - 1])
def test_a_read_ahead_comes_back_as_it_was(size: int | None) -> None:
    index = Index(SECTOR, METADATA, CONFIG, Digest(SOURCE.hex()), 0, (), read_ahead_kb=size)
    assert decode_index(encode_index(index)).read_ahead_kb == size
