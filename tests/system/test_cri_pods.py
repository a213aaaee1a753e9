"""What kubelet does, end to end: pull with a login, run a pod, exec, logs, stats, remove.

A real containerd with CRI and runc; a real registry with a login; requests are counted before it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cri_client import Container, Cri, wait_until
from cri_node import CRI, KubeNode, NodeUnderTest, write_pod_images

from pagein.store.captured_credentials import CapturedCredentials
from pagein.testing.containerd import Containerd
from pagein.testing.docker_registry import DockerRegistry, HtpasswdAuth
from pagein.testing.tree_snapshot import Seen, of_disk
from pagein.types import ImageName
from pagein.wire.auth import Credential

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
LOGIN = {"username": "kube", "password": "secret of the pod"}


@dataclass(frozen=True, slots=True)
class Site:
    """With a login, and counted: ``app``, converted. Open to all, and not converted: the rest."""

    public: DockerRegistry
    front: CountingProxy

    @property
    def app(self) -> str:
        return f"{self.front.host}/app:v1"

    @property
    def plain(self) -> str:
        return f"{self.public.host}/plain:v1"

    @property
    def base(self) -> str:
        return f"{self.public.host}/base:v1"

    @property
    def copy(self) -> str:
        return f"{self.public.host}/copy:v1"

    @property
    def pause(self) -> str:
        return f"{self.public.host}/pause:v1"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    images = write_pod_images(tmp_path_factory.mktemp("images"))
    private = tmp_path_factory.mktemp("private")
    with (
        DockerRegistry(tmp_path_factory.mktemp("public")) as public,
        CountingProxy("") as front,
    ):
        push(images, "pause", f"{public.host}/pause:v1")
        push(images, "base", f"{public.host}/base:v1")
        push(images, "plain", f"{public.host}/plain:v1")
        push(images, "app", f"{public.host}/copy:v1")
        with DockerRegistry(private) as registry:
            front.upstream = registry.host
            push(images, "app", f"{front.host}/app:v1")
            builder = NodeUnderTest(tmp_path_factory.mktemp("builder"))
            builder("convert", "--sector-size", 256 << 10, f"{front.host}/app:v1")
        auth = HtpasswdAuth(LOGIN["username"], LOGIN["password"])
        with DockerRegistry(private, auth=auth) as registry:
            front.upstream = registry.host
            yield Site(public, front)


@pytest.fixture(scope="module")
def kube(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeNode]:
    with KubeNode(tmp_path_factory.mktemp("kube"), site.pause) as kube:
        yield kube
    assert kube.node.leftovers() == []


@pytest.fixture(scope="module")
def classical(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """A node without pagein."""
    config = CRI.format(pause=site.pause)
    with Containerd(tmp_path_factory.mktemp("classical") / "node", config) as node:
        yield node


def tree(containerd: Containerd, container: Container) -> dict[bytes, Seen]:
    """What a container sees, but for what is mounted inside, and times of what it changed.

    Left out, because containerd and umoci differ, each right by the letter of pax: xattrs without
    a value (umoci drops them, as we do), and times before 1970 (containerd makes them 1970).
    """
    tasks = containerd.folder / "state/io.containerd.runtime.v2.task/k8s.io"
    seen = of_disk(str(tasks / container.id / "rootfs"))
    newest = max(one.mtime_ns for path, one in seen.items() if path.startswith(b"bin/"))
    return {
        path: replace(
            one,
            mtime_ns=0 if one.mtime_ns > newest else max(one.mtime_ns, 0),
            xattrs=tuple(pair for pair in one.xattrs if pair[1]),
        )
        for path, one in seen.items()
    }


def test_a_pull_without_the_login_fails_with_the_registrys_words(
    kube: KubeNode, site: Site
) -> None:
    with pytest.raises(grpc.RpcError, match="401 Unauthorized"):
        kube.cri.pull(site.app)
    with pytest.raises(grpc.RpcError, match="401 Unauthorized"):
        kube.cri.pull(site.app, username="kube", password="wrong")
    assert kube.counted("pulls_lazy") == 0


def test_a_pod_runs_and_no_layer_was_asked_for(kube: KubeNode, site: Site, tmp_path: Path) -> None:
    site.front.forget()
    image_id = kube.cri.pull(site.app, **LOGIN)
    with kube.cri.pod("lazy", tmp_path) as pod:
        container = pod.start(site.app)
        assert container.shell("echo $GREETING; cat /odd/one") == "good day\nlinked"
        wait_until(lambda: "warning" in container.log())
        assert sorted(container.log().splitlines()) == ["and a warning", "from the image"]
        container.stop()
        assert container.status().exit_code == 137
        container.remove()
    assert kube.counted("pulls_lazy") == 1
    layers = image_layers(kube, site.app)
    assert len(layers) == 3
    assert not any(digest in one.path for one in site.front.asked() for digest in layers)
    assert image_id in [image.id for image in kube.cri.ListImages().images]
    with pytest.raises(grpc.RpcError, match="401 Unauthorized"):  # what is here opens to nobody
        kube.cri.pull(site.app)


def image_layers(kube: KubeNode, reference: str) -> list[str]:
    """The digests of an image's layers, from the manifest that containerd keeps."""
    listed = kube.ctr("image", "ls", f"name=={reference}")
    found = re.search(r"sha256:[0-9a-f]{64}", listed)
    assert found
    manifest = kube.ctr("content", "get", found[0])
    return [layer["digest"] for layer in json.loads(manifest)["layers"]]


