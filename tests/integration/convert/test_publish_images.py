"""From a reference to what a registry's user finds: tags, image indexes, platforms."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from layout_images import Layout, file, noise, tar

from pagein.build.publish import Published, publish
from pagein.build.report import ConvertOptions
from pagein.errors import NotFoundError, UsageError
from pagein.format.platforms import Platform
from pagein.store.layout import LayoutRepository

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")
ARTIFACT = "application/vnd.pagein.image.v1"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "layout")
    made.image("v1", [tar([file("x", noise(1, 9000))])])
    return made


def run(layout: Layout, reference: str = "v1", **options: Any) -> Published:
    repository = LayoutRepository(layout.path)
    return publish(
        repository,
        reference,
        repository,
        ConvertOptions(sector_size=256 << 10, jobs=1, scratch=layout.path.parent / "scratch"),
        **options,
    )


def document(layout: Layout, reference: str) -> tuple[str, dict[str, Any]]:
    data = LayoutRepository(layout.path).manifest(reference).data
    return f"sha256:{hashlib.sha256(data).hexdigest()}", json.loads(data)


def two_platforms(layout: Layout) -> list[dict[str, Any]]:
    """Tag ``multi``: an index of two images and an attestation."""
    entries = []
    for number, architecture in enumerate(("amd64", "arm64")):
        layout.image(f"one-{architecture}", [tar([file("x", noise(number, 9000))])])
        digest, manifest = document(layout, f"one-{architecture}")
        entries.append(
            {
                "mediaType": manifest["mediaType"],
                "digest": digest,
                "size": (layout.path / "blobs/sha256" / digest[7:]).stat().st_size,
                "platform": {"os": "linux", "architecture": architecture},
            }
        )
    attestation = {**entries[0], "platform": {"os": "unknown", "architecture": "unknown"}}
    media_type = "application/vnd.oci.image.index.v1+json"
    data = json.dumps(
        {"schemaVersion": 2, "mediaType": media_type, "manifests": [*entries, attestation]}
    ).encode()
    top = json.loads((layout.path / "index.json").read_text())
    top["manifests"].append(
        {
            "mediaType": media_type,
            "digest": layout.blob(data),
            "size": len(data),
            "annotations": {"org.opencontainers.image.ref.name": "multi"},
        }
    )
    (layout.path / "index.json").write_text(json.dumps(top))
    return entries


def test_the_artifact_points_back_to_its_source_and_the_source_is_not_touched(
    layout: Layout,
) -> None:
    before = document(layout, "v1")
    done = run(layout, tag="v1-lazy").images[0].converted
    digest, artifact = document(layout, "v1-lazy")
    assert digest == str(done.artifact)
    assert artifact["artifactType"] == ARTIFACT
    assert artifact["subject"]["digest"] == before[0]
    assert artifact["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    parts = [str(done.index), *(str(pack.digest) for pack in done.packs)]
    assert [layer["digest"] for layer in artifact["layers"]] == parts
    for layer in (artifact["config"], *artifact["layers"]):
        stored = layout.path / "blobs/sha256" / layer["digest"][7:]
        assert stored.stat().st_size == layer["size"]
    assert document(layout, "v1") == before


def test_binding_makes_the_tag_an_index_of_the_source_and_then_the_artifact(
    layout: Layout,
) -> None:
    source, _ = document(layout, "v1")
    done = run(layout, bind="v1")
    digest, index = document(layout, "v1")
    assert digest == str(done.bound)
    first, second = index["manifests"]
    assert first["digest"] == source
    assert first["platform"] == {"os": "linux", "architecture": "amd64"}
    assert second["digest"] == str(done.images[0].converted.artifact)
    assert second["platform"] == {"os": "unknown", "architecture": "unknown"}
    assert source in second["annotations"].values()


def test_binding_again_changes_nothing(layout: Layout) -> None:
    first = run(layout, bind="v1")
    assert run(layout, bind="v1").bound == first.bound


def test_a_tag_that_moved_meanwhile_is_not_rewritten(layout: Layout) -> None:
    layout.image("v2", [tar([file("x", b"other")])])
    before = document(layout, "v2")
    with pytest.raises(UsageError, match="cannot bind to v2"):
        run(layout, "v1", bind="v2")
    assert document(layout, "v2") == before


def test_each_image_of_an_index_is_converted_and_bound_and_attestations_are_kept(
    layout: Layout,
) -> None:
    entries = two_platforms(layout)
    done = run(layout, "multi", bind="multi")
    assert [image.platform for image in done.images] == [AMD64, ARM64]
    _, index = document(layout, "multi")
    assert [one["digest"] for one in index["manifests"][:3]] == [
        entries[0]["digest"],
        entries[1]["digest"],
        entries[0]["digest"],
    ]
    assert [one["digest"] for one in index["manifests"][3:]] == [
        str(image.converted.artifact) for image in done.images
    ]


def test_a_platform_is_chosen_from_an_index(layout: Layout) -> None:
    entries = two_platforms(layout)
    done = run(layout, "multi", platform=ARM64)
    assert [str(image.source) for image in done.images] == [entries[1]["digest"]]


def test_a_platform_that_is_not_there_is_named_with_those_that_are(layout: Layout) -> None:
    two_platforms(layout)
    with pytest.raises(NotFoundError, match="there are: linux/amd64, linux/arm64"):
        run(layout, "multi", platform=Platform("linux", "s390x"))
    with pytest.raises(NotFoundError, match="is for linux/amd64, not linux/arm64"):
        run(layout, "v1", platform=ARM64)


def test_one_tag_cannot_name_two_artifacts(layout: Layout) -> None:
    two_platforms(layout)
    with pytest.raises(UsageError, match="artifacts of 2 images"):
        run(layout, "multi", tag="lazy")


def test_what_is_converted_already_is_not_converted_again(layout: Layout) -> None:
    run(layout, tag="lazy")
    with pytest.raises(UsageError, match="is converted already"):
        run(layout, "lazy")
