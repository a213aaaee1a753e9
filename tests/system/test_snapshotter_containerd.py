"""pagein as the snapshotter of a real containerd: pulls, containers, builds, restarts, garbage."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from snapshotter_node import SnapshotterNode

from pagein.device.mount import unmount
from pagein.snapshotter.values import Kind
from pagein.testing.directory_images import DirectoryImages, Layer, chain_id
from pagein.testing.docker_registry import DockerRegistry
from pagein.testing.snapshot_stack import refused
from pagein.testing.snapshotter_client import SnapshotterClient, mounted
from pagein.testing.tree_snapshot import of_disk

from node_image import push, write_images  # isort: skip

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("containerd", "ctr", "runc"))), reason="needs containerd, runc"
    ),
    pytest.mark.skipif(not DockerRegistry.installed(), reason="needs docker-registry"),
    pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo"),
]
ON = ("--snapshotter", "pagein")
L1: Layer = {"a": "1", "b": "1"}
L2: Layer = {"b": "2", "c": "2"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    image = write_images(tmp_path_factory.mktemp("images"))
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry:
        push(image, "app", f"{registry.host}/app:v1")
        push(image, "alice", f"{registry.host}/alice:v1")
        yield registry


@pytest.fixture
def images(tmp_path: Path) -> DirectoryImages:
    return DirectoryImages(tmp_path / "mounts")


@pytest.fixture
def node(tmp_path: Path, images: DirectoryImages) -> Iterator[SnapshotterNode]:
    with SnapshotterNode(tmp_path / "machine", images) as node:
        yield node


@pytest.fixture
def app(node: SnapshotterNode, registry: DockerRegistry) -> str:
    reference = f"{registry.host}/app:v1"
    node.ctr("image", "pull", "--plain-http", *ON, reference)
    return reference


def client_of(node: SnapshotterNode, namespace: str) -> SnapshotterClient:
    """Speak to containerd's own service, as its unpacker does inside."""
    lease = node.ctr("leases", "create", namespace=namespace).strip()
    metadata = {"containerd-namespace": namespace, "containerd-lease": lease}
    return SnapshotterClient(node.containerd.socket, "pagein", metadata)


@contextlib.contextmanager
def running(node: SnapshotterNode, name: str, *words: str) -> Iterator[None]:
    """Keep a container running in the background."""
    node.ctr("run", "--detach", *ON, *words)
    try:
        yield
    finally:
        node.ctr("task", "kill", "--signal", "KILL", name)
        _until(lambda: "STOPPED" in node.ctr("task", "ls"))
        node.ctr("task", "rm", name)
        node.ctr("container", "rm", name)


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    pause = threading.Event()
    while not holds():
        assert time.monotonic() < deadline
        pause.wait(0.05)


def test_an_image_is_pulled_classically_and_runs(node: SnapshotterNode, app: str) -> None:
    assert node.ctr("run", "--rm", *ON, app, "one") == "from the image\n"
    assert node.events == []  # plain ctr asks for nothing else
    assert len(node.snapshotter.walk(["kind==committed"])) == 3


def test_the_tree_is_that_of_containerds_own_snapshotter(
    node: SnapshotterNode, app: str, tmp_path: Path
) -> None:
    node.ctr("image", "pull", "--plain-http", "--snapshotter", "overlayfs", app)
    trees = []
    for snapshotter in ("pagein", "overlayfs"):
        target = tmp_path / snapshotter
        target.mkdir()
        node.ctr("image", "mount", "--snapshotter", snapshotter, app, target)
        try:
            trees.append(of_disk(str(target)))
        finally:
            unmount(target)
    assert len(trees[0]) > 40
    assert trees[0] == trees[1]


def test_a_container_may_change_all_that_it_sees(node: SnapshotterNode, app: str) -> None:
    script = (
        "set -e; echo new > /data/part0; mkdir /odd/deep/new; stat -c %s /data/part0;"
        "[ ! -e /odd/removed ]; echo done"
    )
    assert node.ctr("run", "--rm", *ON, app, "two", "sh", "-c", script) == "4\ndone\n"
    assert node.ctr("run", "--rm", *ON, app, "three", "stat", "-c", "%s", "/data/part0") != "4\n"


