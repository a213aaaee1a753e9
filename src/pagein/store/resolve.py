"""From a reference to the source image, and to the artifact that serves it (docs/format.md).

An artifact is looked for in this order: the reference names it itself; the tag's image index lists
it; the registry names it as a referrer of the image. Of several, an optimized one goes before those
without a hot region. By digest of the artifact, artifact manifest and index are the only two
fetches.
"""

from __future__ import annotations

from dataclasses import dataclass

from pagein.errors import FormatError, NotFoundError
from pagein.format.index import MAX_INDEX, Index, decode_index
from pagein.format.manifest import (
    Artifact,
    Descriptor,
    ImageIndex,
    ImageManifest,
    parse_artifact,
    parse_manifest,
    serves,
)
from pagein.format.media import ARTIFACT_TYPE, MANIFESTS
from pagein.format.platforms import Platform
from pagein.store.repository import ManifestBlob, Repository
from pagein.types import Digest


@dataclass(frozen=True, slots=True)
class SourceImage:
    """A source image: its manifest as stored and as read, and the index that listed it, if any."""

    blob: ManifestBlob
    manifest: ImageManifest
    listed_in: ImageIndex | None = None


@dataclass(frozen=True, slots=True)
class FoundArtifact:
    """An artifact, the digest of its manifest, and the manifest's bytes."""

    digest: Digest
    artifact: Artifact
    data: bytes


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference led to: a source image, the artifact that serves it, or both."""

    source: SourceImage | None
    artifact: FoundArtifact | None


def platform_images(index: ImageIndex) -> list[Descriptor]:
    """Return the entries of an image index that are images, not attestations or artifacts."""
    return [
        entry
        for entry in index.manifests
        if entry.media_type in MANIFESTS
        and serves(entry) is None
        and not (entry.platform and entry.platform.os == "unknown")
    ]


def choose(index: ImageIndex, platform: Platform) -> Descriptor:
    """Return the best entry for a platform. Raises NotFoundError naming those that there are."""
    images = platform_images(index)
    ranked = [
        (rank, place)
        for place, entry in enumerate(images)
        if (rank := entry.platform.rank(platform) if entry.platform else 99) is not None
    ]
    if not ranked:
        there = ", ".join(sorted({str(entry.platform) for entry in images})) or "none"
        raise NotFoundError(f"no image for {platform}; there are: {there}", hint="--platform")
    return images[min(ranked)[1]]


def resolve(
    repository: Repository,
    reference: str | Digest,
    platform: Platform,
    *,
    want_artifact: bool = True,
) -> Resolved:
    """Follow a tag or digest. Raises NotFoundError, FormatError or RemoteError.

    With ``want_artifact`` the artifact is looked for; without, only the source image is.
    """
    blob = repository.manifest(reference)
    document = parse_manifest(blob.data, blob.media_type)
    listed: ImageIndex | None = None
    if isinstance(document, ImageIndex):
        listed = document
        blob = repository.manifest(choose(document, platform).digest)
        inner = parse_manifest(blob.data, blob.media_type)
        if isinstance(inner, ImageIndex):
            raise FormatError("an image index inside an image index", field="manifests")
        document = inner
    if isinstance(document, Artifact):
        return Resolved(None, FoundArtifact(blob.digest, document, blob.data))
    source = SourceImage(blob, document, listed)
    return Resolved(source, find_artifact(repository, source) if want_artifact else None)


def find_artifact(repository: Repository, source: SourceImage) -> FoundArtifact | None:
    """Return the artifact that serves an image: bound in its index, or a referrer.

    The last one that is there: of referrers, places list optimized ones behind all others.
    """
    served = source.blob.digest
    bound = source.listed_in.manifests if source.listed_in else ()
    candidates = [entry.digest for entry in bound if serves(entry) == served]
    if not candidates:
        candidates = repository.referrers(served, artifact_type=ARTIFACT_TYPE)
    for digest in reversed(candidates):
        try:
            blob = repository.manifest(digest)
        except NotFoundError:
            continue  # a referrer that was deleted; an older one may still be there
        artifact = parse_artifact(blob.data)
        if artifact.subject is None or artifact.subject.digest != served:
            raise FormatError(
                f"artifact {digest} was made for another image than {served}", field="subject"
            )
        return FoundArtifact(digest, artifact, blob.data)
    return None


def plain_artifact(repository: Repository, found: FoundArtifact) -> FoundArtifact:
    """Return the artifact without a hot region that ``found`` was made from, or ``found`` itself.

    Raises NotFoundError where it is gone.
    """
    digest = found.artifact.optimized_from
    if digest is None:
        return found
    try:
        blob = repository.manifest(digest)
    except NotFoundError:
        raise NotFoundError(
            f"{found.digest} was optimized from {digest}, which is not in {repository.name} now",
            hint="convert the image again with --profile",
        ) from None
    return FoundArtifact(digest, parse_artifact(blob.data), blob.data)


def load_index(repository: Repository, found: FoundArtifact) -> Index:
    """Fetch and read the index of an artifact. Raises FormatError where they do not fit."""
    size = found.artifact.index.size
    if size > MAX_INDEX:
        raise FormatError(f"an index of {size} bytes", field="size")
    data = repository.read_blob(found.artifact.index.digest, limit=size)
    return checked_index(data, found)


def checked_index(data: bytes, found: FoundArtifact) -> Index:
    """Read the bytes of an index, and hold it against its artifact. Raises FormatError."""
    index = decode_index(data)
    subject = found.artifact.subject
    if subject is not None and subject.digest != index.source:
        raise FormatError("the index was made from another image", field="source")
    if not set(index.packs) <= {pack.digest for pack in found.artifact.packs}:
        raise FormatError("the index uses packs that the artifact does not list", field="packs")
    sizes = {pack.digest: pack.size for pack in found.artifact.packs}
    for ref in index.sectors:
        if ref.pack is not None and ref.offset + ref.stored > sizes[ref.pack]:
            raise FormatError(f"sector {ref.digest} lies behind its pack's end", field="offset")
    return index
