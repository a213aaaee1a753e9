"""A repository of an OCI registry.

Rule 1. What a registry says about a digest is not trusted: bytes are hashed here.
Rule 2. `read_range` makes one attempt (plus a new authorization or a new redirect target where
the old one ran out); everything else repeats passing failures a few times.
Rule 3. A redirect target is remembered for a minute, for ranges only, and never sees credentials.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Final, cast
from urllib.parse import urlsplit

import msgspec

from pagein.errors import (
    FormatError,
    NotFoundError,
    RemoteProtocolError,
    RemoteUnavailableError,
)
from pagein.store.credentials import Anonymous, Credentials
from pagein.store.registry_auth import read_limited
from pagein.store.registry_growing import push_growing
from pagein.store.registry_referrers import Referrers
from pagein.store.registry_session import Clock, RegistrySession
from pagein.store.registry_stream import BlobStream
from pagein.store.registry_upload import BlobUpload, blob_exists, mount_blob
from pagein.store.repository import GrowingBlob, ManifestBlob, Progress, Repository, no_progress
from pagein.transport import Request, Response, Transport
from pagein.types import Buffer, ByteRange, Digest, ImageName
from pagein.wire.referrers import manifest_media_type, subject_of
from pagein.wire.registry import (
    MANIFEST_TYPES,
    MAX_MANIFEST,
    Endpoint,
    bytes_to_skip,
    content_length,
    next_page,
)

_MAX_SKIP: Final = 64 << 20
"""Bytes read and dropped at most where a registry answers a range with the whole blob."""

_ONE_RANGE: Final = 8 << 20
"""Bytes that may take ``range_timeout_s``; a longer range may take longer."""

_SKIP_PIECE: Final = 1 << 20
_TARGET_LIFETIME_S: Final = 60.0  # signed URLs live for minutes; a 403 renews one earlier
_MAX_TARGETS: Final = 256
_MAX_PAGES: Final = 1000
_DEFAULT_CHUNK: Final = 1 << 40  # one PATCH, as docker pushes: what every registry supports


class _Tags(msgspec.Struct):
    tags: list[str] | None = None


class RegistryRepository:
    """A `WritableRepository` in a registry. Safe to call from any thread.

    ``image`` gives host and repository. ``plain_http`` is not needed for 127.0.0.1, ::1 and
    localhost. ``endpoint`` is another host that answers for this one; without ``resolves`` it is
    not asked what a name means (tags, referrers), only for what has a digest. ``chunk_size``
    (bytes) splits uploads for registries behind a proxy with a limit on bodies. ``range_timeout_s``
    bounds how long the bytes of one range may take, however steadily they trickle.
    """

    def __init__(
        self,
        image: ImageName,
        transport: Transport,
        credentials: Credentials | None = None,
        *,
        plain_http: bool = False,
        endpoint: Endpoint | None = None,
        resolves: bool = True,
        chunk_size: int = _DEFAULT_CHUNK,
        range_timeout_s: float = 60.0,
        clock: Clock | None = None,
    ) -> None:
        self._host = urlsplit(endpoint.origin).netloc if endpoint else image.host
        self._resolves = resolves
        self._clock = clock or Clock()
        self._endpoint = endpoint or Endpoint.of(
            image.host, image.repository, plain_http=plain_http
        )
        self._session = RegistrySession(
            self._host, self._endpoint, transport, credentials or Anonymous(), clock=self._clock
        )
        self._referrers = Referrers(self._session, self.manifest, self._put)
        self._chunk_size = chunk_size
        self._range_timeout_s = range_timeout_s
        self._pull = self._session.scopes("pull")
        self._targets: dict[Digest, tuple[str, float]] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """``host/repository``."""
        return f"{self._host}/{self._endpoint.repository}"

    def manifest(self, reference: str | Digest, /) -> ManifestBlob:
        """Return the manifest under a tag or a digest, checked against the digest."""
        if not isinstance(reference, Digest):
            self._require_trust()
        return self._session.repeating(lambda: self._manifest(reference))

    def _require_trust(self) -> None:
        """Refuse to learn from a mirror what a name means: its answer could not be checked."""
        if not self._resolves:
            raise NotFoundError(f"{self._host} has no capability to resolve names")

    def _manifest(self, reference: str | Digest) -> ManifestBlob:
        joint = "@" if isinstance(reference, Digest) else ":"
        what = f"manifest {self.name}{joint}{reference}"
        request = Request(
            "GET", self._endpoint.manifest(reference), {"Accept": ", ".join(MANIFEST_TYPES)}
        )
        with self._session.send(request, self._pull) as exchange:
            response = exchange.response
            if response.status != 200:
                raise self._session.failure(response, f"reading {what}")
            data = self._whole(response, MAX_MANIFEST, what)
            content_type = response.headers.get("content-type", "")
        digest = Digest.of(data)
        if isinstance(reference, Digest) and digest != reference:
            raise FormatError(f"{what} has digest {digest}", field="digest")
        return ManifestBlob(manifest_media_type(data, content_type, what), digest, data)

    def _whole(self, response: Response, limit: int, what: str) -> bytes:
        length = content_length(response.headers)
        data = b"" if (length or 0) > limit else read_limited(response, limit + 1)
        if (length or 0) > limit or len(data) > limit:
            raise FormatError(f"{what} is over {limit} bytes", field="size")
        return data

    def read_blob(self, digest: Digest, /, *, limit: int) -> bytes:
        """Return a whole blob of at most ``limit`` bytes, checked against its digest."""
        return self._session.repeating(lambda: self._read_blob(digest, limit))

    def _read_blob(self, digest: Digest, limit: int) -> bytes:
        what = f"blob {digest} of {self.name}"
        request = Request("GET", self._endpoint.blob(digest))
        with self._session.send(request, self._pull) as exchange:
            if exchange.response.status != 200:
                raise self._session.failure(exchange.response, f"reading {what}")
            data = self._whole(exchange.response, limit, what)
        found = Digest.of(data)
        if found != digest:
            raise FormatError(f"{what} has digest {found}", field="digest")
        return data

    @contextmanager
    def open_blob(self, digest: Digest, /, *, size: int | None = None) -> Iterator[BinaryIO]:
        """Stream a blob; where the connection breaks, go on from there with a range.

        Reading past the last byte raises FormatError if the digest or size is wrong.
        """
        stream = BlobStream(self._session, digest, size, f"blob {digest} of {self.name}")
        try:
            stream.open()
            yield cast(BinaryIO, io.BufferedReader(stream, 256 << 10))
        finally:
            stream.close()

    def read_range(self, digest: Digest, span: ByteRange, /) -> Buffer:
        """Return exactly ``span.length`` bytes of a blob, unverified; one attempt."""
        (data,) = self.read_ranges(digest, [span])
        return data

    def read_ranges(self, digest: Digest, spans: Sequence[ByteRange], /) -> Iterator[Buffer]:
        """Yield the bytes of ranges that touch each other, each as soon as it is here."""
        what = f"blob {digest} of {self.name}"
        whole = ByteRange(spans[0].start, spans[-1].stop - spans[0].start)
        with self._range(digest, whole, what) as response:
            skip = bytes_to_skip(response.status, response.headers, whole, what)
            if skip > _MAX_SKIP:
                raise RemoteProtocolError(
                    f"{what}: {self._host} ignores Range, and byte {skip} is too far in to skip to",
                    hint="use a registry or mirror that supports range requests",
                )
            _skip(response, skip, what)
            for span in spans[:-1]:
                yield self._read_span(response, span, whole, what)
            last = self._read_span(response, spans[-1], whole, what)
            if response.status == 206 and "content-length" not in response.headers:
                self._expect_end(response, what)
            yield last

    @contextmanager
    def _range(self, digest: Digest, span: ByteRange, what: str) -> Iterator[Response]:
        """Send a request for a range; the answer's status is 200 or 206."""
        request = Request(
            "GET",
            self._endpoint.blob(digest),
            {"Range": span.header()},
            total_s=self._range_timeout_s * max(1, span.length // _ONE_RANGE),
        )
        with ExitStack() as stack:
            response = self._at_target(stack, request, digest)
            if response is None:
                exchange = stack.enter_context(self._session.send(request, self._pull))
                response = exchange.response
                if response.status not in {200, 206}:
                    raise self._session.failure(response, f"reading a range of {what}")
                if exchange.elsewhere:
                    self._remember(digest, exchange.url)
            try:
                yield response
            except RemoteUnavailableError:
                self._remember(digest, None)
                raise

    def _at_target(self, stack: ExitStack, request: Request, digest: Digest) -> Response | None:
        """Ask where the registry sent us last; None where that leads nowhere any more."""
        target = self._target(digest)
        if target is None:
            return None
        try:
            aimed = replace(request, url=target)
            response = stack.enter_context(self._session.transport.send(aimed))
        except RemoteUnavailableError:
            self._remember(digest, None)
            raise
        if response.status in {200, 206}:
            return response
        stack.close()
        self._remember(digest, None)  # ran out, or moved: the registry knows the new one
        return None

    def _target(self, digest: Digest) -> str | None:
        with self._lock:
            url, expires = self._targets.get(digest, ("", 0.0))
        return url if url and expires > self._clock.monotonic() else None

    def _remember(self, digest: Digest, url: str | None) -> None:
        with self._lock:
            self._targets.pop(digest, None)
            if url is not None:
                if len(self._targets) >= _MAX_TARGETS:
                    self._targets.clear()
                self._targets[digest] = (url, self._clock.monotonic() + _TARGET_LIFETIME_S)

    def _read_span(
        self, response: Response, span: ByteRange, whole: ByteRange, what: str
    ) -> bytearray:
        buffer = bytearray(span.length)
        view, filled = memoryview(buffer), 0
        while filled < span.length:
            count = response.readinto(view[filled:])
            if count == 0:
                came = span.start + filled - whole.start
                raise RemoteUnavailableError(
                    f"reading {what}: {self._host} sent {came} bytes of {whole.length}"
                )
            filled += count
        return buffer

    def _expect_end(self, response: Response, what: str) -> None:
        if response.readinto(memoryview(bytearray(1))):
            raise RemoteProtocolError(f"reading {what}: {self._host} sent more than was asked for")

    def referrers(self, subject: Digest, /, *, artifact_type: str) -> list[Digest]:
        """Digests of manifests that refer to ``subject``: by the API, else by fallback tag."""
        self._require_trust()
        return self._referrers.find(subject, artifact_type)

    def tags(self) -> Iterator[str]:
        """Yield the tags there are; NotFoundError where there is no such repository."""
        self._require_trust()
        url: str | None = self._endpoint.tags()
        for _ in range(_MAX_PAGES):
            page = url
            if page is None:
                return
            names, url = self._session.repeating(lambda page=page: self._tags(page))  # type: ignore[misc]
            yield from names

    def _tags(self, url: str) -> tuple[list[str], str | None]:
        with self._session.send(Request("GET", url), self._pull) as exchange:
            response = exchange.response
            if response.status != 200:
                raise self._session.failure(response, f"listing the tags of {self.name}")
            data = self._whole(response, MAX_MANIFEST, f"the list of tags of {self.name}")
            following = next_page(exchange.url, response.headers)
        try:
            return msgspec.json.decode(data, type=_Tags).tags or [], following
        except msgspec.MsgspecError:
            raise RemoteProtocolError(f"the list of tags of {self.name} is no JSON list") from None

    def has_blob(self, digest: Digest, /) -> bool:
        """Whether the blob is there already."""
        return self._session.repeating(lambda: blob_exists(self._session, digest))

    def put_blob(
        self, digest: Digest, source: bytes | Path, /, *, progress: Progress = no_progress
    ) -> bool:
        """Store a blob unless it exists; returns whether bytes were sent.

        ``progress`` hears of bytes sent, each once; of none where the blob exists.
        """
        if self.has_blob(digest):
            return False
        BlobUpload(self._session, digest, chunk_size=self._chunk_size).push(source, progress)
        return True

    def put_growing(self, blob: GrowingBlob, /) -> None:
        """Send a blob while it is made. One attempt."""
        push_growing(self._session, blob)

    def mount_blob(self, digest: Digest, /, *, from_repository: str) -> bool:
        """Take a blob from another repository of this registry without sending it.

        False where the registry does not: send it with `put_blob`.
        """
        return self._session.repeating(lambda: mount_blob(self._session, digest, from_repository))

    def take_blob(self, digest: Digest, place: Repository, /) -> bool:
        """Mount a blob of another repository of this registry; False where that cannot be."""
        if not isinstance(place, RegistryRepository) or place._host != self._host:
            return False
        return self.mount_blob(digest, from_repository=place._endpoint.repository)

    def put_manifest(self, manifest: ManifestBlob, /, *, tag: str | None = None) -> None:
        """Store a manifest; keep the fallback list of referrers where there is no API for it."""
        if len(manifest.data) > MAX_MANIFEST:
            raise FormatError(f"manifest {manifest.digest} is over {MAX_MANIFEST} bytes")
        if Digest.of(manifest.data) != manifest.digest:
            raise FormatError(f"manifest {manifest.digest} has another digest", field="digest")
        subject = subject_of(manifest.data)
        served = self._put(manifest, tag or manifest.digest)
        if subject is not None and served != str(subject):
            self._referrers.add(subject, manifest)

    def _put(self, manifest: ManifestBlob, reference: str | Digest) -> str:
        """Store one manifest; return the registry's ``OCI-Subject`` header, or nothing."""

        def put() -> str:
            request = Request(
                "PUT",
                self._endpoint.manifest(reference),
                {"Content-Type": manifest.media_type},
                body=manifest.data,
                length=len(manifest.data),
            )
            with self._session.send(request, self._session.scopes("pull", "push")) as exchange:
                if exchange.response.status not in {200, 201, 202}:
                    raise self._session.failure(
                        exchange.response, f"pushing manifest {self.name}:{reference}"
                    )
                return exchange.response.headers.get("oci-subject", "").strip()

        return self._session.repeating(put)


def _skip(response: Response, count: int, what: str) -> None:
    scratch = memoryview(bytearray(min(count, _SKIP_PIECE)))
    while count:
        got = response.readinto(scratch[: min(count, _SKIP_PIECE)])
        if got == 0:
            raise FormatError(f"{what} is shorter than the range asked for", field="range")
        count -= got
