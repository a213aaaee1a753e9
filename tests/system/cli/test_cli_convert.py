"""``pagein convert``, from each kind of source, into real registries and layouts; and refused."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from counting_proxy import CountingProxy
from node_image import SECTOR, NodeImage, push, write_layout
from node_under_test import NodeUnderTest
from registry_site import Site

from pagein.testing.certificates import (
    make_authority,
    make_server_certificate,
    openssl_installed,
)
from pagein.testing.docker_registry import DockerRegistry, HtpasswdAuth, ServerTls
from pagein.testing.layer_corpus import file, tar_layer
from pagein.testing.token_server import TokenServer

OCI = "application/vnd.oci.image"


def converted(node: NodeUnderTest, *words: object) -> dict[str, Any]:
    """Convert with --json; return the one image of the answer."""
    done = node("convert", "--json", "--sector-size", SECTOR, *words)
    (image,) = json.loads(done.stdout)["images"]
    return image


def skopeo(*words: object) -> None:
    subprocess.run(["skopeo", "copy", "-q", *map(str, words)], check=True, capture_output=True)


@pytest.fixture(scope="session")
def sources(image: NodeImage, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """References of one image in every form that lies on a disk."""
    if shutil.which("skopeo") is None:
        pytest.skip("needs skopeo")
    folder, layout = tmp_path_factory.mktemp("sources"), f"oci:{image.layouts / 'app'}:v1"
    skopeo(layout, f"oci-archive:{folder}/app.oci.tar:v1")
    skopeo(layout, f"docker-archive:{folder}/app.docker.tar:app:v1")
    return {
        "oci": layout,
        "oci-archive": f"oci-archive:{folder}/app.oci.tar",
        "docker-archive": f"docker-archive:{folder}/app.docker.tar",
        "dir": f"dir:{image.layouts / 'rootfs'}",
    }


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive", "dir"])
def test_an_image_is_converted_from_a_disk_into_a_registry(
    kind: str, sources: dict[str, str], site: Site, node: NodeUnderTest
) -> None:
    target = f"{site.registry.host}/from-{kind}:v1"
    assert converted(node, sources[kind], f"docker://{target}")["files"] > 10
    assert "root:" in node("cat", target, "/etc/passwd").stdout
    line = node("check", "--deep", target).stdout
    assert line.endswith(": 0 problems\n")


def test_the_digest_hangs_on_the_image_alone(
    sources: dict[str, str], node: NodeUnderTest, tmp_path: Path
) -> None:
    def artifact(number: int, *words: object, **environment: str) -> str:
        words = ("convert", "--json", "--sector-size", SECTOR, *words, sources["oci"])
        folder = tmp_path / f"place {number}"
        folder.mkdir()
        done = node(*words, "oci:out:v1", env=node.environment | environment, cwd=folder)
        return str(json.loads(done.stdout)["images"][0]["artifact"])

    assert (
        artifact(1, "--jobs", 1, PYTHONHASHSEED="1")
        == artifact(2, "--jobs", 2, PYTHONHASHSEED="2")
        == artifact(3, "--jobs", 7, TZ="Asia/Tokyo", LC_ALL="C")
    )


def test_what_the_registry_has_is_not_sent_again(
    site: Site, node: NodeUnderTest, proxy: CountingProxy
) -> None:
    push(site.image, "app", f"{site.registry.host}/again:v1")
    reference = f"{proxy.host}/again:v1"
    first = converted(node, reference)
    sent = [one for one in proxy.asked("/blobs/uploads") if one.method != "HEAD"]
    assert sent
    proxy.forget()
    second = converted(node, reference)
    assert second["artifact"] == first["artifact"]
    assert [one for one in proxy.asked("/blobs/uploads") if one.method != "HEAD"] == []


def test_a_tag_of_its_own_and_a_bound_tag_name_the_artifact(
    site: Site, node: NodeUnderTest
) -> None:
    host = site.registry.host
    push(site.image, "app", f"{host}/named:v1")
    artifact = converted(node, "--tag", "v1-lazy", f"{host}/named:v1")["artifact"]
    inspected = json.loads(node("inspect", "--json", f"{host}/named:v1-lazy").stdout)
    assert artifact in json.dumps(inspected)
    assert "is now the index sha256:" in node("convert", "--bind", f"{host}/named:v1").stdout
    raw = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{host}/named:v1"],
        check=True,
        capture_output=True,
    ).stdout
    listed = [entry["digest"] for entry in json.loads(raw)["manifests"]]
    assert listed[0] == site.image.digests["app"]
    assert len(listed) == 2
    # Who knows nothing of pagein still gets the image.
    skopeo("--src-tls-verify=false", f"docker://{host}/named:v1", f"dir:{node.folder}/copy")


def test_every_platform_of_an_index_is_converted(node: NodeUnderTest, tmp_path: Path) -> None:
    layout = two_platforms(tmp_path / "layout")
    done = node("convert", "--json", "--platform", "all", f"oci:{layout}:v1")
    images = json.loads(done.stdout)["images"]
    assert [one["platform"] for one in images] == ["linux/amd64", "linux/arm64"]
    for machine in ("amd64", "arm64"):
        found = node("cat", "--platform", f"linux/{machine}", f"oci:{layout}:v1", "/machine")
        assert found.stdout == machine
    line, _ = node.complaint("convert", "--platform", "linux/s390x", f"oci:{layout}:v1")
    assert "linux/s390x" in line
    assert "linux/arm64" in line


def two_platforms(path: Path) -> Path:
    """Write a layout whose tag is an index of two images."""
    entries = []
    for machine in ("amd64", "arm64"):
        part = path.parent / machine
        write_layout(part, (tar_layer(file(b"machine", machine.encode())),), {})
        (entry,) = json.loads((part / "index.json").read_text())["manifests"]
        shutil.copytree(part, path, dirs_exist_ok=True)
        entry["platform"] = {"os": "linux", "architecture": machine}
        entries.append({key: entry[key] for key in ("mediaType", "digest", "size", "platform")})
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": entries}
    point_at(path, json.dumps(index).encode(), f"{OCI}.index.v1+json")
    return path


def point_at(layout: Path, document: bytes, media_type: str) -> None:
    """Store a manifest in a layout and have the tag v1 name it."""
    digest = hashlib.sha256(document).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(document)
    entry = {
        "mediaType": media_type,
        "digest": f"sha256:{digest}",
        "size": len(document),
        "annotations": {"org.opencontainers.image.ref.name": "v1"},
    }
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


# -- Logins and trust


def log_in(node: NodeUnderTest, host: str, user: str, password: str) -> dict[str, str]:
    """Return the environment of somebody who has run ``docker login``."""
    folder = node.folder / f"docker-{user}-{password}"
    folder.mkdir()
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": login}}}))
    return node.environment | {"DOCKER_CONFIG": str(folder)}


def push_with_login(image: NodeImage, target: str, login: str, *options: str) -> None:
    source = f"oci:{image.layouts / 'app'}:v1"
    skopeo("--dest-tls-verify=false", f"--dest-creds={login}", *options, source,
           f"docker://{target}")  # fmt: skip


def test_a_registry_with_tokens_is_used_with_dockers_login(
    image: NodeImage, node: NodeUnderTest, tmp_path: Path
) -> None:
    if not DockerRegistry.installed() or not openssl_installed():
        pytest.skip("needs docker-registry and openssl")
    signer = make_authority(tmp_path)
    with (
        TokenServer(signer, users={"ann": "pw"}) as tokens,
        DockerRegistry(tmp_path / "registry", auth=tokens.auth) as registry,
    ):
        reference = f"{registry.host}/private/app:v1"
        push_with_login(image, reference, "ann:pw")
        ann = log_in(node, registry.host, "ann", "pw")
        node("convert", "--sector-size", SECTOR, reference, env=ann)
        assert "root:" in node("cat", reference, "/etc/passwd", env=ann).stdout
        eve = log_in(node, registry.host, "ann", "wrong")
        line, hint = node.complaint("convert", reference, env=eve)
        assert "wrong user or password" in line
        assert f"docker login {registry.host}" in hint
        line, hint = node.complaint("inspect", reference)
        assert "401" in line or "denied" in line
        assert "pw" not in line + hint


def test_a_registry_of_a_private_authority_is_trusted_where_it_is_told(
    image: NodeImage, node: NodeUnderTest, tmp_path: Path
) -> None:
    if not DockerRegistry.installed() or not openssl_installed():
        pytest.skip("needs docker-registry and openssl")
    authority = make_authority(tmp_path)
    server = make_server_certificate(tmp_path, authority)
    with DockerRegistry(
        tmp_path / "registry",
        auth=HtpasswdAuth("ann", "pw"),
        tls=ServerTls(server.certificate, server.key),
    ) as registry:
        reference = f"{registry.host}/app:v1"
        push_with_login(image, reference, "ann:pw")
        ann = log_in(node, registry.host, "ann", "pw")
        (tmp_path / "other").mkdir()
        for trusted in (make_authority(tmp_path / "other"), authority):
            node.config.write_text(f'[registry."{registry.host}"]\nca = "{trusted.certificate}"\n')
            if trusted is not authority:
                line, _ = node.complaint("convert", reference, env=ann)
                assert "certificate" in line
        node("convert", "--sector-size", SECTOR, reference, env=ann)
        assert "root:" in node("cat", reference, "/etc/passwd", env=ann).stdout


# -- What is refused


def with_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Return what changes the manifest of a layout of one layer."""

    def apply(layout: Path) -> None:
        (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
        blob = layout / "blobs/sha256" / entry["digest"].removeprefix("sha256:")
        manifest = json.loads(blob.read_text())
        change(manifest)
        point_at(layout, json.dumps(manifest).encode(), manifest.get("mediaType", ""))

    return apply


def layer_type(name: str) -> Callable[[Path], None]:
    return with_manifest(lambda manifest: manifest["layers"][0].update(mediaType=name))


def truncate_layer(layout: Path) -> None:
    largest = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def flip_layer(layout: Path) -> None:
    largest = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def lie_about_content(layout: Path) -> None:
    """Give the config a diff id that the layer does not have."""

    def change(manifest: dict[str, Any]) -> None:
        blob = layout / "blobs/sha256" / manifest["config"]["digest"].removeprefix("sha256:")
        config = json.loads(blob.read_text())
        config["rootfs"]["diff_ids"] = ["sha256:" + "0" * 64]
        data = json.dumps(config).encode()
        digest = hashlib.sha256(data).hexdigest()
        (blob.parent / digest).write_bytes(data)
        manifest["config"] |= {"digest": f"sha256:{digest}", "size": len(data)}

    with_manifest(change)(layout)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "foreign layer": (
        layer_type("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
        "foreign",
    ),
    "encrypted layer": (layer_type(f"{OCI}.layer.v1.tar+gzip+encrypted"), "encrypted"),
    "an artifact": (
        with_manifest(
            lambda manifest: manifest.update(
                artifactType="application/vnd.example.sbom",
                config=manifest["config"] | {"mediaType": "application/vnd.example.sbom"},
            )
        ),
        "not an image|no image",
    ),
    "schema 1": (
        lambda layout: point_at(
            layout,
            json.dumps({"schemaVersion": 1, "name": "app", "fsLayers": []}).encode(),
            "application/vnd.docker.distribution.manifest.v1+json",
        ),
        "schema 1",
    ),
    "truncated layer": (truncate_layer, "bytes|ends|size"),
    "flipped layer": (flip_layer, "sha256:|digest|damaged"),
    "other content": (lie_about_content, "sha256:|diff"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_gets_one_line_and_leaves_nothing(
    case: str, node: NodeUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, why = REFUSED[case]
    layout = tmp_path / "layout"
    write_layout(layout, (tar_layer(file(b"data", bytes(range(256)) * 4000)),), {})
    damage(layout)
    before = sorted(path.name for path in (layout / "blobs/sha256").iterdir())
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    line, _ = node.complaint("convert", f"oci:{layout}:v1")
    assert any(word in line for word in why.split("|")), line
    assert sorted(path.name for path in (layout / "blobs/sha256").iterdir()) == before
    assert list(scratch.iterdir()) == []


def test_what_is_not_there_is_named(site: Site, node: NodeUnderTest) -> None:
    assert "v9" in node.complaint("convert", f"{site.registry.host}/app:v9")[0]
    assert "nothing" in node.complaint("convert", f"{site.registry.host}/nothing:v1")[0]
    line, _ = node.complaint("convert", "127.0.0.1:1/app:v1")
    assert "127.0.0.1:1" in line
    node.complaint("convert", "registry.example:5000/UPPER:v1", code=2)
    node.complaint("convert", "--sector-size", "5MiB", site.app, code=2)
    node.complaint("convert", "--bind", site.app, "oci:elsewhere:v1", code=2)


# -- Looking inside


def test_a_deep_check_finds_a_flip_in_a_pack_and_in_an_index(
    sources: dict[str, str], node: NodeUnderTest, tmp_path: Path
) -> None:
    layout = tmp_path / "out"
    image = converted(node, sources["oci"], f"oci:{layout}:v1")
    largest = max(image["packs"], key=lambda pack: pack["size"])
    number = 0
    for digest, code_of_plain in ((largest["digest"], 0), (image["index"], 1)):
        blob = layout / "blobs/sha256" / digest.removeprefix("sha256:")
        whole = blob.read_bytes()
        for at in (len(whole) // 3, len(whole) - 1):
            damaged = bytearray(whole)
            damaged[at] ^= 0x10
            blob.write_bytes(damaged)
            number += 1
            (tmp_path / f"new{number}").mkdir()
            new = NodeUnderTest(tmp_path / f"new{number}")  # knows nothing of the image yet
            new("check", "--deep", f"oci:{layout}:v1", code=1)
            new("check", f"oci:{layout}:v1", code=code_of_plain)
        blob.write_bytes(whole)
    assert node("check", "--deep", f"oci:{layout}:v1").returncode == 0


def test_help_imports_no_network_and_no_builder(node: NodeUnderTest) -> None:
    code = (
        "import sys; from pagein.cli.main import cli; cli(['--help'], standalone_mode=False);"
        "print([n for n in sys.modules if n.split('.')[0] in ('urllib3', 'httpx', 'grpc')"
        " or n.startswith(('pagein.build', 'pagein.store'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=node.environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
