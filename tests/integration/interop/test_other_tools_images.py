"""Layouts and archives that skopeo and umoci write, read by us; ours, read by them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from pagein.errors import FormatError, NotFoundError, UsageError
from pagein.format.manifest import ImageManifest, parse_config, parse_manifest
from pagein.format.tar import read_entries
from pagein.store.archive import DockerArchiveRepository, OciArchiveRepository
from pagein.store.layout import LayoutRepository
from pagein.store.repository import ManifestBlob, Repository
from pagein.types import ByteRange, Digest

Archive = OciArchiveRepository | DockerArchiveRepository
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


def tool(name: str, *arguments: object) -> str:
    if shutil.which(name) is None:
        pytest.skip(f"needs {name}")
    command = [name, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def skopeo_copy(source: str, destination: str) -> None:
    tool("skopeo", "--insecure-policy", "copy", "-q", source, destination)


def tar_of(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


LAYERS = [tar_of({"etc/one": b"1" * 5000}), tar_of({"etc/two": b"2" * 70_000})]


def sha(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def put_image(repository: LayoutRepository, tag: str, *, note: str = "") -> ManifestBlob:
    def blob(data: bytes, media_type: str) -> dict[str, object]:
        repository.put_blob(Digest.of(data), data)
        return {"mediaType": media_type, "digest": sha(data), "size": len(data)}

    config = {
        "architecture": "amd64",
        "os": "linux",
        "author": note,
        "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": [sha(layer) for layer in LAYERS]},
    }
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [blob(gzip.compress(layer, mtime=0), LAYER_TYPE) for layer in LAYERS],
    }
    data = json.dumps(document).encode()
    manifest = ManifestBlob(str(document["mediaType"]), Digest.of(data), data)
    repository.put_manifest(manifest, tag=tag)
    return manifest


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interop") / "layout"
    put_image(LayoutRepository(path), "v1")
    return path


def layers_of(repository: Repository, blob: ManifestBlob) -> list[bytes]:
    """The uncompressed layers, each held against the configuration and read also by a range."""
    manifest = parse_manifest(blob.data, blob.media_type)
    assert isinstance(manifest, ImageManifest)
    config = parse_config(repository.read_blob(manifest.config.digest, limit=1 << 20))
    found = []
    for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
        with repository.open_blob(layer.digest, size=layer.size) as stream:
            data = stream.read()
        assert bytes(repository.read_range(layer.digest, ByteRange(7, 50))) == data[7:57]
        if layer.media_type.endswith("+gzip"):
            data = gzip.decompress(data)
        assert sha(data) == str(diff_id)
        found.append(data)
    return found


def test_skopeo_reads_the_layouts_we_write(layout: Path, tmp_path: Path) -> None:
    seen = json.loads(tool("skopeo", "inspect", f"oci:{layout}:v1"))
    assert seen["Digest"] == str(LayoutRepository(layout).manifest("v1").digest)
    assert len(seen["Layers"]) == 2
    skopeo_copy(f"oci:{layout}:v1", f"oci:{tmp_path}/copy:v2")
    copy = LayoutRepository(tmp_path / "copy")
    assert list(copy.tags()) == ["v2"]
    assert copy.manifest("v2") == LayoutRepository(layout).manifest("v1")
    assert copy.only_manifest() == copy.manifest("v2")
    assert layers_of(copy, copy.manifest("v2")) == LAYERS


def test_skopeo_adds_to_a_layout_of_ours_and_we_to_its(layout: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    skopeo_copy(f"oci:{layout}:v1", f"oci:{both}:theirs")
    ours = put_image(LayoutRepository(both), "ours", note="another")
    skopeo_copy(f"oci:{layout}:v1", f"oci:{both}:theirs2")
    repository = LayoutRepository(both)
    assert set(repository.tags()) >= {"ours", "theirs2"}
    assert repository.manifest("ours") == ours
    with pytest.raises(UsageError, match="holds 2 images") as caught:
        repository.only_manifest()
    assert "ours" in str(caught.value.hint)


def test_umoci_writes_layouts_that_we_read(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    tool("umoci", "init", "--layout", layout)
    tool("umoci", "new", "--image", f"{layout}:v1")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").write_bytes(b"content")
    tool("umoci", "insert", "--rootless", "--image", f"{layout}:v1", tmp_path / "new", "/new")
    repository = LayoutRepository(layout)
    assert list(repository.tags()) == ["v1"]
    (layer,) = layers_of(repository, repository.only_manifest())
    # umoci writes neither padding nor end mark behind the last file: tarfile refuses that, Go's
    # archive/tar, and so containerd, does not.
    files = {
        entry.path.strip(b"/"): b"".join(data for _, data in entry.chunks())
        for entry in read_entries(io.BytesIO(layer))
    }
    assert files[b"new/file"] == b"content"


def test_umoci_reads_the_layouts_we_write(layout: Path) -> None:
    assert "v1" in tool("umoci", "ls", "--layout", layout)
    assert (
        str(LayoutRepository(layout).manifest("v1").digest) in (layout / "index.json").read_text()
    )


def test_an_oci_archive_of_skopeo_holds_the_same_image(layout: Path, tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    skopeo_copy(f"oci:{layout}:v1", f"oci-archive:{path}:v7")
    repository = OciArchiveRepository(path)
    assert list(repository.tags()) == ["v7"]
    assert repository.manifest("v7") == LayoutRepository(layout).manifest("v1")
    assert layers_of(repository, repository.only_manifest()) == LAYERS


def test_a_docker_archive_of_skopeo_holds_the_same_files(layout: Path, tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    skopeo_copy(f"oci:{layout}:v1", f"docker-archive:{path}:example.org/team/app:v7")
    repository = DockerArchiveRepository(path)
    assert list(repository.tags()) == ["example.org/team/app:v7"]
    manifest = repository.only_manifest()
    assert repository.manifest("example.org/team/app:v7") == manifest
    assert repository.manifest("v7") == manifest
    assert repository.manifest(manifest.digest) == manifest
    assert DockerArchiveRepository(path).only_manifest() == manifest
    assert layers_of(repository, manifest) == LAYERS


def docker_archive(
    path: Path, files: dict[str, bytes], links: dict[str, str] | None = None
) -> DockerArchiveRepository:
    path.write_bytes(tar_of(files, links))
    return DockerArchiveRepository(path)


def saved(config: bytes, layers: list[str], *tags: str) -> dict[str, object]:
    return {"Config": f"{hashlib.sha256(config).hexdigest()}.json", "RepoTags": list(tags) or None,
            "Layers": layers}  # fmt: skip


def config_of(*layers: bytes) -> bytes:
    rootfs = {"type": "layers", "diff_ids": [sha(layer) for layer in layers]}
    return json.dumps({"os": "linux", "architecture": "amd64", "rootfs": rootfs}).encode()


def test_old_docker_archives_share_layers_by_symlinks(tmp_path: Path) -> None:
    config = config_of(LAYERS[0], LAYERS[0])
    repository = docker_archive(
        tmp_path / "old.tar",
        {
            "aaa/layer.tar": LAYERS[0],
            f"{hashlib.sha256(config).hexdigest()}.json": config,
            "manifest.json": json.dumps(
                [saved(config, ["aaa/layer.tar", "bbb/layer.tar"], "app:v1")]
            ).encode(),
        },
        {"bbb/layer.tar": "../aaa/layer.tar"},
    )
    assert layers_of(repository, repository.manifest("app:v1")) == [LAYERS[0], LAYERS[0]]


def two_images(path: Path) -> DockerArchiveRepository:
    one, two = config_of(LAYERS[0]), config_of(LAYERS[1])
    images = [saved(one, ["1.tar"], "app:v1"), saved(two, ["2.tar"], "app:v2")]
    return docker_archive(
        path,
        {
            "manifest.json": json.dumps(images).encode(),
            "1.tar": LAYERS[0],
            "2.tar": LAYERS[1],
            f"{hashlib.sha256(one).hexdigest()}.json": one,
            f"{hashlib.sha256(two).hexdigest()}.json": two,
        },
    )


def test_of_several_saved_images_one_must_be_named(tmp_path: Path) -> None:
    repository = two_images(tmp_path / "two.tar")
    with pytest.raises(UsageError, match="holds 2 images") as caught:
        repository.only_manifest()
    assert "app:v1, app:v2" in str(caught.value.hint)
    assert layers_of(repository, repository.manifest("app:v2")) == [LAYERS[1]]
    for name in ("v2", "docker.io/library/app:v2", "library/app:v2"):
        assert repository.manifest(name) == repository.manifest("app:v2")
    for name in ("v3", "app", "other/app:v2"):
        with pytest.raises(NotFoundError, match=name):
            repository.manifest(name)


def test_a_layer_that_is_not_its_diff_id_is_found_out_when_it_is_read(tmp_path: Path) -> None:
    config = config_of(LAYERS[0])
    repository = docker_archive(
        tmp_path / "wrong.tar",
        {
            "manifest.json": json.dumps([saved(config, ["1.tar"], "app:v1")]).encode(),
            "1.tar": LAYERS[0][:-512] + b"x" * 512,
            f"{hashlib.sha256(config).hexdigest()}.json": config,
        },
    )
    with pytest.raises((FormatError, AssertionError)):
        layers_of(repository, repository.only_manifest())


@pytest.mark.parametrize(
    "document",
    [b"{}", b"[]", b"[1]", b"null", b'[{"Config":"../../etc/passwd","Layers":[]}]', b"[" * 99_999,
     b'[{"Config":"/etc/passwd","Layers":[]}]', b'[{"Config":5,"Layers":[]}]'],
)  # fmt: skip
def test_a_damaged_or_hostile_list_of_images_is_refused(document: bytes, tmp_path: Path) -> None:
    repository = docker_archive(tmp_path / "bad.tar", {"manifest.json": document})
    with pytest.raises((FormatError, NotFoundError)):
        repository.only_manifest()


def test_a_link_out_of_the_archive_leads_nowhere(tmp_path: Path) -> None:
    for target in ("/etc/passwd", "../../../../etc/passwd", "evil"):
        repository = docker_archive(
            tmp_path / "evil.tar",
            {"manifest.json": b'[{"Config":"evil","Layers":[]}]'},
            {"evil": target},
        )
        with pytest.raises((FormatError, NotFoundError)):
            repository.only_manifest()


KINDS: list[Callable[[Path], Archive]] = [OciArchiveRepository, DockerArchiveRepository]
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_compressed_archive_says_how_to_unpack_it(
    kind: Callable[[Path], Archive], pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "image.tar.x"
    path.write_bytes(pack(tar_of({"index.json": b"{}", "manifest.json": b"[]"})))
    with pytest.raises(FormatError, match="compressed") as caught:
        kind(path).only_manifest()
    assert caught.value.hint


@each_kind
@pytest.mark.parametrize("data", [b"", b"no tar", b"x" * 10_240, bytes(10_240)])
def test_what_is_no_archive_gets_one_line(
    kind: Callable[[Path], Archive], data: bytes, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises((FormatError, NotFoundError)) as caught:
        kind(tmp_path / "file").only_manifest()
    assert "\n" not in str(caught.value)


@each_kind
def test_an_archive_that_is_not_there_is_not_found(
    kind: Callable[[Path], Archive], tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError):
        kind(tmp_path / "absent").only_manifest()


@each_kind
def test_a_header_that_claims_a_huge_name_costs_nothing(
    kind: Callable[[Path], Archive], tmp_path: Path
) -> None:
    for flag in (b"x", b"g", b"L", b"K"):
        info = tarfile.TarInfo("name")
        info.type, info.size = flag, 6 << 30
        (tmp_path / "bomb").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        tracemalloc.start()
        try:
            with pytest.raises((FormatError, NotFoundError)):
                kind(tmp_path / "bomb").only_manifest()
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()


def test_a_cut_archive_is_refused_before_a_byte_is_given(layout: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.tar"
    skopeo_copy(f"oci:{layout}:v1", f"oci-archive:{whole}:v1")
    data = whole.read_bytes()
    for length in range(512, len(data) - 2048, max(512, len(data) // 40)):
        (tmp_path / "cut.tar").write_bytes(data[:length])
        repository = OciArchiveRepository(tmp_path / "cut.tar")
        try:
            found = layers_of(repository, repository.manifest("v1"))
        except (FormatError, NotFoundError):
            continue
        assert found == LAYERS
