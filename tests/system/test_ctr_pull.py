"""``pagein ctr-pull`` and ``doctor --containerd`` against a real containerd and the daemon."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cri_client import wait_until
from cri_node import KubeNode, NodeUnderTest, write_pod_images

from pagein.testing.docker_registry import DockerRegistry
from pagein.testing.tree_snapshot import of_disk

from counting_proxy import CountingProxy  # isort: skip
from node_image import push  # isort: skip

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("containerd", "ctr", "runc"))), reason="needs containerd, runc"
    ),
    pytest.mark.skipif(not DockerRegistry.installed(), reason="needs docker-registry"),
    pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
]
ON = ("--snapshotter", "pagein")


@dataclass(frozen=True, slots=True)
class Site:
    """``app`` is converted, ``bound`` too and bound to its tag, ``plain`` is not."""

    front: CountingProxy

    def name(self, image: str) -> str:
        return f"{self.front.host}/{image}:v1"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    images = write_pod_images(tmp_path_factory.mktemp("images"))
    with (
        DockerRegistry(tmp_path_factory.mktemp("registry")) as registry,
        CountingProxy(registry.host) as front,
    ):
        for source, target in (("app", "app"), ("plain", "bound"), ("base", "base")):
            push(images, source, f"{front.host}/{target}:v1")
        builder = NodeUnderTest(tmp_path_factory.mktemp("builder"))
        builder("convert", "--sector-size", 256 << 10, f"{front.host}/app:v1")
        builder("convert", "--bind", "--sector-size", 256 << 10, f"{front.host}/bound:v1")
        push(images, "plain", f"{front.host}/plain:v1")
        yield Site(front)


@pytest.fixture(scope="module")
def machine(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeNode]:
    with KubeNode(tmp_path_factory.mktemp("kube"), site.name("pause")) as machine:
        yield machine


@pytest.fixture
def kube(machine: KubeNode) -> Iterator[KubeNode]:
    """The machine, without images before and after."""
    yield machine
    remove_all(machine)


def remove_all(kube: KubeNode) -> None:
    for name in kube.ctr("image", "ls", "-q", namespace="default").split():
        kube.ctr("image", "rm", "--sync", name, namespace="default")
    wait_until(lambda: kube.daemon.status()["images"] == [])


def pull(kube: KubeNode, reference: str, *words: str) -> Any:
    done = kube.node("ctr-pull", "--json", "--address", kube.containerd.socket, *words, reference)
    return json.loads(done.stdout)


def run(kube: KubeNode, image: str, *words: str) -> str:
    name = f"run-{os.urandom(4).hex()}"
    return kube.ctr("run", "--rm", *ON, image, name, *words, namespace="default")


@pytest.mark.parametrize("image", ["app", "bound"])
def test_a_converted_image_is_ready_with_no_layer_fetched(
    kube: KubeNode, site: Site, image: str
) -> None:
    name = site.name(image)
    site.front.forget()
    before = kube.counted("pulls_lazy")
    pulled = pull(kube, name)
    assert (pulled["name"], pulled["fetched"]) == (name, 0)
    assert kube.counted("pulls_lazy") == before + 1
    assert run(kube, name, "sh", "-c", "cat /odd/one; stat -c %u /odd/suid") == "linked7\n"
    assert name in kube.ctr("image", "check", *ON, namespace="default")
    # The manifest that containerd stored names its layers; nobody asked for one of them.
    manifest = kube.ctr("content", "get", pulled["digest"], namespace="default")
    layers = [layer["digest"] for layer in json.loads(manifest)["layers"]]
    assert len(layers) == pulled["layers"]
    assert not any(digest in one.path for one in site.front.asked() for digest in layers)
    assert pull(kube, name)["fetched"] == 0


def test_an_image_that_nobody_converted_is_whole_as_well(
    kube: KubeNode, site: Site, tmp_path: Path
) -> None:
    name = site.name("plain")
    before = kube.counted("pulls_classical")
    assert pull(kube, name)["fetched"] == 2
    assert kube.counted("pulls_classical") == before + 1
    assert run(kube, name, "cat", "/odd/one") == "linked"
    kube.ctr("image", "pull", "--plain-http", "--snapshotter", "native", name, namespace="default")
    trees = []
    for snapshotter in ("pagein", "native"):
        target = tmp_path / snapshotter
        target.mkdir()
        mount = ("image", "mount", "--snapshotter", snapshotter, name, str(target))
        kube.ctr(*mount, namespace="default")
        trees.append(of_disk(str(target)))
        kube.ctr("image", "unmount", "--rm", "--snapshotter", snapshotter, str(target),
                 namespace="default")  # fmt: skip
    assert trees[0] == trees[1]


def test_a_second_image_fetches_only_what_the_first_did_not_bring(
    kube: KubeNode, site: Site
) -> None:
    pull(kube, site.name("app"))
    assert pull(kube, site.name("base"))["fetched"] == 0  # a placeholder stands for it
    assert run(kube, site.name("base"), "sh", "-c", "ls /odd || echo none") == "none\n"


def test_what_cannot_be_pulled_is_one_line(kube: KubeNode, site: Site, tmp_path: Path) -> None:
    address = ("--address", kube.containerd.socket)
    line, _ = kube.node.complaint("ctr-pull", *address, f"{site.front.host}/none:v1")
    assert "manifest unknown" in line
    line, _ = kube.node.complaint("ctr-pull", *address, "oci:somewhere", code=2)
    assert "not in a registry" in line
    line, hint = kube.node.complaint(
        "ctr-pull", "--address", tmp_path / "no.sock", site.name("app")
    )
    assert "containerd does not answer" in line
    assert "is it running" in hint
    line, _ = kube.node.complaint("ctr-pull", *address, "--snapshotter", "none", site.name("app"))
    assert "none" in line
    assert subprocess.run(kube.containerd.ctr("leases", "ls", "-q"), check=True,
                          capture_output=True).stdout == b""  # fmt: skip


def doctor(kube: KubeNode, code: int) -> list[str]:
    """The names of what is not as it should be."""
    words = ("doctor", "--containerd", "--json", "--address", kube.containerd.socket)
    config = ("--containerd-config", kube.containerd.folder / "config.toml")
    done = kube.node(*words, *config, code=code)
    return [finding["name"] for finding in json.loads(done.stdout) if not finding["ok"]]


def test_the_doctor_follows_the_chain_from_containerd_to_the_daemon(kube: KubeNode) -> None:
    assert doctor(kube, 0) == []
    kube.daemon.stop()
    assert doctor(kube, 1) == ["daemon", "a call through it", "kubelet's logins"]
    file = kube.containerd.folder / "config.toml"
    kube.node("install-snapshotter", "--undo", "--containerd-config", file)
    kube.containerd.stop()
    kube.containerd.start()
    kube.daemon.start()
    assert doctor(kube, 1) == ["its configuration", "its plugin", "a call through it"]
    kube.containerd.stop()
    assert "containerd" in doctor(kube, 1)
    kube.node("install-snapshotter", "--containerd-config", file)
    kube.containerd.start()
    assert doctor(kube, 0) == []
