"""From a reference to published artifacts: which images of an index, and what a tag says after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pagein.build.base import BaseWish, find_base
from pagein.build.convert import convert
from pagein.build.optimize import optimize
from pagein.build.pack import OnSector
from pagein.build.report import (
    DEFAULT_LEVEL,
    Converted,
    ConvertOptions,
    ConvertProgress,
    Optimized,
    Reused,
)
from pagein.build.reuse import find_converted
from pagein.errors import FormatError, NotFoundError, UsageError
from pagein.format.manifest import (
    Artifact,
    Descriptor,
    ImageIndex,
    ImageManifest,
    bind_index,
    bound_descriptor,
    parse_artifact,
    parse_config,
    parse_manifest,
)
from pagein.format.media import OCI_INDEX
from pagein.format.platforms import Platform
from pagein.format.profile import Profile
from pagein.store.repository import ManifestBlob, Repository, WritableRepository
from pagein.store.resolve import (
    FoundArtifact,
    SourceImage,
    choose,
    find_artifact,
    platform_images,
)
from pagein.types import Digest

_CONFIG_LIMIT = 4 << 20
_ANY = Platform("linux", "amd64")
"""Stands for the platform of an image whose index entry names none, when versions are compared."""


@dataclass(frozen=True, slots=True)
class PublishedImage:
    """One image of the reference, and what it became. ``platform``: None where nothing names it;
    ``optimized``: None where no profile was given."""

    source: Digest
    platform: Platform | None
    converted: Converted | Reused
    optimized: Optimized | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """What was published. ``bound``: digest of the image index that the tag now names, if asked."""

    images: tuple[PublishedImage, ...]
    bound: Digest | None


def publish(
    source: Repository,
    reference: str | Digest,
    destination: WritableRepository,
    options: ConvertOptions | None = None,
    *,
    platform: Platform | None = None,
    tag: str | None = None,
    bind: str | None = None,
    base: BaseWish = (),
    force: bool = False,
    progress: ConvertProgress | None = None,
    on_sector: OnSector | None = None,
    announce: Callable[[Platform | None], None] | None = None,
    profile: Profile | None = None,
    hot_level: int = DEFAULT_LEVEL,
) -> Published:
    """Convert what ``reference`` names, and publish it to ``destination``.

    An image whose artifact is there is not converted again, unless ``force`` says so. ``base`` is
    what conversions build on.
    ``platform`` chooses from an image index; None converts each image there is. ``tag`` names the
    one artifact. ``bind`` is a tag of ``destination``, rewritten as an index of the source's
    manifests and the artifacts: it must hold the source. ``announce`` is called before each image.
    With a ``profile`` the one artifact, new or there already, is then optimized: tag and index name
    what comes of that.
    Raises UsageError for what cannot be converted or bound, and what `convert` raises.
    """
    top = source.manifest(reference)
    parsed = parse_manifest(top.data, top.media_type)
    if isinstance(parsed, Artifact):
        raise UsageError(
            f"{reference} in {source.name} is converted already",
            hint="name the image that it was made from",
        )
    chosen = _choose(source, top, parsed, platform)
    if tag is not None and len(chosen) > 1:
        raise UsageError(
            f"one tag cannot name the artifacts of {len(chosen)} images",
            hint="choose one platform, or bind the artifacts to the image's own tag",
        )
    if profile is not None and len(chosen) > 1:
        raise UsageError(
            f"a profile is of one image, and {len(chosen)} are to be converted",
            hint="convert them, then run `pagein optimize` with --platform for each profile",
        )
    options = options or ConvertOptions()
    plain_tag = tag if profile is None else None
    images = []
    for described, image in chosen:
        if announce is not None:
            announce(described.platform)
        converted: Converted | Reused | None = None
        if not force:
            converted = _reuse(destination, image, options.sector_size, plain_tag)
        if converted is None:
            builds_on = find_base(
                base,
                destination,
                image,
                described.platform or platform or _ANY,
                sector_size=options.sector_size,
                tag=tag,
            )
            converted = convert(
                source,
                image.manifest,
                image.blob,
                destination,
                options,
                base=builds_on,
                tag=plain_tag,
                progress=progress,
                on_sector=on_sector,
            )
        optimized = None
        if profile is not None:
            made = _to_optimize(destination, image, converted)
            with_level = replace(options, level=hot_level)
            optimized = optimize(destination, made, profile, with_level, tag=tag, progress=progress)
        images.append(PublishedImage(image.blob.digest, described.platform, converted, optimized))
    bound = None
    if bind is not None:
        described_images = [described for described, _ in chosen]
        artifacts = [(image.source, image.optimized or image.converted) for image in images]
        bound = bind_artifacts(destination, bind, top, described_images, artifacts)
    return Published(tuple(images), bound)


def bind_optimized(
    destination: WritableRepository, tag: str, top: ManifestBlob, source: Digest, made: Optimized
) -> Digest:
    """Have ``tag`` list the artifact ``made`` of the image ``source``, instead of another one.

    ``top`` is what the tag named before the artifact was made: that image, or an index of it.
    """
    parsed = parse_manifest(top.data, top.media_type)
    if isinstance(parsed, Artifact):
        raise UsageError(f"{tag} in {destination.name} names an artifact, and no image")
    described = []
    if isinstance(parsed, ImageManifest):
        described = [image for image, _ in _choose(destination, top, parsed, None)]
    return bind_artifacts(destination, tag, top, described, [(source, made)])


_Chosen = list[tuple[Descriptor, SourceImage]]


def _reuse(
    destination: WritableRepository, image: SourceImage, sector_size: int, tag: str | None
) -> Reused | None:
    """Return the artifact that the image has, under the name ``tag``; None where it has none."""
    found = find_converted(destination, image, sector_size=sector_size)
    if found is not None and tag is not None:
        destination.put_manifest(destination.manifest(found.artifact), tag=tag)
    return found


def _to_optimize(
    repository: WritableRepository, image: SourceImage, converted: Converted | Reused
) -> FoundArtifact:
    """Return the artifact that a profile is for, or what an earlier run has made of it."""
    if isinstance(converted, Converted):
        found = find_artifact(repository, replace(image, listed_in=None))
        if found is not None and converted.artifact == found.artifact.optimized_from:
            return found
    blob = repository.manifest(converted.artifact)
    return FoundArtifact(blob.digest, parse_artifact(blob.data), blob.data)


def _choose(
    source: Repository,
    top: ManifestBlob,
    parsed: ImageManifest | ImageIndex,
    platform: Platform | None,
) -> _Chosen:
    if isinstance(parsed, ImageManifest):
        config = parse_config(source.read_blob(parsed.config.digest, limit=_CONFIG_LIMIT))
        if platform is not None and config.platform.rank(platform) is None:
            raise NotFoundError(
                f"the image in {source.name} is for {config.platform}, not {platform}",
                hint=f"--platform {config.platform}",
            )
        described = Descriptor(
            media_type=top.media_type,
            digest=top.digest,
            size=len(top.data),
            platform=config.platform,
        )
        return [(described, SourceImage(top, parsed))]
    entries = platform_images(parsed) if platform is None else [choose(parsed, platform)]
    if not entries:
        raise NotFoundError(f"the image index in {source.name} lists no image")
    chosen: _Chosen = []
    for entry in entries:
        blob = source.manifest(entry.digest)
        manifest = parse_manifest(blob.data, blob.media_type)
        if not isinstance(manifest, ImageManifest):
            raise FormatError(f"{entry.digest} in {source.name} is not an image manifest")
        chosen.append((entry, SourceImage(blob, manifest, parsed)))
    return chosen


def bind_artifacts(
    destination: WritableRepository,
    tag: str,
    top: ManifestBlob,
    sources: list[Descriptor],
    artifacts: Sequence[tuple[Digest, Converted | Reused | Optimized]],
) -> Digest:
    """Rewrite ``tag``, which named ``top``, as an index, unless it moved since.

    ``sources`` are what the index lists where ``top`` is none. ``artifacts``: each with the digest
    of the image that it serves. Raises UsageError for a tag that moved.
    """
    now = destination.manifest(tag)
    if now.digest != top.digest:
        raise UsageError(
            f"cannot bind to {tag} in {destination.name}: it names {now.digest}, "
            f"and {top.digest} was converted",
            hint="try again; the source must lie where the artifact goes",
        )
    parsed = parse_manifest(top.data, top.media_type)
    existing = parsed if isinstance(parsed, ImageIndex) else None
    for served, made in artifacts:
        entry = bound_descriptor(made.artifact, made.artifact_size, served=served)
        data = bind_index(existing, sources, entry)
        after = parse_manifest(data, OCI_INDEX)
        assert isinstance(after, ImageIndex)
        existing = after
    blob = ManifestBlob(OCI_INDEX, Digest.of(data), data)
    if blob.digest != top.digest:
        destination.put_manifest(blob, tag=tag)
    return blob.digest
