"""What ``pagein inspect`` tells of a converted image."""

from __future__ import annotations

from dataclasses import dataclass

from pagein.daemon.images import FoundImage, Images
from pagein.format.erofs.read import ErofsReader
from pagein.format.media import OPTIMIZED_FROM, PROFILE
from pagein.types import Encoding


@dataclass(frozen=True, slots=True)
class PackFacts:
    """One pack: its size in bytes, and the sectors it holds."""

    digest: str
    size: int
    sectors: int


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """One image. Sizes are in bytes; ``sectors`` counts those of the body.

    ``profile`` and ``optimized_from`` are what the artifact says; None where it has no hot region.
    """

    reference: str
    artifact: str
    source: str
    index: str
    index_size: int
    sector_size: int
    device_size: int
    metadata_size: int
    inodes: int
    hot_sectors: int
    hot_size: int
    hot_stored: int
    read_ahead_kb: int | None
    profile: str | None
    optimized_from: str | None
    data_size: int
    sectors: int
    zero_sectors: int
    distinct_sectors: int
    cached_sectors: int
    stored_size: int
    packs: tuple[PackFacts, ...]


def describe_image(images: Images, found: FoundImage) -> ImageFacts:
    """Gather the facts; fetches nothing more."""
    index, artifact = found.index, found.artifact.artifact
    stored = {ref.digest.hex: ref for ref in index.sectors if ref.encoding is not Encoding.ZERO}
    held = set(images.node.cache().refs())
    hot = {ref.digest.hex: ref for ref in index.sectors[: index.hot_sectors]}
    return ImageFacts(
        reference=str(found.name),
        artifact=str(found.artifact.digest),
        source=str(index.source),
        index=str(found.index_digest),
        index_size=artifact.index.size,
        sector_size=index.sector_size,
        device_size=index.device_size,
        metadata_size=len(index.metadata),
        inodes=ErofsReader(index.metadata).inodes,
        hot_sectors=index.hot_sectors,
        hot_size=index.hot_sectors * index.sector_size,
        hot_stored=sum(ref.stored for ref in hot.values()),
        read_ahead_kb=index.read_ahead_kb,
        profile=artifact.annotations.get(PROFILE),
        optimized_from=artifact.annotations.get(OPTIMIZED_FROM),
        data_size=index.data_sectors * index.sector_size,
        sectors=len(index.sectors),
        zero_sectors=sum(ref.encoding is Encoding.ZERO for ref in index.sectors),
        distinct_sectors=len(stored),
        cached_sectors=sum(name in held for name in stored),
        stored_size=sum(ref.stored for ref in stored.values()),
        packs=tuple(
            PackFacts(
                str(pack.digest),
                pack.size,
                sum(ref.pack == pack.digest for ref in stored.values()),
            )
            for pack in artifact.packs
        ),
    )
