"""What the ``index.json`` of an OCI image layout lists (image-spec image-layout.md), as a value."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pagein.errors import FormatError, NotFoundError, UsageError
from pagein.format.media import OCI_INDEX, OCI_MANIFEST, OPTIMIZED_FROM
from pagein.store.repository import ManifestBlob
from pagein.types import Digest

REF_NAME: Final = "org.opencontainers.image.ref.name"
MAX_LISTING: Final = 64 << 20
"""Bytes of an index.json: 200,000 entries, more than a folder of images ever has."""

Entry = dict[str, Any]


def tag_of(entry: Entry) -> str | None:
    """Return the tag of an entry, if it has one."""
    tag = (entry.get("annotations") or {}).get(REF_NAME)
    return None if tag is None else str(tag)


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data.decode())
    except (ValueError, RecursionError):
        return {}  # not ours to refuse: `parse_manifest` does, with a better message
    return document if isinstance(document, dict) else {}


def manifest_blob(digest: Digest, data: bytes, media_type: str = "") -> ManifestBlob:
    """Return a manifest with the media type that the document has, or else ``media_type``.

    An OCI manifest need not name its own type (image-spec manifest.md); its form tells it.
    """
    document = _document(data)
    own = document.get("mediaType")
    guess = OCI_INDEX if "manifests" in document else OCI_MANIFEST
    return ManifestBlob(own if isinstance(own, str) else media_type or guess, digest, data)


def subject_of(data: bytes) -> str | None:
    """Return the digest that a manifest names as its subject."""
    subject = _document(data).get("subject")
    return subject.get("digest") if isinstance(subject, dict) else None


def referring(manifests: Mapping[Digest, bytes], subject: Digest) -> list[Digest]:
    """Return which manifests refer to ``subject``, in their order, but optimized ones last."""
    found = [one for one, data in manifests.items() if subject_of(data) == str(subject)]
    return sorted(found, key=lambda digest: _is_optimized(manifests[digest]))


def _is_optimized(manifest: bytes) -> bool:
    annotations = _document(manifest).get("annotations")
    return isinstance(annotations, dict) and OPTIMIZED_FROM in annotations


@dataclass(frozen=True, slots=True)
class Listing:
    """The entries in order, as they were read: what we do not know is kept when they are written.

    ``place`` is for messages.
    """

    entries: tuple[Entry, ...]
    place: str

    @classmethod
    def parse(cls, data: bytes, place: str) -> Listing:
        """Read an index.json. Raises FormatError."""
        try:
            document = json.loads(data.decode())
            entries = tuple(document["manifests"])
            whole = all(
                isinstance(entry["digest"], str)
                and isinstance(entry.get("annotations") or {}, dict)
                for entry in entries
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(f"index.json of {place} is damaged: {error!r}") from None
        if len(data) > MAX_LISTING or not whole:
            raise FormatError(f"index.json of {place} is damaged: an entry without a digest")
        return cls(entries, place)

    def write(self) -> bytes:
        """Return the index.json."""
        document = {"schemaVersion": 2, "manifests": self.entries}
        return json.dumps(document, separators=(",", ":")).encode()

    def tagged(self, tag: str) -> Entry:
        """Return the entry of a tag; the last one wins. Raises NotFoundError."""
        for entry in reversed(self.entries):
            if tag_of(entry) == tag:
                return entry
        raise NotFoundError(f"no image {tag!r} in {self.place}", hint=self._choices())

    def only(self) -> Digest:
        """Return what the place is when no tag is given: its one tagged image, else its one image,
        else its one artifact, as optimized last. Raises UsageError where there are several."""
        images = [entry for entry in self.entries if not entry.get("artifactType")]
        named = [entry for entry in images if tag_of(entry) is not None]
        candidates = _current(named or images or self.entries)
        if not candidates:
            raise NotFoundError(f"{self.place} holds no image")
        if len(candidates) > 1:
            raise UsageError(f"{self.place} holds {len(candidates)} images", hint=self._choices())
        return Digest.parse(candidates.pop())

    def artifacts(self, artifact_type: str) -> list[Digest]:
        """Return the manifests of an artifact type, each once, in order."""
        found = (e["digest"] for e in self.entries if e.get("artifactType") == artifact_type)
        return [Digest.parse(digest) for digest in dict.fromkeys(found)]

    def tags(self) -> Iterator[str]:
        """Yield the tags there are, each once, in order."""
        yield from dict.fromkeys(
            tag for entry in self.entries if (tag := tag_of(entry)) is not None
        )

    def adding(self, entry: Entry, *, tag: str | None) -> Listing:
        """Return the listing with one more entry.

        A tag is taken from the entry that had it. An artifact that loses its only tag stays,
        without a name: it still refers to its subject.
        """
        kept = list(self.entries)
        if tag is None:
            if any(one["digest"] == entry["digest"] for one in kept):
                return self
        else:
            entry = {**entry, "annotations": {**(entry.get("annotations") or {}), REF_NAME: tag}}
            kept = [one for old in kept for one in _without(tag, old, entry)]
        return Listing((*kept, entry), self.place)

    def _choices(self) -> str:
        tags = list(self.tags())
        return f"name one of its tags: {', '.join(tags[:20])}" if tags else "it has no tags"


def _current(entries: Iterable[Entry]) -> set[str]:
    """Return the digests of entries, of an artifact and what it was optimized to only the last."""
    latest: dict[str, str] = {}
    for entry in entries:
        plain = (entry.get("annotations") or {}).get(OPTIMIZED_FROM)
        if plain is None:
            latest.setdefault(entry["digest"], entry["digest"])
        else:
            latest[str(plain)] = entry["digest"]
    return set(latest.values())


def _without(tag: str, old: Entry, new: Entry) -> list[Entry]:
    """Return what stays of an entry when ``new`` takes the tag."""
    if tag_of(old) not in (tag, None):
        return [old]
    if old["digest"] == new["digest"]:
        return []
    if tag_of(old) is None:
        return [old]
    if not old.get("artifactType"):
        return []
    annotations = {k: v for k, v in old["annotations"].items() if k != REF_NAME}
    rest = {k: v for k, v in old.items() if k != "annotations"}
    return [{**rest, "annotations": annotations} if annotations else rest]
