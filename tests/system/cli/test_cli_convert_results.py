"""What ``pagein convert`` makes and sends, by other tools' word and by the registry's count."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from counting_proxy import CountingProxy
from node_image import SECTOR, push, write_layout
from node_under_test import NodeUnderTest
from registry_site import Site
from tiny_rootfs import PASSWD

from pagein.testing.layer_corpus import file, tar_layer
from pagein.testing.tree_snapshot import Seen, of_disk

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

ARTIFACT = "application/vnd.pagein.image.v1"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


def convert(node: NodeUnderTest, *words: object, **more: Any) -> dict[str, Any]:
    """Convert, and return what ``--json`` says."""
    done = node("convert", "--sector-size", SECTOR, "--json", *words, **more)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def raw(reference: str) -> bytes:
    """A manifest as the registry has it, by skopeo."""
    return subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}"],
        check=True,
        capture_output=True,
    ).stdout


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def skopeo_copy(*words: str) -> None:
    plain = ("--src-tls-verify=false", "--dest-tls-verify=false")
    subprocess.run(["skopeo", "copy", "-q", *plain, *words], check=True, capture_output=True)


@dataclass(frozen=True)
class Fresh:
    """Repositories of this test's own, each with the image under ``v1``."""

    site: Site
    prefix: str

    def __call__(self, name: str) -> str:
        reference = f"{self.site.registry.host}/{self.prefix}/{name}:v1"
        push(self.site.image, "app", reference)
        return reference


@pytest.fixture
def fresh(site: Site, tmp_path: Path) -> Fresh:
    return Fresh(site, hashlib.sha256(bytes(tmp_path)).hexdigest()[:12])


# -- sources and destinations


def test_one_manifest_has_one_artifact_wherever_it_lies(
    site: Site, node: NodeUnderTest, expected: dict[bytes, Seen]
) -> None:
    layout, archive = site.image.layouts / "app", node.folder / "app.oci.tar"
    skopeo_copy("--preserve-digests", f"oci:{layout}:v1", f"oci-archive:{archive}:v1")
    sources = {
        "docker": f"docker://{site.app}",
        "oci": f"oci:{layout}:v1",
        "archive": f"oci-archive:{archive}",
    }
    made = {
        name: convert(node, source, f"oci:{node.folder}/{name}:v1")["images"][0]
        for name, source in sources.items()
    }
    facts = {(image["source"], image["artifact"], image["index"]) for image in made.values()}
    assert len(facts) == 1
    assert facts.pop()[0] == site.image.digests["app"]
    with node.mounted(f"oci:{node.folder}/archive:v1") as tree:
        assert of_disk(str(tree)) == expected


def test_a_docker_archive_and_a_folder_give_the_same_tree(
    site: Site, node: NodeUnderTest, unpacked: Path, expected: dict[bytes, Seen]
) -> None:
    archive = node.folder / "app.tar"
    skopeo_copy(f"oci:{site.image.layouts / 'app'}:v1", f"docker-archive:{archive}:some/app:v1")
    for number, source in enumerate((f"docker-archive:{archive}", f"dir:{unpacked}")):
        convert(node, source, f"oci:{node.folder}/{number}:v1")
        with node.mounted(f"oci:{node.folder}/{number}:v1") as tree:
            assert of_disk(str(tree)) == expected


def test_an_artifact_in_a_registry_without_its_source_is_found_by_its_own_tag(
    site: Site, node: NodeUnderTest, fresh: Fresh
) -> None:
    target = f"{site.registry.host}/{fresh.prefix}/alone"
    layout = f"oci:{site.image.layouts / 'app'}:v1"
    made = convert(node, layout, f"docker://{target}:lazy")["images"][0]
    artifact = raw(f"{target}:lazy")
    assert digest_of(artifact) == made["artifact"]
    assert json.loads(artifact)["artifactType"] == ARTIFACT
    assert json.loads(artifact)["subject"]["digest"] == site.image.digests["app"]
    assert node("cat", f"{target}:lazy", "/etc/passwd").stdout == PASSWD