def test_the_container_sees_what_it_would_see_classically(
    kube: KubeNode, classical: Containerd, site: Site, tmp_path: Path
) -> None:
    trees = []
    kube.cri.pull(site.app, **LOGIN)
    for containerd, image in ((kube.containerd, site.app), (classical, site.copy)):
        cri = Cri(containerd.socket)
        cri.wait_until_ready()
        cri.pull(image, **(LOGIN if image == site.app else {}))
        with cri.pod("same", tmp_path) as pod:
            container = pod.start(image)
            trees.append(tree(containerd, container))
        cri.close()
    assert len(trees[0]) > 40
    assert trees[0] == trees[1]


def test_a_container_may_change_all_that_it_sees(
    kube: KubeNode, site: Site, tmp_path: Path
) -> None:
    kube.cri.pull(site.app, **LOGIN)
    script = """set -e
        rm /data/part0; [ ! -e /data/part0 ]
        echo new > /data/part1; cat /data/part1
        rm -r /odd/deep; mkdir /odd/deep; [ -z "$(ls /odd/deep)" ]
        chown -R 1234:4321 /odd /data; stat -c %u:%g /odd/suid /data/big /odd/fifo
        stat -c %s /data/big"""
    with kube.cri.pod("writer", tmp_path) as pod:
        first = pod.start(site.app, "first")
        assert first.shell(script).split() == ["new", *["1234:4321"] * 3, str(3 << 20)]
        second = pod.start(site.app, "second")
        assert second.shell("cat /odd/deep/three; stat -c %u /odd/suid; [ -e /data/part0 ]")
        usage = stats_of(kube, first)
        assert usage.used_bytes.value >= 3 << 20  # chown copied the big file up
        assert usage.inodes_used.value > 10
        assert stats_of(kube, second).used_bytes.value < 1 << 20


def stats_of(kube: KubeNode, container: Container) -> Any:
    """What kubelet is told of a container's writable layer; containerd counts every second."""
    found: list[Any] = []

    def counted() -> bool:
        found[:] = [kube.cri.ContainerStats(container_id=container.id).stats.writable_layer]
        return found[0].timestamp > before

    before = kube.cri.ContainerStats(container_id=container.id).stats.writable_layer.timestamp
    wait_until(counted)
    return found[0]


def test_an_image_that_nobody_converted_is_pulled_classically_and_runs(
    kube: KubeNode, site: Site, tmp_path: Path
) -> None:
    before = kube.counted("pulls_classical")
    kube.cri.pull(site.plain)
    with kube.cri.pod("plain", tmp_path) as pod:
        assert pod.start(site.plain).shell("cat /odd/one") == "linked"
    assert kube.counted("pulls_classical") == before + 1
    assert "nobody has converted" in kube.daemon.log.read_text()


def test_an_image_that_ends_where_a_lazy_one_goes_on_runs_too(
    kube: KubeNode, site: Site, tmp_path: Path
) -> None:
    kube.cri.pull(site.app, **LOGIN)
    kube.cri.pull(site.base)
    with kube.cri.pod("base", tmp_path) as pod:
        assert pod.start(site.base).shell("ls /odd || ls /data || echo none") == "none\n"
    assert kube.counted("layers_materialised") == 1


def test_a_login_is_kept_for_as_long_as_the_image_is_there(kube: KubeNode, site: Site) -> None:
    kube.cri.pull(site.app, **LOGIN)
    name = ImageName.parse(site.app)
    kept = CapturedCredentials(kube.credentials).credential(name, name.host)
    assert kept == Credential(LOGIN["username"], LOGIN["password"])
    kube.cri.RemoveImage(image={"image": site.app})
    assert CapturedCredentials(kube.credentials).credential(name, name.host) is None
    wait_until(lambda: site.app not in str(kube.daemon.status()["images"]))


def test_hosts_are_configured_once_for_containerd_and_for_us(
    kube: KubeNode, site: Site, tmp_path: Path
) -> None:
    folder = kube.certs / "registry.example"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(
        f"""
        server = "https://registry.example"
        [host."http://{site.front.host}"]
        capabilities = ["pull", "resolve"]
        """
    )
    image = "registry.example/app:v1"
    before = kube.counted("pulls_lazy")
    kube.cri.pull(image, **LOGIN)
    with kube.cri.pod("mirror", tmp_path) as pod:
        assert pod.start(image).shell("stat -c %s /data/big; cat /odd/one") == "3145728\nlinked"
    assert kube.counted("pulls_lazy") == before + 1
    kube.cri.RemoveImage(image={"image": image})


def test_kubelet_is_told_what_images_use(kube: KubeNode, site: Site) -> None:
    kube.cri.pull(site.plain)
    (info,) = kube.cri.ImageFsInfo().image_filesystems
    assert info.timestamp > 0
    assert info.used_bytes.value > 0
