"""From a reference to an artifact, over HTTP: what is found, in what order, by which requests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pagein.daemon.config import Config, RegistryConfig
from pagein.daemon.images import Images
from pagein.daemon.paths import Paths
from pagein.daemon.wiring import Node
from pagein.errors import FormatError, NotFoundError
from pagein.format.index import Index, encode_index
from pagein.format.manifest import ImageIndex
from pagein.format.platforms import Platform
from pagein.store.registry import RegistryRepository
from pagein.store.repository import ManifestBlob
from pagein.store.resolve import load_index, platform_images, resolve
from pagein.testing.memory_repository import MemoryContent
from pagein.testing.registry import FakeRegistry
from pagein.transport.http import HttpTransport
from pagein.types import Digest, Encoding, ImageName, SectorRef

SECTOR = 256 << 10
AMD64 = Platform("linux", "amd64")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
PACK = b"p" * 500


class Sample:
    """A repository of the fake registry, and documents written into it by hand."""

    def __init__(self, registry: FakeRegistry, transport: HttpTransport) -> None:
        self.registry = registry
        self.content: MemoryContent = registry.content("team/app")
        self.repository = RegistryRepository(
            ImageName.parse(f"{registry.host}/team/app"), transport
        )

    def blob(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        digest = self.content.add_blob(data)
        return {"mediaType": media_type, "digest": str(digest), "size": len(data), **more}

    def image(self, name: str = "app", *, tag: str | None = None) -> ManifestBlob:
        config = json.dumps({"os": "linux", "architecture": "amd64", "author": name}).encode()
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.blob(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [self.blob(name.encode(), "application/vnd.oci.image.layer.v1.tar")],
        }
        return self.content.add_manifest(document, tag=tag)

    def artifact(
        self, subject: ManifestBlob, *, tag: str | None = None, note: str = "", **index: Any
    ) -> ManifestBlob:
        notes = {name: index.pop(name) for name in list(index) if name.startswith("vnd.")}
        blob = encode_index(small_index(**{"source": subject.digest, **index}))
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": "application/vnd.pagein.image.v1",
            "config": self.blob(b"{}", "application/vnd.oci.empty.v1+json"),
            "layers": [
                self.blob(blob, "application/vnd.pagein.index.v1"),
                self.blob(PACK, "application/vnd.pagein.pack.v1"),
            ],
            "subject": entry(subject),
            "annotations": {"note": note, **notes},
        }
        return self.content.add_manifest(document, tag=tag)

    def listing(self, *entries: dict[str, Any], tag: str | None = None) -> ManifestBlob:
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)}
        return self.content.add_manifest(document, tag=tag)

    def fetched(self) -> list[tuple[str, str]]:
        """The requests since the last call, without the probe of the API's version."""
        found = [(one.method, one.path) for one in self.registry.requests() if one.path != "/v2/"]
        self.registry.forget_requests()
        return found


def small_index(**more: Any) -> Index:
    ref = SectorRef(
        Digest.of(b"sector"),
        SECTOR,
        Encoding.ZSTD,
        more.pop("pack", Digest.of(PACK)),
        offset=more.pop("offset", 0),
        stored=len(PACK),
    )
    fields: dict[str, Any] = {"hot_sectors": 0, "sectors": (ref,), **more}
    return Index(SECTOR, b"M" * 4096, b"{}", **fields)


def entry(blob: ManifestBlob, platform: str | None = None, **more: Any) -> dict[str, Any]:
    found = {"mediaType": blob.media_type, "digest": str(blob.digest), "size": len(blob.data)}
    if platform:
        parts = platform.split("/")
        found["platform"] = dict(zip(("os", "architecture", "variant"), parts, strict=False))
    return {**found, **more}


def bound(artifact: ManifestBlob, served: ManifestBlob) -> dict[str, Any]:
    return entry(artifact, "unknown/unknown", annotations={"vnd.pagein.serves": str(served.digest)})


@pytest.fixture(scope="module")
def transport() -> Iterator[HttpTransport]:
    made = HttpTransport(timeout_s=10)
    yield made
    made.close()


@pytest.fixture(params=[True, False], ids=["api", "fallback-tag"])
def sample(request: pytest.FixtureRequest, transport: HttpTransport) -> Iterator[Sample]:
    with FakeRegistry(referrers_api=request.param) as registry:
        yield Sample(registry, transport)


def refer(sample: Sample, subject: ManifestBlob, *artifacts: ManifestBlob) -> None:
    """Make the referrers known where the registry has no API for them."""
    if not sample.registry.referrers_api:
        entries = [entry(one, artifactType="application/vnd.pagein.image.v1") for one in artifacts]
        sample.listing(*entries, tag=f"sha256-{subject.digest.hex}")


