"""Manifests as far as a registry client must look into them: media type, subject, referrers.

Source: OCI distribution-spec 1.1, "Listing Referrers" and "Referrers Tag Schema".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from pagein.errors import FormatError
from pagein.types import Digest
from pagein.wire.registry import (
    MANIFEST_TYPES,
    MAX_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
)

_CREATED: Final = "org.opencontainers.image.created"
_SCHEMA_1: Final = "application/vnd.docker.distribution.manifest.v1"


@dataclass(frozen=True, slots=True)
class Referrer:
    """One entry of a list of referrers. ``marks``: the names of its annotations."""

    digest: Digest
    artifact_type: str
    created: str
    marks: frozenset[str] = frozenset()


class _Descriptor(msgspec.Struct, rename="camel"):
    media_type: str = ""
    digest: str = ""
    size: int = 0
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None


class _Manifest(msgspec.Struct, rename="camel"):
    schema_version: int = 0
    media_type: str = ""
    artifact_type: str = ""
    config: _Descriptor | None = None
    layers: list[Any] | None = None
    manifests: list[Any] | None = None
    annotations: dict[str, str] | None = None
    subject: _Descriptor | None = None


def _decode(data: bytes, what: str) -> _Manifest:
    try:
        return msgspec.json.decode(data, type=_Manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise FormatError(f"{what} is not a manifest: {error}", field="manifest") from None


def manifest_media_type(data: bytes, content_type: str, what: str) -> str:
    """Return the media type of a manifest: the header's if it is one of ours, else the body's.

    FormatError for Docker schema 1, which has no layer digests worth trusting, and for what is no
    manifest at all.
    """
    named = content_type.partition(";")[0].strip().lower()
    manifest = _decode(data, what)
    if named.startswith(_SCHEMA_1) or manifest.schema_version == 1:
        raise FormatError(
            f"{what} is a docker schema 1 manifest, which pagein does not read",
            field="schemaVersion",
            hint="push the image again with a docker newer than 1.10",
        )
    if manifest.media_type:
        if named in MANIFEST_TYPES and named != manifest.media_type:
            raise FormatError(
                f"{what} says it is {manifest.media_type[:100]!r}, its sender says {named!r}",
                field="mediaType",
            )
        return manifest.media_type
    if named in MANIFEST_TYPES:
        return named
    if manifest.manifests is not None:
        return OCI_INDEX
    if manifest.config is not None and manifest.layers is not None:
        return OCI_MANIFEST
    raise FormatError(f"{what} is not a manifest: its type is {named[:100]!r}", field="mediaType")


def subject_of(data: bytes) -> Digest | None:
    """Return the digest of the manifest that this one refers to, if it does."""
    subject = _decode(data, "the manifest").subject
    return Digest.parse(subject.digest) if subject is not None else None


def fallback_tag(subject: Digest) -> str:
    """Tag of the client-maintained index where a registry has no referrers API."""
    return f"sha256-{subject.hex}"


def descriptor_of(data: bytes, media_type: str) -> dict[str, Any]:
    """Describe a manifest for a list of referrers, with artifactType and annotations kept.

    Where a manifest has no artifactType, its config's media type stands for it (spec, "Pushing
    Manifests with Subject").
    """
    manifest = _decode(data, "the manifest")
    kind = manifest.artifact_type or (manifest.config.media_type if manifest.config else "")
    found: dict[str, Any] = {
        "mediaType": media_type,
        "digest": str(Digest.of(data)),
        "size": len(data),
    }
    if kind:
        found["artifactType"] = kind
    if manifest.annotations:
        found["annotations"] = manifest.annotations
    return found


def _entries(data: bytes) -> list[dict[str, Any]]:
    try:
        index = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise FormatError(f"a list of referrers is not JSON: {error}", field="manifests") from None
    entries = index.get("manifests") if isinstance(index, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise FormatError("a list of referrers has no manifests", field="manifests")
    return entries


def merge_into_fallback(index: bytes | None, descriptor: dict[str, Any]) -> bytes | None:
    """Return the fallback index with ``descriptor`` last; None if it has it already.

    Entries of others stay as they are, byte for byte of meaning; a digest is listed once.
    """
    entries = _entries(index) if index is not None else []
    kept = [entry for entry in entries if entry.get("digest") != descriptor["digest"]]
    if descriptor in entries and len(kept) == len(entries) - 1:
        return None
    return fallback_index([*kept, descriptor])


def without_referrers(index: bytes, missing: set[str]) -> bytes:
    """Return the fallback index without the digests in ``missing``."""
    return fallback_index([e for e in _entries(index) if e.get("digest") not in missing])


def listed_digests(index: bytes) -> list[str]:
    """Return the digests that an index lists, as they are spelled there."""
    return [str(entry.get("digest")) for entry in _entries(index)]


def fallback_index(entries: list[dict[str, Any]]) -> bytes:
    """Encode an image index of these entries; FormatError beyond the size of a manifest."""
    data = msgspec.json.encode(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}, order="deterministic"
    )
    if len(data) > MAX_MANIFEST:
        raise FormatError("too many referrers for one index", field="manifests")
    return data


def parse_referrers(data: bytes) -> list[Referrer]:
    """Read a list of referrers (API answer or fallback index), in its own order."""
    found: list[Referrer] = []
    for entry in _entries(data):
        try:
            descriptor = msgspec.convert(entry, _Descriptor)
            digest = Digest.parse(descriptor.digest)
        except (msgspec.ValidationError, FormatError):
            continue  # one bad or foreign (sha512) entry must not hide the others
        notes = descriptor.annotations or {}
        kind, created = descriptor.artifact_type or "", notes.get(_CREATED, "")
        found.append(Referrer(digest, kind, created, frozenset(notes)))
    return found


def select_referrers(
    found: list[Referrer], artifact_type: str, *, preferred: str = ""
) -> list[Digest]:
    """Return the digests of one artifact type, each once, newest last.

    Those that have an annotation of the name ``preferred`` come behind all others. Age is the
    ``created`` annotation where there is one (RFC 3339 in UTC sorts as text), else the order in
    the list: the fallback index grows at its end.
    """
    matching = [referrer for referrer in found if referrer.artifact_type == artifact_type]
    matching.sort(key=lambda referrer: (preferred in referrer.marks, referrer.created))
    return list(dict.fromkeys(referrer.digest for referrer in matching))
