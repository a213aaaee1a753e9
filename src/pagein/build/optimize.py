"""Gives a converted image a hot region: copies of what a profile touched, in order of first touch.

Rule 1. The layer data stays as it is, byte for byte: its packs are neither sent again nor read more
        than the copies need.
Rule 2. The digests are a function of the plain artifact, the profile and the level.
Rule 3. The artifact manifest is put last: before that, nothing that a node can find is there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

from pagein.build.hot_copies import SourcePlan, gathered
from pagein.build.pack import Location, Pack, PackWriter, SectorShelf
from pagein.build.pool import Pool
from pagein.build.report import ConvertOptions, ConvertProgress, Optimized, StageClock, Unwatched
from pagein.build.scratch import scratch_folder, unwinding_on_sigterm
from pagein.errors import FormatError, NotFoundError, UsageError
from pagein.format.erofs.read import read_tree
from pagein.format.erofs.write import write_metadata
from pagein.format.hot import CopySector, HotPlan, WholeSector, lay_out, plan_hot_region
from pagein.format.index import Index, encode_index
from pagein.format.manifest import EMPTY_DIGEST, Descriptor, build_artifact, parse_artifact
from pagein.format.media import (
    HOT_LEVEL,
    MEDIA_INDEX,
    MEDIA_PACK,
    OCI_MANIFEST,
    OPTIMIZED_FROM,
    PROFILE,
)
from pagein.format.profile import Profile, encode_profile
from pagein.store.caching import CachingSource
from pagein.store.pack import PackSource
from pagein.store.repository import ManifestBlob, WritableRepository
from pagein.store.resolve import FoundArtifact, load_index, plain_artifact
from pagein.store.retrying import RetryingSource
from pagein.store.source import RunSource, SectorCache
from pagein.types import Digest, SectorRef

_FETCH_THREADS = 4


def optimize(
    repository: WritableRepository,
    found: FoundArtifact,
    profile: Profile,
    options: ConvertOptions | None = None,
    *,
    tag: str | None = None,
    progress: ConvertProgress | None = None,
    cache: SectorCache | None = None,
) -> Optimized:
    """Publish the artifact of ``found``'s image with a hot region for ``profile``.

    ``found`` is an artifact in ``repository``; where it is optimized itself, the one that it was
    made from is optimized anew, unless that would make ``found`` again. The level of ``options``
    is that of the hot region; the sector size is the artifact's. ``tag`` names the new artifact.
    Sectors in ``cache`` are not fetched.

    Raises UsageError where the profile touches nothing of the image, NotFoundError where what
    ``found`` was made from is gone, FormatError, and what the repository raises.
    """
    start = time.perf_counter()
    options, progress = options or ConvertOptions(), progress or Unwatched()
    draft = _draft(repository, found, profile, options.level)
    if draft.marks.items() <= found.artifact.annotations.items():
        made, read, sent = found, 0, 0
        _tag(repository, made, tag)
    else:
        source: RunSource = RetryingSource(PackSource(repository))
        if cache is not None:
            source = CachingSource(source, cache)
        made, read, sent = _make(repository, draft, source, options, tag, progress)
    return _report(draft, found, made, read=read, sent=sent, seconds=time.perf_counter() - start)


@dataclass(frozen=True, slots=True)
class _Draft:
    """What follows from the plain artifact's index and the profile, before any sector is read."""

    plain: FoundArtifact
    subject: Descriptor
    index: Index
    plan: HotPlan
    metadata: bytes
    marks: dict[str, str]
    read_ahead_kb: int

    @property
    def copies(self) -> list[CopySector]:
        """The hot sectors that have to be made."""
        return [one for one in self.plan.sectors if isinstance(one, CopySector)]


def _draft(
    repository: WritableRepository, found: FoundArtifact, profile: Profile, level: int
) -> _Draft:
    plain = plain_artifact(repository, found)
    index = load_index(repository, plain)
    if index.hot_sectors or plain.artifact.is_optimized:
        raise FormatError(
            f"artifact {plain.digest} has a hot region, and none without it is known",
            field="hot_sectors",
            hint="convert the image again with --profile",
        )
    if plain.artifact.subject is None:
        raise FormatError(f"artifact {plain.digest} names no image", field="subject")
    root = read_tree(index.metadata)
    plan = plan_hot_region(root, profile, sector_size=index.sector_size)
    if not plan.sectors:
        raise UsageError(
            f"the profile touches nothing of the image in {repository.name}: of its "
            f"{len(profile.files)} files {plan.match.files} are there as they were",
            hint="record a profile of this image; the command `pagein record` does",
        )
    lay_out(root, plan.moves)
    metadata = write_metadata(
        root,
        sector_size=index.sector_size,
        hot_blocks=plan.moves.hot_blocks,
        data_blocks=index.data_blocks,
    )
    marks = {
        OPTIMIZED_FROM: str(plain.digest),
        PROFILE: str(Digest.of(encode_profile(profile))),
        HOT_LEVEL: str(level),
    }
    return _Draft(
        plain, plain.artifact.subject, index, plan, metadata, marks, profile.read_ahead_kb
    )