def test_by_its_digest_an_artifact_comes_up_with_two_fetches(sample: Sample) -> None:
    artifact = sample.artifact(sample.image())
    found = resolve(sample.repository, artifact.digest, AMD64)
    assert found.source is None
    assert found.artifact is not None
    index = load_index(sample.repository, found.artifact)
    assert len(index.sectors) == 1
    blob = json.loads(artifact.data)["layers"][0]["digest"]
    assert sample.fetched() == [
        ("GET", f"/v2/team/app/manifests/{artifact.digest}"),
        ("GET", f"/v2/team/app/blobs/{blob}"),
    ]


def test_an_artifact_is_found_by_its_own_tag_where_the_source_is_absent(sample: Sample) -> None:
    absent = ManifestBlob(MANIFEST, Digest.of(b"never pushed here"), b"")
    artifact = sample.artifact(absent, tag="app-lazy")
    found = resolve(sample.repository, "app-lazy", AMD64)
    assert found.artifact is not None
    assert found.artifact.digest == artifact.digest
    assert len(sample.fetched()) == 1


def test_a_bound_artifact_is_found_without_asking_for_referrers(sample: Sample) -> None:
    image = sample.image()
    artifact, referrer = sample.artifact(image), sample.artifact(image, note="a referrer")
    refer(sample, image, referrer)
    listing = sample.listing(entry(image, "linux/amd64"), bound(artifact, image), tag="v1")
    found = resolve(sample.repository, "v1", AMD64)
    assert found.source is not None
    assert found.source.blob == image
    assert found.artifact is not None
    assert found.artifact.digest == artifact.digest
    assert [path.rpartition("/")[2] for _, path in sample.fetched()] == [
        "v1",
        str(image.digest),
        str(artifact.digest),
    ]
    assert listing.digest != image.digest


def test_each_platform_has_an_artifact_of_its_own(sample: Sample) -> None:
    images = {name: sample.image(name) for name in ("amd64", "arm64")}
    artifacts = {name: sample.artifact(one) for name, one in images.items()}
    sample.listing(
        *(entry(one, f"linux/{name}") for name, one in images.items()),
        *(bound(artifacts[name], one) for name, one in images.items()),
        tag="v1",
    )
    for name in images:
        found = resolve(sample.repository, "v1", Platform("linux", name))
        assert found.artifact is not None
        assert found.artifact.digest == artifacts[name].digest


def test_a_referrer_is_found_last_and_the_newest_one_counts(sample: Sample) -> None:
    image = sample.image(tag="v1")
    older, newer = sample.artifact(image, note="1"), sample.artifact(image, note="2")
    refer(sample, image, older, newer)
    found = resolve(sample.repository, "v1", AMD64)
    assert found.artifact is not None
    assert found.artifact.digest == newer.digest
    assert len(sample.fetched()) in (3, 4)  # one more where the API is asked for in vain


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
def test_an_optimized_artifact_goes_before_plain_ones_in_whatever_order_they_are_listed(
    sample: Sample, order: tuple[int, ...]
) -> None:
    image = sample.image(tag="v1")
    optimized = {"vnd.pagein.optimized-from": f"sha256:{'0' * 64}"}
    made: dict[int, ManifestBlob] = {}
    for number in order:
        kind = optimized if number == 1 else {}
        made[number] = sample.artifact(image, note=str(number), **kind)
    if not sample.registry.referrers_api:
        entries = [
            entry(
                made[number],
                artifactType="application/vnd.pagein.image.v1",
                annotations=json.loads(made[number].data)["annotations"],
            )
            for number in order
        ]
        sample.listing(*entries, tag=f"sha256-{image.digest.hex}")
    found = resolve(sample.repository, "v1", AMD64)
    assert found.artifact is not None
    assert found.artifact.digest == made[1].digest
    assert len(sample.fetched()) in (3, 4)  # one more where the API is asked for in vain


def test_a_deleted_referrer_makes_room_for_an_older_one(sample: Sample) -> None:
    sample.registry.referrers_api = False  # the API forgets what was deleted; the tag does not
    image = sample.image(tag="v1")
    older, newer = sample.artifact(image, note="1"), sample.artifact(image, note="2")
    refer(sample, image, older, newer)
    del sample.content.manifests[newer.digest]
    found = resolve(sample.repository, "v1", AMD64)
    assert found.artifact is not None
    assert found.artifact.digest == older.digest


def test_an_image_without_an_artifact_is_found_alone(sample: Sample) -> None:
    image = sample.image(tag="v1")
    found = resolve(sample.repository, "v1", AMD64)
    assert found.source is not None
    assert (found.source.blob, found.artifact) == (image, None)


def test_who_wants_no_artifact_asks_for_none(sample: Sample) -> None:
    image = sample.image(tag="v1")
    refer(sample, image, sample.artifact(image))
    found = resolve(sample.repository, "v1", AMD64, want_artifact=False)
    assert found.artifact is None
    assert len(sample.fetched()) == 1


def test_an_artifact_of_another_image_is_refused(sample: Sample) -> None:
    image, other = sample.image("one"), sample.image("other")
    sample.listing(entry(image, "linux/amd64"), bound(sample.artifact(other), image), tag="v1")
    with pytest.raises(FormatError, match="made for another image"):
        resolve(sample.repository, "v1", AMD64)


