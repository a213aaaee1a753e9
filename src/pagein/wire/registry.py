"""OCI distribution as values: addresses, redirects, ranges, upload steps, errors.

Rule 1. No I/O: URLs, statuses and headers in; URLs, decisions or errors out.
Rule 2. A URL in a message has no query: signed URLs are secrets.
Sources: OCI distribution-spec 1.1; RFC 9110 (ranges 14, redirects 15.4, Retry-After 10.2.3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import quote, urlencode, urljoin, urlsplit, urlunsplit

import msgspec

from pagein.errors import (
    FormatError,
    NotFoundError,
    PageinError,
    RemoteDeniedError,
    RemoteError,
    RemoteProtocolError,
    RemoteUnavailableError,
)
from pagein.types import ByteRange, Digest

MAX_MANIFEST: Final = 4 << 20
"""Largest manifest, in bytes (distribution-spec, "Pushing Manifests")."""

MAX_REDIRECTS: Final = 5
MAX_ERROR_BODY: Final = 64 << 10

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES: Final = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST)

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KEEP_METHOD = frozenset({307, 308})
_LOOPBACK = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::\d+)?")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_UPLOADED = re.compile(r"(?:bytes=)?0-(\d{1,19})")
_LINK_NEXT = re.compile(r'<([^<>]*)>\s*;[^,]*?\brel="?next"?', re.IGNORECASE)
_QUERY_IN_TEXT = re.compile(r"(https?://[^\s?#\"']+)[?#][^\s\"']*")
_MAX_RETRY_AFTER_S: Final = 24 * 3600.0


def is_loopback(host: str) -> bool:
    """Whether ``host`` (with or without a port) is this machine: plain HTTP needs no flag."""
    return _LOOPBACK.fullmatch(host) is not None


def api_host(host: str) -> str:
    """Return the host that answers for a registry's name: Docker Hub's API has another one."""
    return "registry-1.docker.io" if host in {"docker.io", "index.docker.io"} else host


def redact(url: str) -> str:
    """Return ``url`` without user, query and fragment, fit for a message."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))[:300]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The addresses of one repository (distribution-spec, "Endpoints").

    ``namespace`` is told to a host that stands in for the registry of that name: ``?ns=``.
    """

    origin: str
    repository: str
    root: str = "/v2"
    namespace: str = ""

    @classmethod
    def of(cls, host: str, repository: str, *, plain_http: bool) -> Endpoint:
        """Choose scheme and host: HTTPS unless told otherwise, or on loopback."""
        scheme = "http" if plain_http or is_loopback(host) else "https"
        return cls(f"{scheme}://{api_host(host)}", repository)

    @property
    def scope_name(self) -> str:
        """What token servers call the repository.

        The name after ``/v2/``, also where a part of it is in ``root``: a project of Harbor's, say.
        """
        _, _, prefix = f"{self.root}/".partition("/v2/")
        return f"{prefix}{self.repository}"

    @property
    def plain_http(self) -> bool:
        """Whether requests travel unencrypted."""
        return self.origin.startswith("http:")

    def _at(self, path: str, **query: str) -> str:
        if self.namespace:
            query["ns"] = self.namespace
        text = f"?{urlencode(query, safe=':/')}" if query else ""
        return f"{self.origin}{self.root}/{self.repository}/{path}{text}"

    def manifest(self, reference: str | Digest) -> str:
        """Address of a manifest by tag or digest."""
        return self._at(f"manifests/{quote(str(reference), safe=':')}")

    def blob(self, digest: Digest) -> str:
        """Address of a blob."""
        return self._at(f"blobs/{digest}")

    def uploads(self) -> str:
        """Where an upload begins."""
        return self._at("blobs/uploads/")

    def mount(self, digest: Digest, from_repository: str) -> str:
        """Where a blob of another repository is mounted."""
        return self._at("blobs/uploads/", mount=str(digest), **{"from": from_repository})

    def referrers(self, digest: Digest, artifact_type: str) -> str:
        """Address of the referrers of a manifest."""
        return self._at(f"referrers/{digest}", artifactType=artifact_type)

    def tags(self) -> str:
        """Address of the list of tags."""
        return self._at("tags/list", n="1000")


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what credentials are bound to."""
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise RemoteProtocolError(f"not a usable address: {redact(url)!r}") from None
    return parts.scheme, (parts.hostname or "").lower(), port


def resolve_location(base: str, location: str | None) -> str:
    """Return the absolute address that a ``Location`` header names.

    Raises RemoteProtocolError: absent, not HTTP, or from HTTPS down to plain HTTP.
    """
    if not location or len(location) > 16 << 10 or not location.isprintable():
        raise RemoteProtocolError(f"the answer of {redact(base)} has no usable Location")
    try:
        url = urljoin(base, location)
        scheme, host, _ = origin_of(url)
    except ValueError:
        scheme, host, url = "", "", ""
    if scheme not in {"http", "https"} or not host or " " in url:
        raise RemoteProtocolError(f"the answer of {redact(base)} has no usable Location")
    if scheme == "http" and base.startswith("https:"):
        raise RemoteProtocolError(f"{redact(base)} sends us on to plain http")
    return urlunsplit(urlsplit(url)._replace(fragment=""))


