"""An OCI image layout directory as a repository (image-spec image-layout.md).

Blobs are written whole or not at all; ``index.json`` changes under a lock, so that several writers
lose nothing of each other's.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from pagein.errors import FormatError, NotFoundError, PageinError, UsageError
from pagein.format.manifest import MAX_MANIFEST
from pagein.format.media import OPTIMIZED_FROM
from pagein.store.atomic import replacing, write_all, write_durably
from pagein.store.listing import MAX_LISTING, Listing, manifest_blob, referring
from pagein.store.repository import ManifestBlob, Progress, no_progress
from pagein.store.verified import read_verified, verified_reader
from pagein.types import Buffer, ByteRange, Digest

_PIECE: Final = 1 << 20


class LayoutRepository:
    """Reads and writes a layout; the folder is created at the first write.

    Where the disk does not let us, that is a PageinError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        """``oci:`` and the path."""
        return f"oci:{self._path}"

    def _blob(self, digest: Digest) -> Path:
        return self._path / "blobs" / "sha256" / digest.hex

    def _listing(self) -> Listing:
        try:
            with (self._path / "index.json").open("rb") as stream:
                data = stream.read(MAX_LISTING + 1)
        except FileNotFoundError:
            raise NotFoundError(
                f"{self._path} is not an OCI layout: it has no index.json"
            ) from None
        except NotADirectoryError:
            raise UsageError(f"{self._path} is not a directory", hint="oci-archive:FILE?") from None
        except OSError as error:
            raise self._refused("read", error) from None
        return Listing.parse(data, str(self._path))

    def _refused(self, what: str, error: OSError) -> PageinError:
        return PageinError(f"cannot {what} {self._path}: {error.strerror or error}")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except FileExistsError:  # what should be a folder is a file
            raise UsageError(f"{self._path} is not an OCI layout") from None
        except NotADirectoryError:
            raise UsageError(f"{self._path} is not a directory") from None
        except OSError as error:
            raise self._refused("write to", error) from None

    def manifest(self, reference: str | Digest, /) -> ManifestBlob:
        """Return the manifest under a tag or a digest; the last entry of a tag wins."""
        if isinstance(reference, Digest):
            return manifest_blob(reference, self.read_blob(reference, limit=MAX_MANIFEST))
        entry = self._listing().tagged(reference)
        digest = Digest.parse(entry["digest"])
        data = self.read_blob(digest, limit=MAX_MANIFEST)
        return manifest_blob(digest, data, str(entry.get("mediaType") or ""))

    def only_manifest(self) -> ManifestBlob:
        """Return the one image of a layout that is named without a tag. Raises UsageError."""
        return self.manifest(self._listing().only())

    def _open(self, digest: Digest) -> BinaryIO:
        try:
            return self._blob(digest).open("rb")
        except FileNotFoundError:
            raise NotFoundError(f"no blob {digest} in {self._path}") from None
        except OSError as error:
            raise self._refused("read", error) from None

    def read_blob(self, digest: Digest, /, *, limit: int) -> bytes:
        """Return a whole blob of at most ``limit`` bytes."""
        with self._open(digest) as stream:
            return read_verified(stream, digest, limit=limit, place=str(self._path))

    @contextlib.contextmanager
    def open_blob(self, digest: Digest, /, *, size: int | None = None) -> Iterator[BinaryIO]:
        """Stream a blob; its end is reached only if digest and size are right."""
        with self._open(digest) as stream:
            yield verified_reader(stream, digest, size)

    def read_range(self, digest: Digest, span: ByteRange, /) -> Buffer:
        """Return exactly ``span.length`` bytes, unverified."""
        with self._open(digest) as stream:
            try:
                data = os.pread(stream.fileno(), span.length, span.start)
            except OSError as error:
                raise self._refused("read", error) from None
        if len(data) != span.length:
            raise FormatError(f"blob {digest} ends before byte {span.stop}", field="size")
        return data

    def referrers(self, subject: Digest, /, *, artifact_type: str) -> list[Digest]:
        """Digests of the manifests in index.json whose subject is ``subject``, newest last, but
        optimized ones behind all others."""
        try:
            candidates = self._listing().artifacts(artifact_type)
        except NotFoundError:
            return []
        manifests = {one: self.read_blob(one, limit=MAX_MANIFEST) for one in candidates}
        return referring(manifests, subject)

    def tags(self) -> Iterator[str]:
        """Yield the tags there are, in order of index.json."""
        return self._listing().tags()

    def has_blob(self, digest: Digest, /) -> bool:
        """Whether the blob is there already."""
        return self._blob(digest).is_file()

    def put_blob(
        self, digest: Digest, source: bytes | Path, /, *, progress: Progress = no_progress
    ) -> bool:
        """Store a blob unless it exists. Raises FormatError if the bytes are not the digest's."""
        with self._writing():
            self._create()
            return not self.has_blob(digest) and self._store(digest, source, progress)

    def _store(self, digest: Digest, source: bytes | Path, progress: Progress) -> bool:
        hasher = hashlib.sha256()
        with contextlib.ExitStack() as owned:
            stream = owned.enter_context(
                io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
            )
            target = owned.enter_context(replacing(self._blob(digest), mode=0o644))
            while piece := stream.read(_PIECE):
                hasher.update(piece)
                write_all(target, piece)
                progress(len(piece))
            if hasher.hexdigest() != digest.hex:
                raise FormatError(f"the bytes are not those of {digest}", field="digest")
        return True

    def put_manifest(self, manifest: ManifestBlob, /, *, tag: str | None = None) -> None:
        """Store a manifest, and list it in index.json: under a tag, or without a name."""
        self.put_blob(manifest.digest, manifest.data)
        document = json.loads(manifest.data)
        entry: dict[str, Any] = {
            "mediaType": manifest.media_type,
            "digest": str(manifest.digest),
            "size": len(manifest.data),
        }
        if document.get("artifactType"):
            entry["artifactType"] = document["artifactType"]
        if plain := (document.get("annotations") or {}).get(OPTIMIZED_FROM):
            entry["annotations"] = {OPTIMIZED_FROM: plain}
        with self._writing(), self._locked():
            self._write_listing(self._listing().adding(entry, tag=tag))

    def _write_listing(self, listing: Listing) -> None:
        write_durably(self._path / "index.json", listing.write(), mode=0o644)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _create(self) -> None:
        (self._path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        if (self._path / "index.json").exists():
            return
        with self._locked():
            if not (self._path / "index.json").exists():
                write_durably(
                    self._path / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}', mode=0o644
                )
                self._write_listing(Listing((), str(self._path)))