def test_the_figures_are_those_of_the_registry(
    site: Site, node: NodeUnderTest, fresh: Fresh
) -> None:
    reference = fresh("figures")
    before = raw(reference)
    made = convert(node, reference, "--tag", "v1-lazy")
    assert raw(reference) == before
    assert made["bound"] is None
    [image] = made["images"]
    assert (image["platform"], image["source"]) == ("linux/amd64", digest_of(before))
    artifact = raw(f"{reference}-lazy")
    assert digest_of(artifact) == image["artifact"]
    assert image["artifact_size"] == len(artifact)
    blobs = {image["index"]: image["index_size"]}
    blobs |= {pack["digest"]: pack["size"] for pack in image["packs"]}
    for digest, size in blobs.items():
        assert site.blob(digest).stat().st_size == size
        assert digest_of(site.blob(digest).read_bytes()) == digest
    parts = json.loads(artifact)["layers"]
    assert {part["digest"]: part["size"] for part in parts} == blobs
    layers = json.loads(before)["layers"]
    assert [pack["layer"] for pack in image["packs"]] == [layer["digest"] for layer in layers]
    assert image["source_size"] == sum(layer["size"] for layer in layers)


def test_what_is_said_to_people_names_the_image_and_its_artifact(
    site: Site, node: NodeUnderTest, fresh: Fresh
) -> None:
    reference = fresh("people")
    done = node("convert", "--sector-size", SECTOR, reference)
    digest = site.image.digests["app"]
    assert done.stdout.startswith(f"{digest} (linux/amd64) -> sha256:")
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == ""


# -- binding


def test_a_bound_tag_serves_those_who_know_pagein_and_those_who_do_not(
    site: Site, node: NodeUnderTest, proxy: CountingProxy, fresh: Fresh
) -> None:
    reference = fresh("bound")
    made = convert(node, reference, "--bind")
    index = raw(reference)
    assert digest_of(index) == made["bound"]
    assert json.loads(index)["mediaType"] == OCI_INDEX
    copied = node.folder / "copied"
    skopeo_copy(f"docker://{reference}", f"oci:{copied}:v1")
    listed = json.loads((copied / "index.json").read_text())["manifests"]
    assert [one["digest"] for one in listed] == [site.image.digests["app"]]
    here = reference.replace(site.registry.host, proxy.host)
    assert node("cat", here, "/etc/passwd").stdout == PASSWD
    assert proxy.asked("/referrers/") == []
    assert convert(node, reference, "--bind")["bound"] == made["bound"]


def test_a_bound_image_is_copied_whole_and_works_elsewhere(
    site: Site, node: NodeUnderTest, fresh: Fresh
) -> None:
    reference = fresh("moving")
    convert(node, reference, "--bind")
    there = f"{site.registry.host}/{fresh.prefix}/moved:v1"
    skopeo_copy("--all", f"docker://{reference}", f"docker://{there}")
    assert node("cat", there, "/etc/passwd").stdout == PASSWD


# -- always the same


SHIFTED_CLOCK = """
import time
true_time = time.time
time.time = lambda: true_time() - 400 * 24 * 3600
"""


def test_the_same_image_gives_the_same_digests_on_any_machine(
    site: Site, node: NodeUnderTest
) -> None:
    elsewhere = node.folder / "another place"
    elsewhere.mkdir()
    shutil.copytree(site.image.layouts / "app", elsewhere / "app")
    (elsewhere / "sitecustomize.py").write_text(SHIFTED_CLOCK)
    there = NodeUnderTest(elsewhere)
    odd = {
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": os.pathsep.join((str(elsewhere), os.environ.get("PYTHONPATH", ""))),
        "TZ": "Pacific/Auckland",
        "LC_ALL": "C",
        "TMPDIR": str(elsewhere),
    }
    words = ("--jobs", "5", "oci:app:v1", "oci:out:v1")
    one = convert(there, *words, cwd=elsewhere, env=there.environment | odd, umask=0o077)
    plain = {"PYTHONHASHSEED": "1"}
    words = ("--jobs", "1", f"oci:{site.image.layouts / 'app'}:v1", f"oci:{node.folder}/out:v1")
    other = convert(node, *words, env=node.environment | plain)
    assert one["images"][0]["artifact"] == other["images"][0]["artifact"]
    names = [
        sorted(blob.name for blob in (folder / "out/blobs/sha256").iterdir())
        for folder in (elsewhere, node.folder)
    ]
    assert names[0] == names[1]
    for blob in (elsewhere / "out/blobs/sha256").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name


# -- again


def sends(proxy: CountingProxy) -> list[str]:
    """The paths at which uploads were begun."""
    return [one.path for one in proxy.asked("/blobs/uploads/$") if one.method == "POST"]


