"""Images in one tar file: OCI layouts (``oci-archive:``) and what ``docker save`` writes.

Both are read where they lie, and only read. A docker archive has no manifest of the OCI kind: one
is made from its ``manifest.json``, the same for the same archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final

from pagein.errors import FormatError, NotFoundError, UsageError
from pagein.format.manifest import MAX_LAYERS, MAX_MANIFEST, parse_config
from pagein.format.media import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from pagein.store.listing import MAX_LISTING, Listing, manifest_blob, referring
from pagein.store.repository import ManifestBlob
from pagein.store.tar_members import TarMembers
from pagein.store.verified import read_verified, verified_reader
from pagein.types import Buffer, ByteRange, Digest

_SUFFIXES: Final = {b"\x1f\x8b": "+gzip", b"\x28\xb5": "+zstd"}


class OciArchiveRepository:
    """Reads an OCI layout in a tar file."""

    def __init__(self, path: Path) -> None:
        self._tar = TarMembers(path)

    @property
    def name(self) -> str:
        """``oci-archive:`` and the path."""
        return f"oci-archive:{self._tar.path}"

    @cached_property
    def _listing(self) -> Listing:
        if self._tar.find("index.json") is None:
            raise NotFoundError(
                f"{self._tar.path} is not an OCI archive: it has no index.json",
                hint="docker-archive:FILE?" if self._tar.find("manifest.json") else None,
            )
        data = self._tar.read("index.json", limit=MAX_LISTING)
        return Listing.parse(data, str(self._tar.path))

    def manifest(self, reference: str | Digest, /) -> ManifestBlob:
        """Return the manifest under a tag or a digest."""
        media_type = ""
        if isinstance(reference, str):
            entry = self._listing.tagged(reference)
            reference, media_type = Digest.parse(entry["digest"]), str(entry.get("mediaType") or "")
        return manifest_blob(reference, self.read_blob(reference, limit=MAX_MANIFEST), media_type)

    def only_manifest(self) -> ManifestBlob:
        """Return the one image of the archive. Raises UsageError where there are several."""
        return self.manifest(self._listing.only())

    @contextlib.contextmanager
    def _open(self, digest: Digest) -> Iterator[BinaryIO]:
        if self._tar.find(_blob(digest)) is None:
            raise NotFoundError(f"no blob {digest} in {self._tar.path}")
        with self._tar.open(_blob(digest)) as stream:
            yield stream

    def read_blob(self, digest: Digest, /, *, limit: int) -> bytes:
        """Return a whole blob of at most ``limit`` bytes."""
        with self._open(digest) as stream:
            return read_verified(stream, digest, limit=limit, place=str(self._tar.path))

    @contextlib.contextmanager
    def open_blob(self, digest: Digest, /, *, size: int | None = None) -> Iterator[BinaryIO]:
        """Stream a blob; its end is reached only if digest and size are right."""
        with self._open(digest) as stream:
            yield verified_reader(stream, digest, size)

    def read_range(self, digest: Digest, span: ByteRange, /) -> Buffer:
        """Return exactly ``span.length`` bytes, unverified."""
        return self._tar.pread(_blob(digest), span)

    def referrers(self, subject: Digest, /, *, artifact_type: str) -> list[Digest]:
        """Digests of the manifests in index.json whose subject is ``subject``, newest last, but
        optimized ones behind all others."""
        candidates = self._listing.artifacts(artifact_type)
        manifests = {one: self.read_blob(one, limit=MAX_MANIFEST) for one in candidates}
        return referring(manifests, subject)

    def tags(self) -> Iterator[str]:
        """Yield the tags there are, in order of index.json."""
        return self._listing.tags()


def _blob(digest: Digest) -> str:
    return f"blobs/sha256/{digest.hex}"


def _familiar(name: str) -> str:
    short = name.removeprefix("docker.io/").removeprefix("library/")
    return short if ":" in short.rpartition("/")[2] else f"{short}:latest"


@dataclass(frozen=True, slots=True)
class _SavedImage:
    """One image of a docker archive: its names, its manifest, and the member of each blob."""

    tags: tuple[str, ...]
    manifest: ManifestBlob
    members: dict[Digest, str]


class DockerArchiveRepository:
    """Reads what ``docker save`` or ``skopeo copy ... docker-archive:`` wrote.

    An uncompressed layer's digest is the configuration's diff id, believed until it is read to its
    end; a compressed one (recent engines) is hashed once.
    """

    def __init__(self, path: Path) -> None:
        self._tar = TarMembers(path)

    @property
    def name(self) -> str:
        """``docker-archive:`` and the path."""
        return f"docker-archive:{self._tar.path}"

    @cached_property
    def _images(self) -> tuple[_SavedImage, ...]:
        place = self._tar.path
        if self._tar.find("manifest.json") is None:
            raise NotFoundError(
                f"{place} is not a docker archive: it has no manifest.json",
                hint="oci-archive:FILE?" if self._tar.find("index.json") else None,
            )
        data = self._tar.read("manifest.json", limit=MAX_MANIFEST)
        try:
            return tuple(self._image(entry) for entry in json.loads(data.decode()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(f"manifest.json of {place} is damaged: {error!r}") from None

    def _image(self, entry: dict[str, Any]) -> _SavedImage:
        config = self._tar.read(entry["Config"], limit=MAX_MANIFEST)
        layers = list(entry["Layers"] or ())
        diff_ids = parse_config(config).diff_ids
        if len(layers) != len(diff_ids) or len(layers) > MAX_LAYERS:
            raise FormatError(
                f"an image in {self._tar.path} has {len(layers)} layers, but its config names "
                f"{len(diff_ids)}",
                field="Layers",
            )
        members = {Digest.of(config): str(entry["Config"])}
        described = []
        for name, diff_id in zip(layers, diff_ids, strict=True):
            layer = self._layer(name, diff_id)
            members[Digest.parse(layer["digest"])] = name
            described.append(layer)
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": OCI_CONFIG,
                "digest": str(Digest.of(config)),
                "size": len(config),
            },
            "layers": described,
        }
        data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        tags = tuple(map(str, entry.get("RepoTags") or ()))
        return _SavedImage(tags, ManifestBlob(OCI_MANIFEST, Digest.of(data), data), members)

    def _layer(self, name: str, diff_id: Digest) -> dict[str, Any]:
        member = self._tar.find(name)
        if member is None:
            raise FormatError(f"{self._tar.path} lacks the layer {name!r}", field="Layers")
        with self._tar.open(name) as stream:
            suffix = _SUFFIXES.get(stream.read(2), "")
        digest = diff_id
        if suffix:
            with self._tar.open(name) as stream:
                digest = Digest(hashlib.file_digest(stream, "sha256").hexdigest())  # type: ignore[arg-type]
        return {"mediaType": OCI_LAYER + suffix, "digest": str(digest), "size": member.size}

    def manifest(self, reference: str | Digest, /) -> ManifestBlob:
        """Return the manifest under ``NAME:TAG``, a bare tag, or its digest.

        A name may be written in full or as Docker shows it: ``docker.io/library/app:v1`` is
        ``app:v1``, and ``app:latest`` is ``app``. An image of that name goes before a bare tag.
        """
        wanted = _familiar(reference) if isinstance(reference, str) else ""
        for image in self._images:
            if image.manifest.digest == reference or wanted in map(_familiar, image.tags):
                return image.manifest
        for image in self._images:
            if reference in {tag.rpartition(":")[2] for tag in image.tags}:
                return image.manifest
        raise NotFoundError(f"no image {reference} in {self._tar.path}", hint=self._choices())

    def only_manifest(self) -> ManifestBlob:
        """Return the one image of the archive. Raises UsageError where there are several."""
        found = {image.manifest.digest for image in self._images}
        if not found:
            raise NotFoundError(f"{self._tar.path} holds no image")
        if len(found) > 1:
            raise UsageError(f"{self._tar.path} holds {len(found)} images", hint=self._choices())
        return self.manifest(found.pop())

    def _choices(self) -> str:
        return f"its tags are: {', '.join(self.tags()) or 'none'}"

    def _member(self, digest: Digest) -> str:
        for image in self._images:
            if digest in image.members:
                return image.members[digest]
        raise NotFoundError(f"no blob {digest} in {self._tar.path}")

    def read_blob(self, digest: Digest, /, *, limit: int) -> bytes:
        """Return a whole blob of at most ``limit`` bytes."""
        with self._tar.open(self._member(digest)) as stream:
            return read_verified(stream, digest, limit=limit, place=str(self._tar.path))

    @contextlib.contextmanager
    def open_blob(self, digest: Digest, /, *, size: int | None = None) -> Iterator[BinaryIO]:
        """Stream a blob; its end is reached only if digest and size are right."""
        with self._tar.open(self._member(digest)) as stream:
            yield verified_reader(stream, digest, size)

    def read_range(self, digest: Digest, span: ByteRange, /) -> Buffer:
        """Return exactly ``span.length`` bytes, unverified."""
        return self._tar.pread(self._member(digest), span)

    def referrers(self, subject: Digest, /, *, artifact_type: str) -> list[Digest]:
        """Return nothing: a docker archive has no place for artifacts."""
        del subject, artifact_type
        return []

    def tags(self) -> Iterator[str]:
        """Yield the names there are (``NAME:TAG``)."""
        return iter([tag for image in self._images for tag in image.tags])
