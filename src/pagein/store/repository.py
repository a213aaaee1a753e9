"""A place that holds manifests and blobs by digest: a registry repository, an OCI layout, an
archive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from pagein.types import Buffer, ByteRange, Digest

Progress = Callable[[int], None]
"""Called with the number of bytes done since the last call, from any thread."""


def no_progress(count: int, /) -> None:
    """Report to nobody."""
    del count


@dataclass(frozen=True, slots=True)
class ManifestBlob:
    """A manifest or image index as stored: exact bytes, their digest, and the media type."""

    media_type: str
    digest: Digest
    data: bytes


class Repository(Protocol):
    """Reads manifests and blobs. Safe to call from any thread.

    Everything returned was checked against its digest, except ``read_range``: the caller
    verifies ranges.
    Raises NotFoundError, RemoteError, FormatError. ``name`` is for messages and metrics and
    holds no secret.
    """

    @property
    def name(self) -> str:
        """How errors and metrics call this place."""
        ...

    def manifest(self, reference: str | Digest, /) -> ManifestBlob:
        """Return the manifest under a tag or a digest. At most 4 MiB (OCI distribution spec)."""
        ...

    def read_blob(self, digest: Digest, /, *, limit: int) -> bytes:
        """Return a whole blob of at most ``limit`` bytes."""
        ...

    def open_blob(
        self, digest: Digest, /, *, size: int | None = None
    ) -> AbstractContextManager[BinaryIO]:
        """Stream a blob. Reading past the last byte raises FormatError if the digest or size is
        wrong."""
        ...

    def read_range(self, digest: Digest, span: ByteRange, /) -> Buffer:
        """Return exactly ``span.length`` bytes of a blob, unverified."""
        ...

    def referrers(self, subject: Digest, /, *, artifact_type: str) -> list[Digest]:
        """Digests of manifests whose ``subject`` is ``subject``, newest last; empty if none.

        Those with the annotation `OPTIMIZED_FROM` come behind all others.
        """
        ...

    def tags(self) -> Iterator[str]:
        """Yield the tags there are."""
        ...


@runtime_checkable
class RangeStream(Protocol):
    """A place far away, whose bytes can be used before the last of them has come."""

    def read_ranges(self, digest: Digest, spans: Sequence[ByteRange], /) -> Iterator[Buffer]:
        """Yield the bytes of ranges that touch each other, each as soon as it is here.

        Unverified; one request and one attempt for all of them.
        """
        ...


@runtime_checkable
class SingleImage(Protocol):
    """A place that can be named without a tag, where it holds one image only."""

    def only_manifest(self) -> ManifestBlob:
        """Return its manifest. Raises UsageError where there are several, NotFoundError for
        none."""
        ...


class GrowingBlob(Protocol):
    """A blob that is being made. Safe to read from one thread while another one makes it.

    Both methods wait, and raise what they like where the blob will never be whole.
    """

    def read(self, offset: int, size: int, /) -> bytes:
        """Return up to ``size`` bytes from ``offset``, once there are any; none at the end."""
        ...

    def digest(self) -> Digest:
        """Return the digest, once the blob is whole."""
        ...


@runtime_checkable
class GrowingTaker(Protocol):
    """A place that takes a blob before its digest is known."""

    def put_growing(self, blob: GrowingBlob, /) -> None:
        """Store a blob as it is made: all of it, or nothing. One attempt; does not ask first
        whether it exists. Raises NotFoundError, RemoteError: store it whole instead."""
        ...


@runtime_checkable
class BlobTaker(Protocol):
    """A place that may take a blob from another one without its bytes passing through here."""

    def take_blob(self, digest: Digest, place: Repository, /) -> bool:
        """Take a blob that ``place`` holds; False where that cannot be: store it instead.

        Raises NotFoundError, RemoteError.
        """
        ...


class WritableRepository(Repository, Protocol):
    """A repository that can be pushed to. Every write is whole or absent."""

    def has_blob(self, digest: Digest, /) -> bool:
        """Whether the blob is there already."""
        ...

    def put_blob(
        self, digest: Digest, source: bytes | Path, /, *, progress: Progress = no_progress
    ) -> bool:
        """Store a blob unless it exists; returns whether bytes were sent."""
        ...

    def put_manifest(self, manifest: ManifestBlob, /, *, tag: str | None = None) -> None:
        """Store a manifest, under its digest or also under a tag.

        Where the manifest has a ``subject`` and the place has no referrers API, the
        ``sha256-<hex>`` fallback tag is
        updated too.
        """
        ...