def test_attestations_and_artifacts_are_never_chosen_as_an_image(sample: Sample) -> None:
    image = sample.image()
    attestation = sample.image("attestation")
    listing = sample.listing(
        entry(attestation, "unknown/unknown", annotations={"vnd.docker.reference.type": "x"}),
        bound(sample.artifact(image), image),
        entry(image, "linux/amd64"),
        tag="v1",
    )
    assert resolve(sample.repository, "v1", AMD64).source.blob == image  # type: ignore[union-attr]
    from pagein.format.manifest import parse_manifest

    parsed = parse_manifest(listing.data)
    assert isinstance(parsed, ImageIndex)
    assert [one.digest for one in platform_images(parsed)] == [image.digest]


def test_a_platform_that_is_not_there_is_named_with_those_that_are(sample: Sample) -> None:
    image = sample.image()
    sample.listing(entry(image, "linux/arm64"), entry(image, "linux/arm/v7"), tag="v1")
    with pytest.raises(NotFoundError, match="linux/s390x; there are: linux/arm/v7, linux/arm64"):
        resolve(sample.repository, "v1", Platform("linux", "s390x"))
    with pytest.raises(NotFoundError, match="there are: linux/arm/v7, linux/arm64"):
        resolve(sample.repository, "v1", Platform("linux", "arm", "v6"))


def test_an_index_in_an_index_is_refused(sample: Sample) -> None:
    inner = sample.listing(entry(sample.image(), "linux/amd64"))
    sample.listing(entry(inner, "linux/amd64"), tag="v1")
    with pytest.raises((FormatError, NotFoundError)):
        resolve(sample.repository, "v1", AMD64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": Digest.of(b"another manifest")}, "made from another image"),
        ({"pack": Digest.of(b"no such pack")}, "packs that the artifact does not list"),
        ({"offset": 1}, "behind its pack's end"),
        ({"offset": 1 << 61}, "behind its pack's end"),
    ],
)
def test_an_index_that_does_not_fit_its_artifact_is_refused(
    sample: Sample, change: dict[str, Any], message: str
) -> None:
    artifact = sample.artifact(sample.image(), **change)
    found = resolve(sample.repository, artifact.digest, AMD64)
    assert found.artifact is not None
    with pytest.raises(FormatError, match=message):
        load_index(sample.repository, found.artifact)


def test_an_index_that_is_said_to_be_huge_is_not_fetched(sample: Sample) -> None:
    document = json.loads(sample.artifact(sample.image()).data)
    document["layers"][0]["size"] = 10 << 30
    artifact = sample.content.add_manifest(document)
    found = resolve(sample.repository, artifact.digest, AMD64)
    sample.fetched()
    assert found.artifact is not None
    with pytest.raises(FormatError, match="index of 10737418240 bytes"):
        load_index(sample.repository, found.artifact)
    assert sample.fetched() == []


def test_an_index_that_is_longer_than_said_is_refused(sample: Sample) -> None:
    document = json.loads(sample.artifact(sample.image()).data)
    document["layers"][0]["size"] -= 1
    found = resolve(sample.repository, sample.content.add_manifest(document).digest, AMD64)
    assert found.artifact is not None
    with pytest.raises(FormatError):
        load_index(sample.repository, found.artifact)


def test_a_manifest_that_is_not_its_digest_is_refused(sample: Sample) -> None:
    image = sample.image(tag="v1")
    wrong = ManifestBlob(MANIFEST, image.digest, image.data + b" ")
    sample.content.manifests[image.digest] = wrong
    assert hashlib.sha256(wrong.data).hexdigest() != image.digest.hex
    with pytest.raises(FormatError):
        resolve(sample.repository, image.digest, AMD64)


def test_a_mirror_that_lacks_the_artifact_does_not_hide_it(
    sample: Sample, transport: HttpTransport, tmp_path: Path
) -> None:
    """A pull-through cache knows images, and often not what refers to them."""
    subject = sample.image(tag="v1")
    artifact = sample.artifact(subject)
    refer(sample, subject, artifact)
    with FakeRegistry() as mirror:
        Sample(mirror, transport).image(tag="v1")
        table = {sample.registry.host: RegistryConfig(mirrors=(mirror.host,))}
        config = Config(hosts_dir="", registry=table)
        images = Images(Node(Paths(tmp_path / "lib", tmp_path / "run"), config))
        name = ImageName.parse(f"{sample.registry.host}/team/app:v1")
        _, resolved = images.resolve(name, "linux/amd64")
        assert resolved.artifact is not None
        assert resolved.artifact.digest == artifact.digest
        assert mirror.requests(path="manifests/v1")
        # The source image, which the mirror has, is read there.
        mirror.forget_requests()
        images.place(name).manifest(subject.digest)
        assert len(mirror.requests(path=str(subject.digest))) == 1
