"""Turns one image into index, packs and artifact manifest, in one pass over each layer.

Rule 1. The digests are a function of the source image, the sector size, the level and the base:
        nothing here may depend on the jobs, the clock, the locale or the order in which threads
        finish.
Rule 2. Without a base, the pack of a layer is a function of the layers up to it, so that images
        which share lower layers share packs.
Rule 3. The artifact manifest is put last: before that, nothing that a node can find is there.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pagein.build.adopt import Adoption
from pagein.build.base import Base
from pagein.build.body import Body
from pagein.build.layer import LayerReader, layer_entries
from pagein.build.pack import OnSector, Pack, PackWriter, SectorShelf
from pagein.build.pool import Pool
from pagein.build.report import (
    Converted,
    ConvertOptions,
    ConvertProgress,
    PackReport,
    Stage,
    StageClock,
    Unwatched,
)
from pagein.build.scratch import scratch_folder, unwinding_on_sigterm
from pagein.build.spool import Spool
from pagein.build.upload import Uploader
from pagein.errors import FormatError
from pagein.format.erofs.write import write_metadata
from pagein.format.index import Index, encode_index
from pagein.format.manifest import (
    EMPTY_DIGEST,
    Descriptor,
    ImageManifest,
    build_artifact,
    parse_config,
)
from pagein.format.media import MEDIA_INDEX, MEDIA_PACK, OCI_MANIFEST
from pagein.format.merge import LayerMerger
from pagein.store.repository import ManifestBlob, Repository, WritableRepository
from pagein.types import Digest

_CONFIG_LIMIT = 4 << 20


def convert(
    source: Repository,
    manifest: ImageManifest,
    blob: ManifestBlob,
    destination: WritableRepository,
    options: ConvertOptions | None = None,
    *,
    base: Base | None = None,
    tag: str | None = None,
    progress: ConvertProgress | None = None,
    on_sector: OnSector | None = None,
) -> Converted:
    """Convert the image ``manifest`` (parsed from ``blob``) and publish it to ``destination``.

    Sectors of ``base`` are not stored again. ``tag`` names the artifact itself. ``on_sector`` gets
    the uncompressed bytes of each different sector that is stored, on any thread; what it raises
    ends the conversion. Raises FormatError for a source that is not what it claims to be, and what
    the repositories raise.
    """
    conversion = _Conversion(
        source,
        manifest,
        blob,
        destination,
        options or ConvertOptions(),
        base or Base(),
        progress or Unwatched(),
        on_sector,
    )
    return conversion.run(tag)


@dataclass(slots=True)
class _Counts:
    files: int = 0
    content_size: int = 0


class _Conversion:
    """What one run carries from layer to layer."""

    def __init__(
        self,
        source: Repository,
        manifest: ImageManifest,
        blob: ManifestBlob,
        destination: WritableRepository,
        options: ConvertOptions,
        base: Base,
        progress: ConvertProgress,
        on_sector: OnSector | None,
    ) -> None:
        self._source = source
        self._manifest = manifest
        self._blob = blob
        self._destination = destination
        self._options = options
        self._base = base
        self._progress = progress
        self._on_sector = on_sector
        self._clock = StageClock()
        self._shelf = SectorShelf(options.sector_size, base.rows)
        self._body = Body(options.sector_size, self._shelf.zero)
        self._merger = LayerMerger()
        self._packs: list[Digest] = []
        self._counts = _Counts()

    def run(self, tag: str | None) -> Converted:
        """Convert layer after layer, then publish."""
        start = time.perf_counter()
        with self._clock.stage(Stage.READ):
            config = self._source.read_blob(self._manifest.config.digest, limit=_CONFIG_LIMIT)
        diff_ids = parse_config(config).diff_ids
        layers = self._manifest.layers
        if len(diff_ids) != len(layers):
            raise FormatError(
                f"the image has {len(layers)} layers, but its config names {len(diff_ids)}",
                field="diff_ids",
            )
        self._progress.start(sum(layer.size for layer in layers))
        with ExitStack() as owned:
            owned.enter_context(unwinding_on_sigterm())
            scratch = owned.enter_context(scratch_folder(self._options.scratch_parent))
            uploads = owned.enter_context(Uploader(self._destination, self._clock))
            pool = owned.enter_context(Pool(self._options.threads, self._clock))
            for number, (layer, diff_id) in enumerate(zip(layers, diff_ids, strict=True), 1):
                self._progress.note(f"layer {number} of {len(layers)}")
                pack = self._convert_layer(layer, diff_id, scratch, pool, uploads)
                if pack is not None:
                    self._packs.append(pack.digest)
                    uploads.add(pack, layer.digest)
            self._progress.note("writing the index")
            index, data = self._index(config)
            self._progress.note("sending packs")
            packs = uploads.finish()
            return self._publish(index, data, packs, tag, start)

    def _convert_layer(
        self, layer: Descriptor, diff_id: Digest, scratch: Path, pool: Pool, uploads: Uploader
    ) -> Pack | None:
        number = len(self._packs)
        with (
            Spool(scratch / "spool", pool) as spool,
            PackWriter(
                scratch / f"pack-{number}",
                number,
                self._shelf,
                pool,
                level=self._options.level,
                on_sector=self._on_sector,
                on_large=uploads.begin,
            ) as writer,
        ):
            reader = LayerReader(self._body, spool, writer)
            with (
                self._clock.stage(Stage.TREE),
                self._source.open_blob(layer.digest, size=layer.size) as blob,
                layer_entries(
                    blob, layer.media_type, diff_id, self._clock, self._progress.read
                ) as entries,
            ):
                reader.read(entries, self._merger)
            with self._clock.stage(Stage.PLACE):
                reader.place(Adoption(self._base, spool, pool, self._options.sector_size))
            self._counts.files += reader.files
            self._counts.content_size += reader.content_size
            return writer.finish()

    def _index(self, config: bytes) -> tuple[Index, bytes]:
        with self._clock.stage(Stage.METADATA):
            metadata = write_metadata(
                self._merger.root,
                sector_size=self._options.sector_size,
                hot_blocks=0,
                data_blocks=self._body.blocks,
            )
            index = Index(
                sector_size=self._options.sector_size,
                metadata=metadata,
                config=config,
                source=self._blob.digest,
                hot_sectors=0,
                sectors=tuple(self._shelf.ref(digest, self._packs) for digest in self._body.rows),
                read_ahead_kb=None,
            )
            return index, encode_index(index)

    def _publish(
        self,
        index: Index,
        encoded: bytes,
        packs: tuple[PackReport, ...],
        tag: str | None,
        start: float,
    ) -> Converted:
        index_part = Descriptor(
            media_type=MEDIA_INDEX, digest=Digest.of(encoded), size=len(encoded)
        )
        own = {pack.digest for pack in packs}
        based = [self._base.packs[pack] for pack in index.packs if pack not in own]
        packs += tuple(PackReport(pack.digest, pack.size, None, sent=False) for pack in based)
        order = {pack: position for position, pack in enumerate(index.packs)}
        packs = tuple(sorted(packs, key=lambda pack: order[pack.digest]))
        subject = Descriptor(
            media_type=self._blob.media_type, digest=self._blob.digest, size=len(self._blob.data)
        )
        data = build_artifact(
            subject=subject,
            index=index_part,
            packs=[
                Descriptor(media_type=MEDIA_PACK, digest=pack.digest, size=pack.size)
                for pack in packs
            ],
        )
        artifact = ManifestBlob(OCI_MANIFEST, Digest.of(data), data)
        stored = {ref.digest: ref for ref in index.sectors if ref.pack is not None}
        with self._clock.stage(Stage.UPLOAD):
            self._destination.put_blob(index_part.digest, encoded)
            self._destination.put_blob(EMPTY_DIGEST, b"{}")
            self._destination.put_manifest(artifact, tag=tag)
        return Converted(
            artifact=artifact.digest,
            artifact_size=len(data),
            index=index_part.digest,
            packs=packs,
            index_size=len(encoded),
            metadata_size=len(index.metadata),
            source_size=sum(layer.size for layer in self._manifest.layers),
            content_size=self._counts.content_size,
            files=self._counts.files,
            sectors=len(index.sectors),
            stored_sectors=len(stored),
            reused_size=sum(ref.stored for ref in stored.values() if ref.pack in self._base.packs),
            seconds=time.perf_counter() - start,
            stages=self._clock.seconds(),
        )