class Redirects:
    """The hops of one request: at most MAX_REDIRECTS, and never in a circle."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._first = url
        self._seen = {url}

    @property
    def left_origin(self) -> bool:
        """Whether the present address is not of the first one's origin: send no credentials."""
        return origin_of(self.url) != origin_of(self._first)

    def follow(self, method: str, status: int, headers: Mapping[str, str]) -> bool:
        """Move to the next hop; False if the answer is none. Raises RemoteProtocolError."""
        if status not in _REDIRECTS:
            return False
        if status not in _KEEP_METHOD and method not in {"GET", "HEAD"}:
            raise RemoteProtocolError(f"{redact(self.url)} answers {method} with {status}")
        target = resolve_location(self.url, headers.get("location"))
        if target in self._seen:
            raise RemoteProtocolError(f"{redact(self._first)} redirects in a circle")
        if len(self._seen) > MAX_REDIRECTS:
            raise RemoteProtocolError(
                f"{redact(self._first)} redirects more than {MAX_REDIRECTS} times"
            )
        self._seen.add(target)
        self.url = target
        return True


def content_length(headers: Mapping[str, str]) -> int | None:
    """Read ``Content-Length``; None if absent, RemoteProtocolError if it is no number."""
    text = headers.get("content-length")
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,19}", text):
        raise RemoteProtocolError("the answer's Content-Length is not a number")
    return int(text)


def bytes_to_skip(status: int, headers: Mapping[str, str], span: ByteRange, what: str) -> int:
    """Check the answer to a range request; return how many bytes come before the range.

    206 must name exactly our range. 200 is the whole blob, so its first ``span.start`` bytes
    are not ours. Raises FormatError where the blob is too short, RemoteProtocolError otherwise.
    """
    length = content_length(headers)
    if headers.get("content-encoding", "identity") != "identity":
        raise RemoteProtocolError(f"{what} came in a content encoding that we did not ask for")
    if status == 200:
        if length is not None and length < span.stop:
            raise FormatError(f"{what} ends at byte {length}, before {span.stop}", field="range")
        return span.start
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    if match is None:
        raise RemoteProtocolError(f"the answer for {what} has no usable Content-Range")
    first, last = int(match[1]), int(match[2])
    if first == span.start and last < span.stop - 1 and match[3] == str(last + 1):
        raise FormatError(f"{what} ends at byte {last + 1}, before {span.stop}", field="range")
    if first != span.start or last != span.stop - 1:
        raise RemoteProtocolError(
            f"asked for bytes {span.start}-{span.stop - 1} of {what}, got {first}-{last}"
        )
    if length is not None and length != span.length:
        raise RemoteProtocolError(f"the answer for {what} has {length} bytes, not {span.length}")
    return 0


def uploaded_bytes(headers: Mapping[str, str]) -> int | None:
    """Bytes that an upload holds, from the ``Range: 0-N`` of its status; None if not told.

    An upload that holds nothing reads ``0-0`` in distribution 2.8, and so does one with a single
    byte: 0 is the safe answer, as the digest is checked at the end.
    """
    match = _UPLOADED.fullmatch(headers.get("range", "").strip())
    if match is None:
        return None
    last = int(match[1])
    return last + 1 if last else 0


def with_digest(location: str, digest: Digest) -> str:
    """Return the address that closes an upload (distribution-spec, "POST then PUT")."""
    parts = urlsplit(location)
    added = urlencode({"digest": str(digest)}, safe=":")
    return urlunsplit(parts._replace(query=f"{parts.query}&{added}" if parts.query else added))


def next_page(base: str, headers: Mapping[str, str]) -> str | None:
    """Address of the next page from ``Link: <...>; rel="next"``; only of the same origin."""
    match = _LINK_NEXT.search(headers.get("link", "")[: 16 << 10])
    if match is None:
        return None
    url = resolve_location(base, match[1])
    if origin_of(url) != origin_of(base):
        raise RemoteProtocolError(f"the next page of {redact(base)} is at another host")
    return url


def parse_retry_after(value: str | None, now_s: float) -> float | None:
    """Seconds to wait from a ``Retry-After`` (seconds or HTTP date; RFC 9110 section 10.2.3)."""
    if not value:
        return None
    seconds = value.strip(" \t")
    if re.fullmatch(r"[0-9]{1,9}", seconds):
        return min(float(seconds), _MAX_RETRY_AFTER_S)
    try:
        when = parsedate_to_datetime(value)
        at = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(at - now_s, 0.0), _MAX_RETRY_AFTER_S)


class _ErrorEntry(msgspec.Struct):
    code: str = ""
    message: str = ""


class _ErrorBody(msgspec.Struct):
    errors: list[_ErrorEntry] = msgspec.field(default_factory=list)


def registry_message(body: bytes) -> str:
    """Return the registry's own words, one line, at most 300 characters, no signed URLs."""
    try:
        entries = msgspec.json.decode(body, type=_ErrorBody).errors
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""
    text = "; ".join(entry.message or entry.code for entry in entries[:3])
    text = _QUERY_IN_TEXT.sub(r"\1", text)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]


def error_of(
    status: int, headers: Mapping[str, str], body: bytes, *, what: str, host: str, now_s: float
) -> PageinError:
    """Return the error that an answer other than the wanted one stands for."""
    said = registry_message(body)
    message = f"{what}: {host} answered {status}" + (f": {said}" if said else "")
    if status == 401:
        return RemoteDeniedError(
            message, hint=f"log in with 'docker login {host}', or check the image's name"
        )
    if status == 403:
        return RemoteDeniedError(
            message, hint=f"check that your login at {host} may do this, or the image's name"
        )
    if status == 404:
        return NotFoundError(message)
    if status == 416:
        return FormatError(message, field="range")
    if status in {408, 425, 429} or status >= 500:
        wait_s = parse_retry_after(headers.get("retry-after"), now_s)
        hint = "the registry limits requests; log in, or wait" if status == 429 else None
        return RemoteUnavailableError(message, retry_after=wait_s, hint=hint)
    if status == 400 and "HTTPS server" in body[:200].decode("latin-1"):
        return RemoteProtocolError(message, hint="this registry wants https")
    return RemoteProtocolError(message) if status < 400 else RemoteError(message)
