"""From a reference to published artifacts: which images of an index, and what a tag says after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pagein.build.convert import convert
from pagein.build.optimize import optimize
from pagein.build.pack import OnSector
from pagein.build.report import (
    DEFAULT_LEVEL,
    Converted,
    ConvertOptions,
    ConvertProgress,
    Optimized,
)
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


@dataclass(frozen=True, slots=True)
class PublishedImage:
    """One image of the reference, and what it became. ``platform``: None where nothing names it;
    ``optimized``: None where no profile was given."""

    source: Digest
    platform: Platform | None
    converted: Converted
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
    progress: ConvertProgress | None = None,
    on_sector: OnSector | None = None,
    announce: Callable[[Platform | None], None] | None = None,
    profile: Profile | None = None,
    hot_level: int = DEFAULT_LEVEL,
) -> Published:
    """Convert what ``reference`` names, and publish it to ``destination``.

    ``platform`` chooses from an image index; None converts each image there is. ``tag`` names the
    one artifact. ``bind`` is a tag of ``destination``, rewritten as an index of the source's
    manifests and the artifacts: it must hold the source. ``announce`` is called before each image.
    With a ``profile`` the one artifact is then optimized: tag and index name what comes of that.
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
    images = []
    for described, blob, manifest in chosen:
        if announce is not None:
            announce(described.platform)
        converted = convert(
            source,
            manifest,
            blob,
            destination,
            options,
            tag=None if profile else tag,
            progress=progress,
            on_sector=on_sector,
        )
        optimized = None
        if profile is not None:
            made = _converted(destination, SourceImage(blob, manifest), converted.artifact)
            with_level = replace(options or ConvertOptions(), level=hot_level)
            optimized = optimize(destination, made, profile, with_level, tag=tag, progress=progress)
        images.append(PublishedImage(blob.digest, described.platform, converted, optimized))
    bound = None
    if bind is not None:
        described_images = [described for described, _, _ in chosen]
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
        described = [image for image, _, _ in _choose(destination, top, parsed, None)]
    return bind_artifacts(destination, tag, top, described, [(source, made)])


def _converted(
    repository: WritableRepository, source: SourceImage, artifact: Digest
) -> FoundArtifact:
    """Return what is to be optimized: ``artifact``, or what an earlier run has made of it."""
    found = find_artifact(repository, source)
    if found is not None and artifact in (found.digest, found.artifact.optimized_from):
        return found
    blob = repository.manifest(artifact)
    return FoundArtifact(artifact, parse_artifact(blob.data), blob.data)


_Chosen = list[tuple[Descriptor, ManifestBlob, ImageManifest]]


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
        return [(described, top, parsed)]
    entries = platform_images(parsed) if platform is None else [choose(parsed, platform)]
    if not entries:
        raise NotFoundError(f"the image index in {source.name} lists no image")
    chosen: _Chosen = []
    for entry in entries:
        blob = source.manifest(entry.digest)
        manifest = parse_manifest(blob.data, blob.media_type)
        if not isinstance(manifest, ImageManifest):
            raise FormatError(f"{entry.digest} in {source.name} is not an image manifest")
        chosen.append((entry, blob, manifest))
    return chosen


def bind_artifacts(
    destination: WritableRepository,
    tag: str,
    top: ManifestBlob,
    sources: list[Descriptor],
    artifacts: Sequence[tuple[Digest, Converted | Optimized]],
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
