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

import pytest
from snapshotter_node import NodeUnderTest, SnapshotterNode

from pagein.device.mount import unmount
from pagein.testing.docker_registry import DockerRegistry
from pagein.testing.tree_snapshot import of_disk

from counting_proxy import CountingProxy  # isort: skip
from daemon_under_test import reboot  # isort: skip
from node_image import BIG, SECTOR, push, write_images  # isort: skip

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


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    image = write_images(tmp_path_factory.mktemp("images"))
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry:
        push(image, "app", f"{registry.host}/app:v1")
        push(image, "alice", f"{registry.host}/alice:v1")
        push(image, "app", f"{registry.host}/lazy:v1")
        builder = NodeUnderTest(tmp_path_factory.mktemp("builder"))
        builder("convert", "--sector-size", SECTOR, f"{registry.host}/lazy:v1")
        yield registry


@pytest.fixture
def node(tmp_path: Path) -> Iterator[SnapshotterNode]:
    with SnapshotterNode(tmp_path) as node:
        yield node
        for namespace in node.ctr("namespace", "ls", "-q").split():
            for name in node.ctr("image", "ls", "-q", namespace=namespace).split():
                node.ctr("image", "rm", "--sync", name, namespace=namespace)
        _until(lambda: node.attached() == [])


@pytest.fixture
def app(node: SnapshotterNode, registry: DockerRegistry) -> str:
    reference = f"{registry.host}/app:v1"
    node.ctr("image", "pull", "--plain-http", *ON, reference)
    return reference


@pytest.fixture
def lazy(node: SnapshotterNode, registry: DockerRegistry) -> str:
    reference = f"{registry.host}/lazy:v1"
    node.pull(reference)
    return reference


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
    assert (
        node.counted("pulls_lazy") == node.counted("pulls_classical") == 0
    )  # ctr asks for no more
    assert len(node.snapshots("kind==committed")) == 3


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
    assert node.snapshots() == []


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
    node.ctr("snapshot", *ON, "prepare", "build", node.snapshots()[2].name.split("/")[2])
    node.ctr("snapshot", *ON, "commit", "built", "build")
    assert "built" in node.ctr("snapshot", *ON, "ls")
    node.ctr("snapshot", *ON, "rm", "built")


def _upper(node: SnapshotterNode, key: str) -> Path:
    (info,) = node.snapshots(f'name~="/{key}$"')
    (mount,) = node.mounts(info.name)
    (upper,) = (option for option in mount.options if option.startswith("upperdir="))
    return Path(upper.removeprefix("upperdir="))


def test_a_container_outlives_restarts_of_both(node: SnapshotterNode, app: str) -> None:
    with running(node, "long", app, "long", "sleep", "300"):
        node.daemon.stop()
        node.containerd.kill()
        node.daemon.start()
        node.containerd.start()
        assert "RUNNING" in node.ctr("task", "ls")
        done = node.ctr("task", "exec", "--exec-id", "x", "long", "cat", "/etc/passwd")
        assert "alice" in done
        assert node.ctr("run", "--rm", *ON, app, "other") == "from the image\n"


def test_a_lazy_container_outlives_the_death_of_both(node: SnapshotterNode, lazy: str) -> None:
    with running(node, "long", lazy, "long", "sleep", "300"):
        before = node.daemon.kill()
        node.containerd.kill()
        _until(lambda: node.daemon.answers() and node.daemon.pid != before)
        node.containerd.start()
        words = ("task", "exec", "--exec-id", "x", "long", "cat", "/data/big")
        read = subprocess.run(node.containerd.ctr(*words), check=True, capture_output=True)
        assert read.stdout == BIG
        assert node.ctr("run", "--rm", *ON, lazy, "other") == "from the image\n"


def test_a_lazy_image_starts_after_a_reboot_with_the_registry_down(
    node: SnapshotterNode, registry: DockerRegistry
) -> None:
    with CountingProxy(registry.host) as proxy:
        image = f"{proxy.host}/lazy:v1"
        node.pull(image)
        assert node.ctr("run", "--rm", *ON, image, "one") == "from the image\n"
    node.containerd.stop()
    node.daemon.kill_both()
    reboot(node.pagein)
    node.daemon.start()
    node.containerd.start()
    assert node.attached() == [f"docker://{image}"]
    assert node.ctr("run", "--rm", *ON, image, "two") == "from the image\n"


@pytest.mark.parametrize("kind", ["app", "lazy"])
def test_a_pull_that_the_daemon_dies_over_is_made_good_by_the_next(
    node: SnapshotterNode, registry: DockerRegistry, kind: str
) -> None:
    image = f"{registry.host}/{kind}:v1"
    words = ["image", "pull", "--plain-http", *ON, image]
    command = node.containerd.ctr(*words)
    if kind == "lazy":
        address = ("--address", node.containerd.socket)
        command = node.pagein.command("ctr-pull", *address, image)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = node.pagein.environment
    with subprocess.Popen(command, env=environment, **quiet) as pulling:
        # Some snapshots are there, mostly, and some are not.
        _until(lambda: pulling.poll() is not None or node.snapshots() != [])
        node.daemon.kill()
    _until(node.daemon.answers)
    _until(lambda: subprocess.run(command, env=environment, check=False, **quiet).returncode == 0)
    assert node.ctr("run", "--rm", *ON, image, "one") == "from the image\n"
    assert node.ctr("run", "--rm", *ON, image, "two", "sh", "-c", "cat /odd/one") == "linked"


def test_two_images_share_their_layers(node: SnapshotterNode, app: str) -> None:
    other = app.replace("app", "alice")
    node.ctr("image", "pull", "--plain-http", *ON, other)
    assert len(node.directories()) == 3
    assert "good day" in node.ctr("run", "--rm", *ON, other, "alice")
    node.ctr("image", "rm", "--sync", app)
    assert "good day" in node.ctr("run", "--rm", *ON, other, "alice")


def test_two_namespaces_share_a_lazy_image(node: SnapshotterNode, lazy: str) -> None:
    node.pull(lazy, namespace="other")
    assert node.attached() == [f"docker://{lazy}"]
    assert node.counted("pulls_lazy") >= 1
    for namespace in ("default", "other"):
        ran = node.ctr("run", "--rm", *ON, lazy, "one", namespace=namespace)
        assert ran == "from the image\n"
    _until(lambda: node.directories() == [])
    node.ctr("image", "rm", "--sync", lazy)
    assert node.ctr("run", "--rm", *ON, lazy, "two", namespace="other") == "from the image\n"


def test_garbage_collection_unmounts_an_image_that_nobody_uses(
    node: SnapshotterNode, lazy: str
) -> None:
    assert len(node.attached()) == 1
    node.ctr("image", "rm", "--sync", lazy)
    _until(lambda: node.attached() == [])
    assert node.snapshots() == []


def test_an_image_on_a_layer_of_a_lazy_one_gets_its_files(
    node: SnapshotterNode, lazy: str, app: str
) -> None:
    # The same layers, pulled without the labels: containerd finds ours, and asks for no other.
    assert node.ctr("run", "--rm", *ON, app, "one") == "from the image\n"
    (bottom,) = (one for one in node.snapshots() if not one.parent)
    node.ctr("snapshot", *ON, "prepare", "build", bottom.name.split("/")[-1])
    assert (_upper(node, "build").parents[1] / "1/fs/bin/sh").exists()
    assert node.counted("layers_materialised") == 1
    node.ctr("snapshot", *ON, "rm", "build")
