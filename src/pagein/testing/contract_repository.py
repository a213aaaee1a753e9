"""What every `Repository` must do, as tests to subclass.

A read-only kind overrides the fixture ``filled``: a repository that holds `BLOB`, `CONFIG`,
`SUBJECT` (tag ``v1``) and `ARTIFACT`, which refers to `SUBJECT`. A writable kind subclasses
`WritableRepositoryContract` and overrides ``repository``: an empty one.
"""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from pagein.errors import FormatError, NotFoundError, PageinError
from pagein.store.repository import ManifestBlob, Repository, WritableRepository
from pagein.types import ByteRange, Digest
from pagein.wire.registry import OCI_INDEX, OCI_MANIFEST

ARTIFACT_TYPE = "application/vnd.pagein.test.v1"
BLOB = random.Random(7).randbytes(3 << 20)  # noqa: S311 bytes, not a secret
CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
ABSENT = Digest.of(b"nobody stored this")


def descriptor(data: bytes, media_type: str) -> dict[str, Any]:
    """Describe bytes as a manifest does."""
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data)}


def manifest_of(**more: Any) -> ManifestBlob:
    """Make a manifest of `CONFIG` and `BLOB`, with further fields."""
    value = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(CONFIG, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(BLOB, "application/vnd.oci.image.layer.v1.tar")],
        **more,
    }
    data = json.dumps(value, indent=3).encode()
    return ManifestBlob(OCI_MANIFEST, Digest.of(data), data)


def artifact_for(subject: ManifestBlob, **more: Any) -> ManifestBlob:
    """Make an artifact that refers to ``subject``."""
    pointer = descriptor(subject.data, subject.media_type)
    return manifest_of(**{"artifactType": ARTIFACT_TYPE, "subject": pointer, **more})


SUBJECT = manifest_of()
ARTIFACT = artifact_for(SUBJECT, annotations={"org.example.k": "v"})


def fill(repository: WritableRepository) -> None:
    """Store the sample content."""
    for data in (BLOB, CONFIG):
        repository.put_blob(Digest.of(data), data)
    repository.put_manifest(SUBJECT, tag="v1")
    repository.put_manifest(ARTIFACT)


