"""Check a converted image: its structure, and if asked every sector and every file."""

from __future__ import annotations

from dataclasses import dataclass

from pagein.build.verify import Difference, compare_with_source, file_segments
from pagein.daemon.conversion import CountedProgress
from pagein.daemon.images import FoundImage, Images, ShowProgress
from pagein.errors import NotFoundError, PageinError
from pagein.format.erofs.check import CheckReport, check_metadata
from pagein.format.erofs.read import read_tree
from pagein.store.memory import MemoryCache
from pagein.store.pack import PackSource
from pagein.store.resolve import resolve
from pagein.types import Digest, Encoding, SectorRef

MOST_SHOWN = 100
_MEMORY = 256 << 20
_CONFIG_LIMIT = 4 << 20


@dataclass(frozen=True, slots=True)
class DeepReport:
    """``sectors`` were read and hashed again; ``bad`` of them were not what they should be.

    ``differences``: what in the tree is not as the source image's layers say (None: the source
    is not there to compare with).
    """

    sectors: int
    bad: tuple[str, ...]
    differences: tuple[Difference, ...] | None


def check_structure(found: FoundImage) -> CheckReport:
    """Hold the metadata against the rules of the format. Raises FormatError."""
    index = found.index
    return check_metadata(
        index.metadata,
        sector_size=index.sector_size,
        hot_blocks=index.hot_blocks,
        data_blocks=index.data_blocks,
    )


def check_deep(images: Images, found: FoundImage, progress: ShowProgress) -> DeepReport:
    """Read index and sectors from where the image lies, not from here, and compare every file."""
    sectors, bad = _check_sectors(found, progress)
    bad += _check_index(found)
    return DeepReport(sectors, tuple(bad), None if bad else _compare(images, found, progress))


def _check_sectors(found: FoundImage, progress: ShowProgress) -> tuple[int, list[str]]:
    source = PackSource(found.repositories[-1])
    stored = {ref.digest: ref for ref in found.index.sectors if ref.encoding is not Encoding.ZERO}
    total = sum(ref.stored for ref in stored.values())
    done = 0
    bad: list[str] = []
    for ref in stored.values():
        problem = _problem(source, ref)
        if problem is not None:
            bad.append(problem)
        done += ref.stored
        progress(done, total)
    return len(stored), bad


def _check_index(found: FoundImage) -> list[str]:
    """Read the index again: the copy on this machine may be all that is right."""
    index = found.artifact.artifact.index
    try:
        found.repositories[-1].read_blob(index.digest, limit=index.size)
    except PageinError as error:
        return [f"index: {error}"]
    return []


def _problem(source: PackSource, ref: SectorRef) -> str | None:
    try:
        source.get(ref)
    except PageinError as error:
        return str(error)
    return None


def _compare(
    images: Images, found: FoundImage, progress: ShowProgress
) -> tuple[Difference, ...] | None:
    place = found.repositories[-1]
    try:
        resolved = resolve(
            place, found.index.source, images.node.platform(None), want_artifact=False
        )
    except NotFoundError:
        return None
    if resolved.source is None:
        return None
    manifest = resolved.source.manifest
    config = place.read_blob(manifest.config.digest, limit=_CONFIG_LIMIT)
    differences = []
    if config != found.index.config:
        known = Digest.of(found.index.config)
        differences.append(Difference(b"", "config", str(manifest.config.digest), str(known)))
    cache = MemoryCache(limit_bytes=_MEMORY)
    with images.node.read_path(found.index, [place], cache=cache) as path:
        differences += compare_with_source(
            place,
            manifest,
            read_tree(found.index.metadata),
            lambda _path, node: file_segments(node, path.image.pread),
            progress=CountedProgress(progress),
        )
    return tuple(differences)
