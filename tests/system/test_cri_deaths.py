"""Pods when a part of their node dies: daemon, containerd, registry, machine; idle, pull, read."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from cri_client import Container, Pod, wait_until
from cri_node import KubeNode, NodeUnderTest, write_pod_images

from pagein.testing.docker_registry import DockerRegistry

from counting_proxy import Asked, CountingProxy  # isort: skip
from node_image import BIG, PARTS, push  # isort: skip
from node_under_test import mounts_below  # isort: skip

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
WAIT_S = 30.0
T = TypeVar("T")


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountingProxy]:
    """A registry with ``app``, converted, and ``pause``, behind something that can be stopped."""
    images = write_pod_images(tmp_path_factory.mktemp("images"))
    with (
        DockerRegistry(tmp_path_factory.mktemp("registry")) as registry,
        CountingProxy(registry.host) as front,
    ):
        for name in ("app", "pause"):
            push(images, name, f"{front.host}/{name}:v1")
        builder = NodeUnderTest(tmp_path_factory.mktemp("builder"))
        builder("convert", "--sector-size", 256 << 10, f"{front.host}/app:v1")
        yield front


@pytest.fixture(scope="module")
def machine(front: CountingProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeNode]:
    with KubeNode(tmp_path_factory.mktemp("kube"), f"{front.host}/pause:v1") as machine:
        yield machine
    assert machine.node.leftovers() == []


@pytest.fixture
def kube(machine: KubeNode, front: CountingProxy) -> Iterator[KubeNode]:
    """The machine, whatever died on it, without the image before and after."""
    yield machine
    for lease in machine.ctr("leases", "ls", "-q").split():
        machine.ctr("leases", "rm", lease)  # of a pull that was cut off; it would hold for a day
    machine.cri.RemoveImage(image={"image": f"{front.host}/app:v1"})
    wait_until(lambda: machine.daemon.status()["images"] == [])


@contextlib.contextmanager
def held(front: CountingProxy, pattern: str) -> Iterator[threading.Event]:
    """Hold up the answers to requests for data (or for a path) until the end of the block."""
    reached, opened = threading.Event(), threading.Event()

    def hold(asked: Asked) -> None:
        if pattern in asked.path and (asked.span is not None or pattern):
            reached.set()
            opened.wait(WAIT_S)

    front.before_answer = hold
    try:
        yield reached
    finally:
        opened.set()
        front.before_answer = lambda _: None


def read(container: Container, path: str) -> bytes:
    """Read a file inside."""
    done = container.cri.ExecSync(container_id=container.id, cmd=["cat", path], timeout=60)
    assert done.exit_code == 0, done.stderr
    return bytes(done.stdout)


def in_the_end(call: Callable[[], T]) -> T:
    """Try until it works, as kubelet does: containerd waits before it connects to us again."""
    found: list[T] = []

    def works() -> bool:
        with contextlib.suppress(grpc.RpcError):
            found.append(call())
        return bool(found)

    wait_until(works)
    return found[0]


def starts(pod: Pod, image: str) -> Container:
    """Start another container of a pod."""
    names = (f"try-{number}" for number in itertools.count())
    return in_the_end(lambda: pod.start(image, next(names)))


def test_a_pod_does_not_notice_that_the_daemon_died(
    kube: KubeNode, front: CountingProxy, tmp_path: Path
) -> None:
    image = f"{front.host}/app:v1"
    kube.cri.pull(image)
    with kube.cri.pod("one", tmp_path) as pod, ThreadPoolExecutor() as pool:
        container = pod.start(image)
        kube.daemon.kill()  # while nothing is read
        assert read(container, "/data/part0") == PARTS["part0"]
        with held(front, "") as reached:
            waiting: Future[bytes] = pool.submit(read, container, "/data/big")
            assert reached.wait(WAIT_S)
            kube.daemon.kill()  # while a read waits
        assert waiting.result(WAIT_S) == BIG
        assert starts(pod, image).shell("cat /odd/one") == "linked"


@pytest.mark.slow
def test_a_pod_does_not_notice_that_containerd_died(
    kube: KubeNode, front: CountingProxy, tmp_path: Path
) -> None:
    image = f"{front.host}/app:v1"
    kube.cri.pull(image)
    with kube.cri.pod("one", tmp_path) as pod:
        container = pod.start(image)
        kube.containerd.kill()
        kube.daemon.kill()
        wait_until(kube.daemon.answers)  # or CRI lists no images until they are pulled again
        kube.containerd.start()
        kube.cri.wait_until_ready()
        assert read(container, "/data/part1") == PARTS["part1"]
        assert container.shell("echo new > /data/part1; cat /data/part1") == "new\n"
        # What containerd keeps of snapshots and what we keep are the same still.
        assert starts(pod, image).shell("cat /odd/one") == "linked"
        kube.node("doctor", "--containerd", "--address", kube.containerd.socket,
                  "--containerd-config", kube.containerd.folder / "config.toml")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dies", "holding"), [("daemon", "/referrers/"), ("containerd", "/blobs/")]
)
def test_a_pull_that_is_cut_off_is_made_good_by_the_next(
    kube: KubeNode, front: CountingProxy, tmp_path: Path, dies: str, holding: str
) -> None:
    image = f"{front.host}/app:v1"
    with ThreadPoolExecutor() as pool:
        with held(front, holding) as reached:
            cut_off = pool.submit(kube.cri.pull, image)
            assert reached.wait(WAIT_S)
            kube.daemon.kill() if dies == "daemon" else kube.containerd.kill()
        if dies == "containerd":
            kube.containerd.start()
        with contextlib.suppress(grpc.RpcError):  # kubelet is told, and tries again
            cut_off.result(WAIT_S)
    wait_until(kube.daemon.answers)
    kube.cri.wait_until_ready()
    in_the_end(lambda: kube.cri.pull(image))
    with kube.cri.pod("one", tmp_path) as pod:
        assert read(pod.start(image), "/data/part2") == PARTS["part2"]


def test_an_image_may_be_removed_while_its_container_runs(
    kube: KubeNode, front: CountingProxy, tmp_path: Path
) -> None:
    image = f"{front.host}/app:v1"
    kube.cri.pull(image)
    with kube.cri.pod("one", tmp_path) as pod:
        container = pod.start(image)
        kube.cri.RemoveImage(image={"image": image})
        assert read(container, "/data/part3") == PARTS["part3"]
    wait_until(lambda: kube.daemon.status()["images"] == [])


def test_after_a_reboot_pods_start_with_the_registry_down(
    kube: KubeNode, front: CountingProxy, tmp_path: Path
) -> None:
    image = f"{front.host}/app:v1"
    kube.cri.pull(image)
    pod = kube.cri.run_pod("before", tmp_path)
    container = pod.start(image)
    assert read(container, "/data/big") == BIG
    assert container.shell("cat /bin/* > /dev/null; echo ok") == "ok\n"
    front.stop()
    try:
        reboot(kube)
        kube.daemon.start()
        kube.containerd.start()
        kube.cri.wait_until_ready()
        pod.remove()
        with kube.cri.pod("after", tmp_path) as again:
            assert read(again.start(image), "/data/big") == BIG
    finally:
        front.start()


def reboot(kube: KubeNode) -> None:
    """Leave what a power cut leaves: files on disks; no process, no mount, nothing below run."""
    kube.containerd.kill()
    kube.daemon.kill_both()
    wanted = f"{kube.containerd.folder}/".encode()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            cgroup = (path / "cgroup").read_bytes()
            shim = any(word.startswith(wanted) for word in words)
            if shim or any(name in cgroup for name in kube_cgroups(kube)):
                os.kill(int(path.name), signal.SIGKILL)
    for target in reversed(mounts_below(kube.node.folder)):
        subprocess.run(["umount", "--lazy", target], check=False, capture_output=True)
    shutil.rmtree(kube.containerd.folder / "state")
    shutil.rmtree(kube.node.root / "run")


def kube_cgroups(kube: KubeNode) -> list[bytes]:
    """The names of containers, which are in the names of their control groups."""
    tasks = kube.containerd.folder / "state/io.containerd.runtime.v2.task/k8s.io"
    return [path.name.encode() for path in tasks.iterdir()] if tasks.exists() else []