def _make(
    repository: WritableRepository,
    draft: _Draft,
    source: RunSource,
    options: ConvertOptions,
    tag: str | None,
    progress: ConvertProgress,
) -> tuple[FoundArtifact, int, int]:
    """Return the artifact, once it is published, and the stored bytes read and sent."""
    shelf, packs = _shelf(draft.index)
    reading = SourcePlan(draft.index, draft.copies)
    progress.start(reading.stored)
    with ExitStack() as owned:
        owned.enter_context(unwinding_on_sigterm())
        scratch = owned.enter_context(scratch_folder(options.scratch_parent))
        clock = StageClock()
        fetching = owned.enter_context(Pool(_FETCH_THREADS, clock))
        copies = owned.enter_context(
            gathered(scratch / "copies", reading, source, fetching, progress.read)
        )
        pool = owned.enter_context(Pool(options.threads, clock))
        writer = owned.enter_context(
            PackWriter(
                scratch / "pack", len(packs), shelf, pool, level=options.level, on_sector=None
            )
        )
        size = draft.index.sector_size
        for offset in range(0, reading.size, size):
            writer.add(lambda offset=offset: os.pread(copies, size, offset))  # type: ignore[misc]
        pack = writer.finish()
        progress.note("sending the hot region")
        sent = 0
        if pack is not None:
            packs.append(pack.digest)
            sent = pack.size * repository.put_blob(pack.digest, pack.path)
    made = iter([shelf.ref(digest, packs) for digest in writer.digests])
    index = _index(draft, made)
    artifact, index_sent = _publish(repository, draft, index, pack, tag)
    return artifact, reading.stored, sent + index_sent


def _shelf(index: Index) -> tuple[SectorShelf, list[Digest]]:
    """Return where the layer data's sectors are stored: a copy that equals one is not stored."""
    shelf, packs = SectorShelf(index.sector_size), list(index.packs)
    number = {digest: position for position, digest in enumerate(packs)}
    for ref in index.sectors:
        if ref.pack is not None:
            shelf.locations[ref.digest] = Location(
                number[ref.pack], ref.encoding, ref.offset, ref.stored
            )
    return shelf, packs


def _index(draft: _Draft, copies: Iterator[SectorRef]) -> bytes:
    plain = draft.index
    hot = [
        plain.sectors[sector.number] if isinstance(sector, WholeSector) else next(copies)
        for sector in draft.plan.sectors
    ]
    return encode_index(
        replace(
            plain,
            metadata=draft.metadata,
            hot_sectors=len(hot),
            sectors=(*hot, *plain.sectors),
            read_ahead_kb=draft.read_ahead_kb,
        )
    )


def _publish(
    repository: WritableRepository, draft: _Draft, index: bytes, pack: Pack | None, tag: str | None
) -> tuple[FoundArtifact, int]:
    """Put index and manifest; return the artifact, and the bytes of the index if they were sent."""
    described = Descriptor(media_type=MEDIA_INDEX, digest=Digest.of(index), size=len(index))
    packs = list(draft.plain.artifact.packs)
    if pack is not None:
        packs.append(Descriptor(media_type=MEDIA_PACK, digest=pack.digest, size=pack.size))
    data = build_artifact(
        subject=draft.subject, index=described, packs=packs, annotations=draft.marks
    )
    sent = len(index) * repository.put_blob(described.digest, index)
    repository.put_blob(EMPTY_DIGEST, b"{}")
    blob = ManifestBlob(OCI_MANIFEST, Digest.of(data), data)
    repository.put_manifest(blob, tag=tag)
    return FoundArtifact(blob.digest, parse_artifact(data), data), sent


def _tag(repository: WritableRepository, found: FoundArtifact, tag: str | None) -> None:
    """Name an artifact that is there already, unless the tag names it."""
    if tag is None:
        return
    with suppress(NotFoundError):
        if repository.manifest(tag).digest == found.digest:
            return
    repository.put_manifest(ManifestBlob(OCI_MANIFEST, found.digest, found.data), tag=tag)


def _report(
    draft: _Draft,
    found: FoundArtifact,
    made: FoundArtifact,
    *,
    read: int,
    sent: int,
    seconds: float,
) -> Optimized:
    plain = {pack.digest for pack in draft.plain.artifact.packs}
    pack_size = sum(pack.size for pack in made.artifact.packs if pack.digest not in plain)
    whole = {
        ref.digest: ref.stored
        for sector in draft.plan.sectors
        if isinstance(sector, WholeSector)
        for ref in [draft.index.sectors[sector.number]]
    }
    return Optimized(
        artifact=made.digest,
        artifact_size=len(made.data),
        optimized_from=draft.plain.digest,
        profile=Digest.parse(draft.marks[PROFILE]),
        index=made.artifact.index.digest,
        match=draft.plan.match,
        hot_sectors=len(draft.plan.sectors),
        whole_sectors=len(draft.plan.sectors) - len(draft.copies),
        hot_size=len(draft.plan.sectors) * draft.index.sector_size,
        hot_stored=pack_size + sum(whole.values()),
        pack_size=pack_size,
        index_size=made.artifact.index.size,
        plain_index_size=draft.plain.artifact.index.size,
        metadata_size=len(draft.metadata),
        plain_metadata_size=len(draft.index.metadata),
        read_size=read,
        sent_size=sent,
        was_there=made is found,
        seconds=seconds,
    )
