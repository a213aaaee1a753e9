"""Several writers of one layout, and what its index.json keeps."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from pagein.errors import FormatError, NotFoundError, PageinError, UsageError
from pagein.store.layout import LayoutRepository
from pagein.testing.contract_repository import (
    ARTIFACT,
    ARTIFACT_TYPE,
    SUBJECT,
    artifact_for,
    fill,
    manifest_of,
)


def put_many(path: Path, writer: int) -> None:
    repository = LayoutRepository(path)
    for number in range(8):
        manifest = manifest_of(annotations={"n": f"{writer}-{number}"})
        repository.put_manifest(manifest, tag=f"w{writer}-{number}")


def test_writers_in_several_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=put_many, args=(tmp_path / "layout", n)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    found = set(LayoutRepository(tmp_path / "layout").tags())
    assert found == {f"w{n}-{number}" for n in range(3) for number in range(8)}
    assert not list((tmp_path / "layout").rglob("*.tmp"))


def test_an_artifact_that_loses_its_tag_is_a_referrer_still(tmp_path: Path) -> None:
    repository = LayoutRepository(tmp_path / "layout")
    repository.put_manifest(SUBJECT, tag="app")
    repository.put_manifest(ARTIFACT, tag="lazy")
    newer = artifact_for(SUBJECT, annotations={"n": "2"})
    repository.put_manifest(newer, tag="lazy")
    found = repository.referrers(SUBJECT.digest, artifact_type=ARTIFACT_TYPE)
    assert found == [ARTIFACT.digest, newer.digest]
    assert repository.manifest("lazy") == newer


def test_a_layout_without_a_tag_is_its_image_not_its_artifact(tmp_path: Path) -> None:
    repository = LayoutRepository(tmp_path / "layout")
    fill(repository)
    assert repository.only_manifest() == SUBJECT
    repository.put_manifest(manifest_of(annotations={"n": "2"}))
    assert repository.only_manifest() == SUBJECT
    repository.put_manifest(manifest_of(annotations={"n": "3"}), tag="v3")
    with pytest.raises(UsageError, match="holds 2 images"):
        repository.only_manifest()


def test_what_others_wrote_into_index_json_stays(tmp_path: Path) -> None:
    repository = LayoutRepository(tmp_path / "layout")
    fill(repository)
    index = tmp_path / "layout/index.json"
    document = json.loads(index.read_text())
    document["manifests"][0]["annotations"]["io.containerd.image.name"] = "example.org/app:v1"
    index.write_text(json.dumps(document))
    repository.put_manifest(manifest_of(annotations={"n": "2"}), tag="v2")
    assert "example.org/app:v1" in index.read_text()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b'{"manifests": 1}',
        b'{"manifests": [1]}',
        b'{"manifests": [{}]}',
        b'{"manifests": [{"digest": "sha256:x", "annotations": [1]}]}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_a_damaged_index_json_is_one_clear_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "index.json").write_bytes(data)
    with pytest.raises(FormatError, match=r"index\.json") as caught:
        LayoutRepository(tmp_path).manifest("v1")
    assert "\n" not in str(caught.value)


def test_a_folder_without_index_json_is_no_layout(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not an OCI layout"):
        LayoutRepository(tmp_path).manifest("v1")


def test_a_place_that_cannot_be_written_to_is_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for path in (file, file / "below"):
        with pytest.raises(UsageError, match=str(path)):
            fill(LayoutRepository(path))
    blobs = tmp_path / "odd" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "sha256").write_text("x")
    with pytest.raises(UsageError, match="is not an OCI layout"):
        fill(LayoutRepository(tmp_path / "odd"))
    with pytest.raises(PageinError, match="cannot write to /proc/layout: No such file"):
        fill(LayoutRepository(Path("/proc/layout")))


def test_a_blob_that_is_a_folder_is_one_clear_error(tmp_path: Path) -> None:
    layout = LayoutRepository(tmp_path)
    fill(layout)
    (tmp_path / "blobs/sha256" / SUBJECT.digest.hex).unlink()
    (tmp_path / "blobs/sha256" / SUBJECT.digest.hex).mkdir()
    (tmp_path / "index.json").unlink()
    (tmp_path / "index.json").mkdir()
    for read in (lambda: layout.manifest(SUBJECT.digest), lambda: list(layout.tags())):
        with pytest.raises(PageinError, match=f"cannot read {tmp_path}: Is a directory"):
            read()
