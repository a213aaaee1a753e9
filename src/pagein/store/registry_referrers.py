"""Who refers to a manifest: the registry's API where it has one, else the fallback tag.

Rule 1. A registry that once said it has no API is not asked again by this object.
Rule 2. The fallback index is read, merged, written and read again: another writer in between is
noticed, and the merge repeated.
Source: OCI distribution-spec 1.1, "Listing Referrers" and "Pushing Manifests with Subject".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pagein.errors import FormatError, NotFoundError, RemoteError, RemoteUnavailableError
from pagein.format.media import OPTIMIZED_FROM
from pagein.store.registry_auth import read_limited
from pagein.store.registry_session import RegistrySession
from pagein.store.repository import ManifestBlob
from pagein.transport import Request
from pagein.types import Digest
from pagein.wire.referrers import (
    Referrer,
    descriptor_of,
    fallback_tag,
    listed_digests,
    merge_into_fallback,
    parse_referrers,
    select_referrers,
    without_referrers,
)
from pagein.wire.registry import MAX_MANIFEST, OCI_INDEX, next_page

_NO_API: Final = frozenset({400, 404, 405, 406, 501})
_MAX_PAGES: Final = 64
_MERGES: Final = 4


class Referrers:
    """Lists and records referrers of one repository. Safe to call from any thread."""

    def __init__(
        self,
        session: RegistrySession,
        read: Callable[[str | Digest], ManifestBlob],
        write: Callable[[ManifestBlob, str], str],
    ) -> None:
        self._session = session
        self._read = read
        self._write = write
        self._without_api = False

    def find(self, subject: Digest, artifact_type: str) -> list[Digest]:
        """Digests of one artifact type, newest last, but optimized ones behind all others."""
        found: list[Referrer] | None = None
        if not self._without_api:
            found = self._from_api(subject, artifact_type)
        if found is None:
            index = self._fallback(subject)
            found = [] if index is None else parse_referrers(index)
        return select_referrers(found, artifact_type, preferred=OPTIMIZED_FROM)

    def _from_api(self, subject: Digest, artifact_type: str) -> list[Referrer] | None:
        url: str | None = self._session.endpoint.referrers(subject, artifact_type)
        found: list[Referrer] = []
        for _ in range(_MAX_PAGES):
            page = url
            if page is None:
                break
            answer = self._session.repeating(lambda page=page: self._page(page, subject))  # type: ignore[misc]
            if answer is None:
                self._without_api = True
                return None
            entries, url = answer
            found += entries
        return found

    def _page(self, url: str, subject: Digest) -> tuple[list[Referrer], str | None] | None:
        request = Request("GET", url, {"Accept": OCI_INDEX})
        with self._session.send(request, self._session.scopes("pull")) as exchange:
            response = exchange.response
            if response.status in _NO_API:
                return None
            if response.status != 200:
                raise self._session.failure(response, f"listing referrers of {subject}")
            if OCI_INDEX not in response.headers.get("content-type", ""):
                return None  # some registries answer unknown paths with a web page
            data = read_limited(response, MAX_MANIFEST + 1)
            if len(data) > MAX_MANIFEST:
                raise FormatError(f"the list of referrers of {subject} is over 4 MiB")
            return parse_referrers(data), next_page(exchange.url, response.headers)

    def _fallback(self, subject: Digest) -> bytes | None:
        try:
            return self._read(fallback_tag(subject)).data
        except NotFoundError:
            return None

    def add(self, subject: Digest, manifest: ManifestBlob) -> None:
        """List ``manifest`` in the fallback index of its subject."""
        descriptor = descriptor_of(manifest.data, manifest.media_type)
        for _ in range(_MERGES):
            merged = merge_into_fallback(self._fallback(subject), descriptor)
            if merged is None:
                return
            self._store(subject, merged)
        raise RemoteUnavailableError(
            f"the list of referrers of {subject} at {self._session.host} changes all the time"
        )

    def _store(self, subject: Digest, index: bytes) -> None:
        try:
            self._write_index(subject, index)
        except (RemoteUnavailableError, FormatError):
            raise
        except RemoteError:
            # A registry refuses an index that lists a manifest which was deleted since.
            pruned = without_referrers(index, self._missing(index))
            if pruned == index:
                raise
            self._write_index(subject, pruned)

    def _write_index(self, subject: Digest, index: bytes) -> None:
        self._write(ManifestBlob(OCI_INDEX, Digest.of(index), index), fallback_tag(subject))

    def _missing(self, index: bytes) -> set[str]:
        missing: set[str] = set()
        for text in listed_digests(index):
            try:
                self._read(Digest.parse(text))
            except (NotFoundError, FormatError):
                missing.add(text)
        return missing
