"""Manifests and blobs in memory, by repository name: what a fake registry serves."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import Any

from pagein.errors import NotFoundError
from pagein.store.repository import ManifestBlob
from pagein.types import Digest


@dataclass(slots=True)
class MemoryContent:
    """One repository's content. Safe to use from any thread for what a registry does."""

    blobs: dict[Digest, bytes] = field(default_factory=dict)
    manifests: dict[Digest, ManifestBlob] = field(default_factory=dict)
    tagged: dict[str, Digest] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add_blob(self, data: bytes) -> Digest:
        """Store bytes; return their digest."""
        digest = Digest.of(data)
        self.blobs[digest] = data
        return digest

    def add_manifest(
        self, value: dict[str, Any] | bytes, *, tag: str | None = None
    ) -> ManifestBlob:
        """Store a manifest given as a document or as its bytes."""
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        manifest = ManifestBlob(json.loads(data)["mediaType"], Digest.of(data), data)
        self.put_manifest(manifest, tag)
        return manifest

    def put_manifest(self, manifest: ManifestBlob, tag: str | None) -> None:
        """Store a manifest, also under a tag if one is given."""
        with self._lock:
            self.manifests[manifest.digest] = manifest
            if tag is not None:
                self.tagged[tag] = manifest.digest

    def manifest(self, reference: str | Digest) -> ManifestBlob:
        """Return a manifest by tag or digest; NotFoundError if absent."""
        with self._lock:
            digest = reference if isinstance(reference, Digest) else self.tagged.get(reference)
            found = self.manifests.get(digest) if digest is not None else None
        if found is None:
            raise NotFoundError(f"no manifest {reference}")
        return found

    def referrers_of(self, subject: Digest) -> list[dict[str, Any]]:
        """Return descriptors of the manifests whose subject is ``subject``, oldest first."""
        found: list[dict[str, Any]] = []
        for manifest in list(self.manifests.values()):
            value = json.loads(manifest.data)
            if (value.get("subject") or {}).get("digest") == str(subject):
                found.append(descriptor_of(manifest))
        return found


def descriptor_of(referrer: ManifestBlob) -> dict[str, Any]:
    """Return what a list of referrers says of a manifest (distribution-spec, listing referrers)."""
    value = json.loads(referrer.data)
    entry = {
        "mediaType": referrer.media_type,
        "digest": str(referrer.digest),
        "size": len(referrer.data),
        "artifactType": value.get("artifactType") or value["config"]["mediaType"],
    }
    if "annotations" in value:
        entry["annotations"] = value["annotations"]
    return entry