def test_a_second_conversion_asks_six_things_and_sends_nothing(
    site: Site, node: NodeUnderTest, proxy: CountingProxy, fresh: Fresh
) -> None:
    reference = fresh("twice").replace(site.registry.host, proxy.host)
    first = convert(node, reference)["images"][0]
    assert len(sends(proxy)) == len(first["packs"]) + 2, "packs, index, and the empty config"
    assert all(pack["sent"] for pack in first["packs"])
    proxy.forget()
    second = convert(NodeUnderTest(node.target()), reference)["images"][0]
    assert second["artifact"] == first["artifact"]
    assert second["reused"]
    assert [one.method for one in proxy.asked() if one.path != "/v2/"] == ["GET"] * 6, (
        "the image, its configuration, referrers by API and by tag, the artifact, its index"
    )
    proxy.forget()
    third = convert(node, "--force", reference)["images"][0]
    assert third["artifact"] == first["artifact"]
    assert not third["reused"]
    assert not any(pack["sent"] for pack in third["packs"])
    assert {one.method for one in proxy.asked("/blobs/uploads/")} == set()
    assert [one.method for one in proxy.asked("/manifests/") if one.method == "PUT"] != []


def test_an_image_with_one_more_layer_sends_one_more_pack(
    site: Site, node: NodeUnderTest, proxy: CountingProxy, fresh: Fresh
) -> None:
    base = site.image.layouts / "app"
    manifest = json.loads(
        (base / "blobs/sha256" / site.image.digests["app"].removeprefix("sha256:")).read_bytes()
    )
    grown = node.folder / "grown"
    layers = tuple(
        gzip.decompress((base / "blobs/sha256" / layer["digest"][7:]).read_bytes())
        for layer in manifest["layers"]
    )
    write_layout(grown, (*layers, tar_layer(file(b"more", b"m" * 5000))), {"Cmd": ["more"]})
    target = f"docker://{proxy.host}/{fresh.prefix}/grows"
    convert(node, f"oci:{base}:v1", f"{target}:one")
    proxy.forget()
    made = convert(node, f"oci:{grown}:v1", f"{target}:two")["images"][0]
    assert [pack["sent"] for pack in made["packs"]] == [False, False, False, True]
    assert len(sends(proxy)) == 2, "one pack and the index"


def test_a_new_version_sends_and_a_warm_node_fetches_little_more_than_what_changed(
    site: Site, node: NodeUnderTest, proxy: CountingProxy, fresh: Fresh
) -> None:
    """By the command's defaults, in a real registry; checked to the last byte afterwards."""
    repository = f"{proxy.host}/{fresh.prefix}/versions"
    changed = random.Random("changed").randbytes(9 * 30_000)
    for tag in ("v1", "v2"):
        chance, files = random.Random(1), []
        for number in range(200):
            data = chance.randbytes(30_000)
            if tag == "v2" and number % 25 == 3:
                data = changed[30_000 * (number // 25) :][:30_000]
            files.append(file(b"lib/%03d" % number, data))
        write_layout(node.folder / tag, (tar_layer(*files),), {"Cmd": ["true"]})
        skopeo_copy(f"oci:{node.folder / tag}:v1", f"docker://{repository}:{tag}")
    convert(node, f"{repository}:v1")
    node("pull", "--full", f"{repository}:v1")
    made = convert(node, f"{repository}:v2")["images"][0]
    sent = sum(pack["size"] for pack in made["packs"] if pack["sent"])
    bound = 1.2 * 8 * 30_000
    assert 8 * 30_000 < sent < bound
    assert made["reused_size"] > 5_000_000
    pulled = json.loads(node("pull", "--full", "--json", f"{repository}:v2").stdout)
    assert 8 * 30_000 < pulled["bytes_fetched"] < bound
    assert node("check", "--deep", f"{repository}:v2").stdout.endswith(": 0 problems\n")
    said = node("convert", "--sector-size", SECTOR, f"{repository}:v2").stdout
    assert said.endswith("  already converted; --force converts again\n")
    alone = convert(node, "--force", "--base", "none", f"{repository}:v2")["images"][0]
    assert alone["reused_size"] == 0
    named = ("--force", "--base", f"{repository}:v1")
    assert convert(node, *named, f"{repository}:v2")["images"][0]["artifact"] == made["artifact"]


def test_what_is_converted_already_is_not_converted_again(site: Site, node: NodeUnderTest) -> None:
    artifact = json.loads(node("inspect", "--json", site.app).stdout)["artifact"]
    line, hint = node.complaint("convert", f"{site.registry.host}/app@{artifact}", code=2)
    assert line.endswith("is converted already")
    assert hint == "name the image that it was made from"