class RepositoryContract:
    """Reading."""

    @pytest.fixture
    def filled(self) -> Repository:
        """Return a repository with the sample content."""
        raise NotImplementedError

    def test_a_manifest_comes_back_byte_for_byte_by_tag_and_by_digest(
        self, filled: Repository
    ) -> None:
        """Exact bytes, their digest, their type."""
        assert filled.manifest("v1") == SUBJECT
        assert filled.manifest(SUBJECT.digest) == SUBJECT
        assert filled.manifest(ARTIFACT.digest) == ARTIFACT

    def test_an_absent_manifest_is_not_found(self, filled: Repository) -> None:
        """By tag and by digest."""
        with pytest.raises(NotFoundError):
            filled.manifest("no-such-tag")
        with pytest.raises(NotFoundError):
            filled.manifest(ABSENT)

    def test_a_blob_is_read_whole_within_its_limit(self, filled: Repository) -> None:
        """A limit of exactly its size is enough."""
        assert filled.read_blob(Digest.of(BLOB), limit=len(BLOB)) == BLOB

    def test_a_blob_over_the_limit_is_refused(self, filled: Repository) -> None:
        """One byte less is not."""
        with pytest.raises(FormatError):
            filled.read_blob(Digest.of(BLOB), limit=len(BLOB) - 1)

    def test_an_absent_blob_is_not_found(self, filled: Repository) -> None:
        """However it is asked for."""
        with pytest.raises(NotFoundError):
            filled.read_blob(ABSENT, limit=100)
        with pytest.raises(NotFoundError):
            filled.read_range(ABSENT, ByteRange(0, 1))
        with pytest.raises(NotFoundError), filled.open_blob(ABSENT) as stream:
            stream.read(1)

    def test_a_blob_is_streamed(self, filled: Repository) -> None:
        """In pieces of any size, and with the right size told."""
        parts = []
        with filled.open_blob(Digest.of(BLOB), size=len(BLOB)) as stream:
            while piece := stream.read(100_003):
                parts.append(piece)
        assert b"".join(parts) == BLOB

    def test_a_stream_may_be_left_early(self, filled: Repository) -> None:
        """The next read is none the worse."""
        with filled.open_blob(Digest.of(BLOB)) as stream:
            assert stream.read(10) == BLOB[:10]
        assert filled.read_blob(Digest.of(CONFIG), limit=1000) == CONFIG

    @pytest.mark.parametrize("wrong", [-1, 1])
    def test_a_stream_of_another_size_than_told_fails(self, filled: Repository, wrong: int) -> None:
        """At its end at the latest."""

        def read_all() -> None:
            with filled.open_blob(Digest.of(BLOB), size=len(BLOB) + wrong) as stream:
                while stream.read(1 << 20):
                    pass

        with pytest.raises(FormatError):
            read_all()

    @pytest.mark.parametrize(
        ("start", "length"),
        [(0, 1), (0, len(BLOB)), (1, 4096), (len(BLOB) - 1, 1), (1_000_003, 1_048_576)],
    )
    def test_a_range_is_exact(self, filled: Repository, start: int, length: int) -> None:
        """First byte, last byte, everything, and something in between."""
        got = filled.read_range(Digest.of(BLOB), ByteRange(start, length))
        assert bytes(got) == BLOB[start : start + length]

    @pytest.mark.parametrize("start", [len(BLOB) - 1, len(BLOB), len(BLOB) + 10_000])
    def test_a_range_past_the_end_fails(self, filled: Repository, start: int) -> None:
        """It is never cut short, and it is no passing failure."""
        with pytest.raises(PageinError) as caught:
            filled.read_range(Digest.of(BLOB), ByteRange(start, 2))
        assert not caught.value.transient

    def test_ranges_may_be_read_by_many_threads(self, filled: Repository) -> None:
        """Each gets its own bytes."""
        wrong: list[int] = []

        def read(start: int) -> None:
            span = ByteRange(start, 65_536)
            if bytes(filled.read_range(Digest.of(BLOB), span)) != BLOB[start : span.stop]:
                wrong.append(start)

        threads = [threading.Thread(target=read, args=(i * 100_000,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_referrers_are_found_by_artifact_type(self, filled: Repository) -> None:
        """Others are left out; none is an empty list."""
        assert filled.referrers(SUBJECT.digest, artifact_type=ARTIFACT_TYPE) == [ARTIFACT.digest]
        assert filled.referrers(SUBJECT.digest, artifact_type="application/other") == []
        assert filled.referrers(ABSENT, artifact_type=ARTIFACT_TYPE) == []

    def test_tags_are_listed(self, filled: Repository) -> None:
        """A fallback tag of referrers may be among them."""
        names = [name for name in filled.tags() if not name.startswith("sha256-")]
        assert names == ["v1"]

    def test_its_name_says_where_it_is(self, filled: Repository) -> None:
        """For messages."""
        assert filled.name


class WritableRepositoryContract(RepositoryContract):
    """Reading and writing."""

    @pytest.fixture
    def repository(self) -> WritableRepository:
        """Return an empty repository."""
        raise NotImplementedError

    @pytest.fixture
    def filled(self, repository: WritableRepository) -> Repository:
        """Fill the empty one."""
        fill(repository)
        return repository

    def test_a_blob_is_sent_once(self, repository: WritableRepository) -> None:
        """The second time it is there already."""
        told: list[int] = []
        digest = Digest.of(BLOB)
        assert not repository.has_blob(digest)
        assert repository.put_blob(digest, BLOB, progress=told.append)
        assert sum(told) == len(BLOB)
        assert repository.has_blob(digest)
        assert not repository.put_blob(digest, BLOB)

    def test_a_blob_is_pushed_from_a_file(
        self, repository: WritableRepository, tmp_path: Path
    ) -> None:
        """Also an empty one."""
        for data in (BLOB, b""):
            path = tmp_path / "blob"
            path.write_bytes(data)
            assert repository.put_blob(Digest.of(data), path)
            assert repository.read_blob(Digest.of(data), limit=len(BLOB)) == data

    def test_a_blob_with_another_digest_is_not_stored(self, repository: WritableRepository) -> None:
        """And leaves nothing behind."""
        with pytest.raises(PageinError):
            repository.put_blob(ABSENT, b"something else")
        assert not repository.has_blob(ABSENT)

    def test_a_tag_moves(self, repository: WritableRepository) -> None:
        """The manifest it named before stays, by digest."""
        fill(repository)
        second = manifest_of(annotations={"n": "2"})
        repository.put_manifest(second, tag="v1")
        assert repository.manifest("v1") == second
        assert repository.manifest(SUBJECT.digest) == SUBJECT

    def test_an_index_is_a_manifest_too(self, repository: WritableRepository) -> None:
        """With its own media type."""
        fill(repository)
        entry = descriptor(SUBJECT.data, SUBJECT.media_type)
        value = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
        data = json.dumps(value).encode()
        index = ManifestBlob(OCI_INDEX, Digest.of(data), data)
        repository.put_manifest(index, tag="all")
        assert repository.manifest("all") == index

    def test_a_second_referrer_does_not_hide_the_first(
        self, repository: WritableRepository
    ) -> None:
        """Newest last; storing one again changes nothing."""
        fill(repository)
        second = artifact_for(SUBJECT, annotations={"n": "2"})
        repository.put_manifest(second)
        repository.put_manifest(second, tag="named")
        found = repository.referrers(SUBJECT.digest, artifact_type=ARTIFACT_TYPE)
        assert found == [ARTIFACT.digest, second.digest]
