"""Manifests as registries hold them, and as an attacker would write them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from pagein.errors import FormatError
from pagein.format.manifest import (
    EMPTY_DIGEST,
    Artifact,
    Descriptor,
    ImageIndex,
    ImageManifest,
    bind_index,
    bound_descriptor,
    build_artifact,
    parse_artifact,
    parse_config,
    parse_manifest,
    serves,
)
from pagein.format.platforms import Platform
from pagein.types import Digest

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."
PAGEIN = "application/vnd.pagein."
DIGEST = "sha256:" + "ab" * 32


def pointer(media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": DIGEST, "size": 7, **more}


def as_json(document: dict[str, Any]) -> bytes:
    """What is None is left out."""
    return json.dumps({k: v for k, v in document.items() if v is not None}).encode()


def image(*layers: str, config: str = OCI + "config.v1+json", **more: Any) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI + "manifest.v1+json",
        "config": pointer(config),
        "layers": [pointer(layer) for layer in layers or (OCI + "layer.v1.tar+gzip",)],
        **more,
    }
    return as_json(document)


def index(*entries: dict[str, Any], **more: Any) -> bytes:
    document = {"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": entries}
    return as_json({**document, **more})


@pytest.mark.parametrize(
    "layer",
    [
        OCI + "layer.v1.tar",
        OCI + "layer.v1.tar+gzip",
        OCI + "layer.v1.tar+zstd",
        DOCKER + "image.rootfs.diff.tar.gzip",
        DOCKER + "image.rootfs.diff.tar",
    ],
)
def test_an_image_is_read_with_layers_of_every_known_type(layer: str) -> None:
    found = parse_manifest(image(layer))
    assert isinstance(found, ImageManifest)
    assert [one.media_type for one in found.layers] == [layer]
    assert found.layers[0].digest.hex == "ab" * 32


def test_a_docker_manifest_is_an_image_too() -> None:
    data = image(
        DOCKER + "image.rootfs.diff.tar.gzip",
        config=DOCKER + "container.image.v1+json",
        mediaType=DOCKER + "distribution.manifest.v2+json",
    )
    assert isinstance(parse_manifest(data), ImageManifest)


@pytest.mark.parametrize("media_type", [OCI + "index.v1+json", None])
def test_an_image_index_is_known_by_its_form(media_type: str | None) -> None:
    data = index(pointer(OCI + "manifest.v1+json"), mediaType=media_type)
    assert isinstance(parse_manifest(data, OCI + "index.v1+json"), ImageIndex)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"schemaVersion":1,"fsLayers":[]}', "schema 1"),
        (image(mediaType=DOCKER + "distribution.manifest.v1+json"), "schema 1"),
        (image(schemaVersion=3), "schemaVersion is not 2"),
        (b"{}", "schemaVersion is not 2"),
        (b'{"schemaVersion":2}', "neither"),
        (image(manifests=[]), "neither"),
        (image(mediaType="text/plain"), "unknown type 'text/plain'"),
        (index(mediaType=OCI + "manifest.v1+json"), "unknown type"),
        (image("application/x-tar"), "unknown type 'application/x-tar'"),
        (image(OCI + "layer.v1.tar+gzip+encrypted"), "unknown type"),
        (image(OCI + "layer.nondistributable.v1.tar+gzip"), "foreign"),
        (image(DOCKER + "image.rootfs.foreign.diff.tar.gzip"), "foreign"),
        (image(config="application/vnd.cncf.helm.config.v1+json"), "not an image but an artifact"),
        (
            image(config=OCI.replace("image.", "empty.") + "v1+json", artifactType="text/sbom"),
            "artifact of type 'text/sbom'",
        ),
        (b"[]", "not what it should be"),
        (b"null", "not what it should be"),
        (b"no json", "not what it should be"),
        (b"\xff\xfe{\0}\0", "not what it should be"),
        (b'{"schemaVersion":2,"schemaVersion":2}', "key appears twice"),
        (image().replace(b'"size": 7', b'"size": 7, "size": 8'), "key appears twice"),
        (image().replace(b'"size": 7', b'"size": -1'), "not what it should be"),
        (image().replace(b'"size": 7', b'"size": 1e400'), "not what it should be"),
        (image().replace(b'"size": 7', b'"size": "7"'), "not what it should be"),
        (image().replace(b"sha256:", b"sha512:"), "not a sha256 digest"),
        (image().replace(b"abab", b"ABab"), "not a sha256 digest"),
        (image(layers=[pointer(OCI + "layer.v1.tar")] * 1025), "1025 layers"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[" * 100_000, "nested too deeply"),
        (b" " * ((4 << 20) + 1), "at most 4 MiB"),
    ],
)
def test_what_is_no_image_gets_one_line(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        parse_manifest(data)
    assert "\n" not in str(caught.value)


def test_the_type_that_a_place_named_counts_where_the_document_names_none() -> None:
    data = image(mediaType=None)
    assert isinstance(parse_manifest(data, OCI + "manifest.v1+json"), ImageManifest)
    with pytest.raises(FormatError, match="schema 1"):
        parse_manifest(data, DOCKER + "distribution.manifest.v1+prettyjws")


def test_fields_of_later_versions_are_passed_over() -> None:
    assert isinstance(parse_manifest(image(newField={"a": [1]})), ImageManifest)


def of_bytes(name: bytes, media_type: str, **more: Any) -> Descriptor:
    return Descriptor(media_type=media_type, digest=Digest.of(name), size=len(name), **more)


SOURCE = of_bytes(b"source", OCI + "manifest.v1+json", platform=Platform("linux", "arm64", "v8"))
INDEX = of_bytes(b"index", PAGEIN + "index.v1")
PACKS = [of_bytes(b"pack 0", PAGEIN + "pack.v1"), of_bytes(b"pack 1", PAGEIN + "pack.v1")]


def test_an_artifact_is_oci_1_1_with_an_empty_config_and_a_subject() -> None:
    data = build_artifact(subject=SOURCE, index=INDEX, packs=PACKS, annotations={"k": "v"})
    document = json.loads(data)
    assert document["schemaVersion"] == 2
    assert document["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert document["artifactType"] == "application/vnd.pagein.image.v1"
    assert document["config"] == {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": "sha256:" + hashlib.sha256(b"{}").hexdigest(),
        "size": 2,
    }
    assert [layer["mediaType"] for layer in document["layers"]] == [
        "application/vnd.pagein.index.v1",
        "application/vnd.pagein.pack.v1",
        "application/vnd.pagein.pack.v1",
    ]
    assert document["subject"]["digest"] == "sha256:" + hashlib.sha256(b"source").hexdigest()
    assert document["annotations"] == {"k": "v"}
    assert str(EMPTY_DIGEST) == document["config"]["digest"]


def test_an_artifact_comes_back() -> None:
    found = parse_artifact(build_artifact(subject=SOURCE, index=INDEX, packs=PACKS))
    assert found == Artifact(index=INDEX, packs=tuple(PACKS), subject=found.subject)
    assert found.subject is not None
    assert found.subject.digest == SOURCE.digest


def test_an_image_is_no_artifact() -> None:
    with pytest.raises(FormatError, match="not a pagein artifact"):
        parse_artifact(image())


@pytest.mark.parametrize(
    "layers",
    [
        [],
        [PAGEIN + "pack.v1"],
        [PAGEIN + "index.v1", PAGEIN + "index.v1"],
        [PAGEIN + "index.v2"],
        [PAGEIN + "index.v1", OCI + "layer.v1.tar"],
    ],
)
def test_an_artifact_of_another_shape_may_be_of_a_later_format(layers: list[str]) -> None:
    data = image(
        config="application/vnd.oci.empty.v1+json",
        artifactType=PAGEIN + "image.v1",
        layers=[pointer(layer) for layer in layers],
    )
    with pytest.raises(FormatError, match="one index and then packs") as caught:
        parse_manifest(data)
    assert "newer pagein" in str(caught.value.hint)


ENTRY = bound_descriptor(Digest.of(b"artifact"), 8, served=SOURCE.digest)


def bound(existing: ImageIndex | None, sources: list[Descriptor], entry: Descriptor) -> ImageIndex:
    found = parse_manifest(bind_index(existing, sources, entry))
    assert isinstance(found, ImageIndex)
    return found


def test_a_bound_index_lists_the_image_first_and_an_artifact_no_client_asks_for() -> None:
    found = bound(None, [SOURCE], ENTRY)
    assert [one.digest for one in found.manifests] == [SOURCE.digest, ENTRY.digest]
    assert found.manifests[0].platform == Platform("linux", "arm64", "v8")
    last = found.manifests[1]
    assert last.platform == Platform("unknown", "unknown")
    assert last.annotations == {"vnd.pagein.serves": str(SOURCE.digest)}
    assert serves(last) == SOURCE.digest
    assert serves(found.manifests[0]) is None


def test_binding_again_replaces_what_served_the_image_before() -> None:
    newer = bound_descriptor(Digest.of(b"newer"), 5, served=SOURCE.digest)
    found = bound(bound(None, [SOURCE], ENTRY), [SOURCE], newer)
    assert [one.digest for one in found.manifests] == [SOURCE.digest, newer.digest]


def test_binding_twice_the_same_gives_the_same_bytes() -> None:
    once = bind_index(None, [SOURCE], ENTRY)
    again = parse_manifest(once)
    assert isinstance(again, ImageIndex)
    assert bind_index(again, [SOURCE], ENTRY) == once


def test_binding_keeps_other_images_attestations_and_annotations() -> None:
    attestation = of_bytes(
        b"attestation",
        OCI + "manifest.v1+json",
        platform=Platform("unknown", "unknown"),
        annotations={"vnd.docker.reference.type": "attestation-manifest"},
    )
    other = of_bytes(b"other", OCI + "manifest.v1+json", platform=Platform("linux", "amd64"))
    elsewhere = bound_descriptor(Digest.of(b"for other"), 9, served=other.digest)
    before = ImageIndex(
        manifests=(SOURCE, other, attestation, elsewhere), annotations={"org.example": "kept"}
    )
    found = bound(before, [], ENTRY)
    assert [one.digest for one in found.manifests] == [
        one.digest for one in (SOURCE, other, attestation, elsewhere, ENTRY)
    ]
    assert found.manifests[2].annotations == attestation.annotations
    assert found.annotations == {"org.example": "kept"}


def test_a_configuration_says_what_to_run() -> None:
    config = parse_config(
        json.dumps(
            {
                "architecture": "arm64",
                "os": "linux",
                "variant": "v8",
                "config": {
                    "Entrypoint": ["/bin/app"],
                    "Cmd": None,
                    "Env": ["A=1"],
                    "WorkingDir": "/srv",
                    "User": "1000:1000",
                    "Labels": {"l": "1"},
                    "StopSignal": "SIGINT",
                },
                "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
                "history": [{"created_by": "RUN printf '\\u001b[0m[[[[{{{{'" * 20}],
            }
        ).encode()
    )
    assert config.platform == Platform("linux", "arm64", "v8")
    assert (config.entrypoint, config.cmd, config.env) == (("/bin/app",), (), ("A=1",))
    assert (config.working_dir, config.user, config.stop_signal) == ("/srv", "1000:1000", "SIGINT")
    assert config.labels == {"l": "1"}
    assert [str(one) for one in config.diff_ids] == [DIGEST]


@pytest.mark.parametrize("data", [b"{}", b'{"config":null}', b'{"rootfs":{"diff_ids":null}}'])
def test_a_bare_configuration_is_one_of_linux_on_amd64(data: bytes) -> None:
    assert parse_config(data).platform == Platform("linux", "amd64")


@pytest.mark.parametrize(
    "data", [b"[]", b'{"config":{"Env":"A=1"}}', b'{"rootfs":{"diff_ids":["x"]}}', b'{"os":1}']
)
def test_a_configuration_of_other_types_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_config(data)