def test_removed_images_leave_nothing_on_the_disk(node: SnapshotterNode, app: str) -> None:
    assert len(node.directories()) == 3
    usage = node.ctr("snapshot", *ON, "usage")
    assert "MiB" in usage
    node.ctr("image", "rm", "--sync", app)
    _until(lambda: node.directories() == [])
    assert node.snapshotter.walk([]) == []


def test_what_a_container_wrote_can_be_committed_and_compared(
    node: SnapshotterNode, app: str
) -> None:
    with running(node, "work", app, "work", "sh", "-c", "echo x > /made; echo up; sleep 60"):
        _until(lambda: (_upper(node, "work") / "made").exists())
        diff = subprocess.run(
            node.containerd.ctr("snapshot", *ON, "diff", "work"), check=True, capture_output=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(diff)) as archive:
            assert "made" in archive.getnames()
            assert "bin" not in archive.getnames()
    node.ctr("snapshot", *ON, "prepare", "build", node.snapshotter.walk([])[2].name.split("/")[2])
    node.ctr("snapshot", *ON, "commit", "built", "build")
    assert "built" in node.ctr("snapshot", *ON, "ls")
    node.ctr("snapshot", *ON, "rm", "built")


def _upper(node: SnapshotterNode, key: str) -> Path:
    (info,) = node.snapshotter.walk([f'name~="/{key}$"'])
    (mount,) = node.snapshotter.mounts(info.name)
    (upper,) = (option for option in mount.options if option.startswith("upperdir="))
    return Path(upper.removeprefix("upperdir="))


def test_a_container_outlives_restarts_of_both(node: SnapshotterNode, app: str) -> None:
    with running(node, "long", app, "long", "sleep", "300"):
        node.stop_snapshotter()
        node.containerd.kill()
        node.start_snapshotter()
        node.containerd.start()
        assert "RUNNING" in node.ctr("task", "ls")
        done = node.ctr("task", "exec", "--exec-id", "x", "long", "cat", "/etc/passwd")
        assert "alice" in done
        assert node.ctr("run", "--rm", *ON, app, "other") == "from the image\n"


def test_two_images_share_their_layers(node: SnapshotterNode, app: str) -> None:
    other = app.replace("app", "alice")
    node.ctr("image", "pull", "--plain-http", *ON, other)
    assert len(node.directories()) == 3
    assert "good day" in node.ctr("run", "--rm", *ON, other, "alice")
    node.ctr("image", "rm", "--sync", app)
    assert "good day" in node.ctr("run", "--rm", *ON, other, "alice")


def test_containerd_takes_a_layer_that_we_have_for_its_own(
    node: SnapshotterNode, images: DirectoryImages, tmp_path: Path
) -> None:
    images.convert("host/app:1", L1, L2)
    layers = (L1, L2)
    for namespace in ("one", "two"):  # which share what we committed
        with contextlib.closing(client_of(node, namespace)) as client:
            parent = ""
            for number in (1, 2):
                name = chain_id(layers[:number])
                labels = images.pull_labels("host/app:1", number, *layers)
                with refused(grpc.StatusCode.ALREADY_EXISTS):
                    client.prepare(f"extract {name}", parent, labels)
                info = client.stat(name)
                assert (info.parent, info.kind) == (parent, Kind.COMMITTED)
                parent = name
            with mounted(client.prepare("container", parent), tmp_path / "tree") as root:
                assert {p.name: p.read_text() for p in root.iterdir()} == {**L1, **L2}
                (root / "b").write_text("changed")
            for key in ("container", chain_id(layers), chain_id(layers[:1])):
                client.remove(key)
    assert len(node.snapshotter.walk([])) >= 2  # containerd removes later, in its own time


def test_garbage_collection_unmounts_an_image_that_nobody_uses(
    node: SnapshotterNode, images: DirectoryImages
) -> None:
    images.convert("host/app:1", L1)
    with contextlib.closing(client_of(node, "default")) as client:
        labels = images.pull_labels("host/app:1", 1, L1)
        with refused(grpc.StatusCode.ALREADY_EXISTS):
            client.prepare("extract", "", labels)
        assert len(images.mounted()) == 1
        client.remove(chain_id([L1]))
    lease = node.ctr("leases", "ls", "-q").strip()
    node.ctr("leases", "rm", "--sync", lease)
    _until(lambda: images.mounted() == [])
    assert node.snapshotter.walk([]) == []
