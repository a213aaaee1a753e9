"""Bytes that must never change: nodes of every version read what is in registries."""

from __future__ import annotations

import hashlib

import zstandard

from pagein.format.index import Index, decode_index, encode_index
from pagein.format.manifest import Descriptor, bind_index, bound_descriptor, build_artifact
from pagein.format.media import MEDIA_INDEX, MEDIA_PACK, OCI_MANIFEST
from pagein.format.platforms import Platform
from pagein.types import Digest, Encoding, SectorRef

SECTOR = 256 << 10


def index() -> Index:
    packs = [Digest.of(b"pack 0"), Digest.of(b"pack 1")]
    zeros = Digest.of(bytes(SECTOR))
    return Index(
        sector_size=SECTOR,
        metadata=hashlib.shake_128(b"metadata").digest(8192),
        config=b'{"architecture":"amd64","os":"linux"}',
        source=Digest.of(b"source"),
        hot_sectors=1,
        sectors=(
            SectorRef(Digest.of(b"a"), SECTOR, Encoding.ZSTD, packs[0], offset=0, stored=1000),
            SectorRef(zeros, SECTOR, Encoding.ZERO),
            SectorRef(Digest.of(b"b"), SECTOR, Encoding.RAW, packs[1], offset=0, stored=SECTOR),
            SectorRef(Digest.of(b"c"), SECTOR, Encoding.ZSTD, packs[1], offset=SECTOR, stored=9),
        ),
        read_ahead_kb=128,
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_bytes_under_the_compression_of_an_index_stay() -> None:
    blob = encode_index(index())
    assert blob[:24].hex() == "50414745494e0d0a0100000000000000" + "6921000000000000"
    unpacked = zstandard.ZstdDecompressor().decompress(blob[24:])
    assert sha256(unpacked) == "3ee8ac071f29056b824e8731dede40f233118502f3642a2e535ffcb32cc3c761"


def test_an_index_that_was_published_is_read_still() -> None:
    """Compressed by whatever zstd there is: the frame may differ, the value may not."""
    unpacked = zstandard.ZstdDecompressor().decompress(encode_index(index())[24:])
    other = encode_index(index())[:24] + zstandard.ZstdCompressor(level=1).compress(unpacked)
    assert decode_index(other) == index()


def descriptor(name: bytes, media_type: str) -> Descriptor:
    return Descriptor(media_type=media_type, digest=Digest.of(name), size=len(name))


def test_the_artifact_manifest_stays() -> None:
    data = build_artifact(
        subject=descriptor(b"source", OCI_MANIFEST),
        index=descriptor(b"index", MEDIA_INDEX),
        packs=[descriptor(b"pack 0", MEDIA_PACK), descriptor(b"pack 1", MEDIA_PACK)],
    )
    assert sha256(data) == "51cdee8acd3367c2c5cbbce6c41023ad5c01f5f0a7cc49b0cd26546f38937bff"


def test_the_bound_index_stays() -> None:
    image = Descriptor(
        media_type=OCI_MANIFEST,
        digest=Digest.of(b"source"),
        size=6,
        platform=Platform("linux", "arm64", "v8"),
    )
    entry = bound_descriptor(Digest.of(b"artifact"), 8, served=image.digest)
    assert (
        sha256(bind_index(None, [image], entry))
        == "397c0901afdcea9210c9309322afcac497e2ee48bb6cb1a79d7ff4ed775e0822"
    )
