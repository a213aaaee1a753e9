"""The command line with a daemon: one process, one device an image, one cache."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import subprocess

import pytest
from counting_proxy import CountingProxy
from daemon_under_test import DaemonUnderTest
from node_image import BIG, PARTS, NodeImage, write_layout
from node_under_test import NodeUnderTest, mounts_below, wait_until

from pagein.daemon.client import mount_image, umount
from pagein.daemon.config import Config
from pagein.daemon.images import Images
from pagein.daemon.mount_server import MountOptions
from pagein.daemon.paths import Paths
from pagein.daemon.wiring import Node
from pagein.testing.docker_registry import DockerRegistry
from pagein.testing.layer_corpus import directory, file, tar_layer

pytestmark = pytest.mark.root


def receive(listener: socket.socket, wanted: str) -> None:
    """Read notifications until there is one line that is wanted."""
    while True:
        text, descriptors, _, _ = socket.recv_fds(listener, 4096, 8)
        for descriptor in descriptors:
            os.close(descriptor)
        if wanted in text.decode().split("\n"):
            return


def test_ready_is_said_when_every_socket_listens(node: NodeUnderTest):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(node.folder / "notify"))
        listener.settimeout(30)
        environment = node.environment | {"NOTIFY_SOCKET": str(node.folder / "notify")}
        with node.start("daemon", env=environment) as daemon:
            receive(listener, "READY=1")
            for name in ("control.sock", "snapshotter.sock"):
                path = node.root / "run" / name
                assert path.stat().st_mode & 0o777 == 0o600
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(path))
            assert "another pagein daemon" in node("daemon", env=environment, code=2).stderr
            daemon.send_signal(signal.SIGTERM)
            receive(listener, "STOPPING=1")
            assert daemon.wait(30) == 0
    assert not (node.root / "run/control.sock").exists()


def test_mounts_of_one_image_share_a_device(daemon: DaemonUnderTest, registry: DockerRegistry):
    node, reference = daemon.node, f"{registry.host}/app:v1"
    plain, writable = node.mount(reference), node.mount(reference, "--rw")
    assert (plain / "data/big").read_bytes() == BIG
    (writable / "data/big").write_text("changed")
    assert (plain / "data/big").read_bytes() == BIG
    assert len(daemon.status()["images"]) == 1
    shown = node.status()
    assert [one["target"] for one in shown] == [str(plain), str(writable)]
    assert {one["backend"] for one in shown} == {"fuse"}
    assert {one["pid"] for one in shown} == {daemon.pid}
    node("umount", plain)
    assert (writable / "data/big").read_text() == "changed"
    node("umount", writable)
    assert node.status() == []
    assert list((node.root / "lib/writable").iterdir()) == []
    wait_until(lambda: daemon.status()["images"] == [])


def test_what_somebody_else_unmounts_is_forgotten(
    daemon: DaemonUnderTest, registry: DockerRegistry
):
    target = daemon.node.mount(f"{registry.host}/app:v1", "--rw")
    subprocess.run(["umount", target], check=True)
    wait_until(lambda: daemon.status()["mounts"] == [] and daemon.status()["images"] == [])
    wait_until(lambda: list((daemon.node.root / "lib/writable").iterdir()) == [])


def test_a_tree_in_use_is_unmounted_only_by_force(
    daemon: DaemonUnderTest, registry: DockerRegistry
):
    node = daemon.node
    target = node.mount(f"{registry.host}/app:v1")
    with (target / "data/big").open("rb") as opened:
        assert "busy" in node("umount", target, code=1).stderr
        node("umount", "--force", target)
        assert mounts_below(target) == []
        assert opened.read() == BIG
    wait_until(lambda: daemon.status()["images"] == [])


def test_a_container_runs_and_leaves_nothing(daemon: DaemonUnderTest, registry: DockerRegistry):
    done = daemon.node(
        "run", f"{registry.host}/app:v1", "--", "sh", "-c", "echo $$ > /pid; cat /pid"
    )
    assert done.stdout == "1\n"
    wait_until(lambda: daemon.status()["images"] == [])


def test_a_command_with_another_configuration_does_its_work_by_itself(
    daemon: DaemonUnderTest, registry: DockerRegistry
):
    node = daemon.node
    node.configure(cache_size="1GiB")
    with node.mounted(f"{registry.host}/app:v1") as tree:
        assert (tree / "data/part1").read_bytes() == PARTS["part1"]
        assert daemon.status()["mounts"] == []
        assert len(node.status()) == 1


def test_images_share_the_cache(daemon: DaemonUnderTest, proxy: CountingProxy):
    for name in ("app", "alice"):
        proxy.forget()
        with daemon.node.mounted(f"{proxy.host}/{name}:v1") as tree:
            assert (tree / "data/big").read_bytes() == BIG
        ranges = [one for one in proxy.asked("/blobs/") if one.span]
        assert bool(ranges) == (name == "app")


def test_figures_are_served_for_prometheus(node: NodeUnderTest, registry: DockerRegistry):
    address = node.folder / "metrics.sock"
    node.configure(metrics_address=f"unix:{address}")
    daemon = DaemonUnderTest(node)
    daemon.start()
    try:
        with node.mounted(f"{registry.host}/app:v1") as tree:
            assert (tree / "data/big").read_bytes() == BIG
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(address))
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                text = client.makefile().read()
    finally:
        daemon.end()
    assert text.startswith("HTTP/1.0 200 OK")
    assert "text/plain; version=0.0.4" in text
    assert re.search(r"^pagein_up 1$", text, re.MULTILINE)
    assert re.search(r"^pagein_read_bytes_total [1-9]\d+$", text, re.MULTILINE)
    labels = rf'\{{image="docker://{registry.host}/app:v1",device="[0-9a-f]+"\}}'
    assert re.search(rf"^pagein_image_sectors_fetched_total{labels} 1\d$", text, re.MULTILINE)
    assert not address.exists()


def test_fifty_images_are_served_by_one_process(daemon: DaemonUnderTest, image: NodeImage):
    node = daemon.node
    paths = Paths(node.root / "lib", node.root / "run")
    images = Images(Node(paths, Config()))
    data = hashlib.shake_128(b"fifty").digest(300_000)
    layers = (tar_layer(directory(b"d/"), file(b"d/f", data)),)
    targets = []
    for number in range(50):
        layout = node.folder / f"image{number}"
        write_layout(layout, layers, {"Labels": {"number": str(number)}})
        found = images.require(
            f"oci:{layout}:v1", platform=None, progress=lambda *_: None, say=lambda _: None
        )
        targets.append(node.target())
        mount_image(images, found, MountOptions(target=targets[-1]))
    status = daemon.status()
    assert len(status["images"]) == len(status["mounts"]) == 50
    for target in targets:
        assert (target / "d/f").read_bytes() == data
    daemon.kill()
    wait_until(daemon.answers)
    assert len(daemon.status()["images"]) == 50
    for target in targets:
        assert (target / "d/f").stat().st_size == len(data)
        umount(paths, target)
    wait_until(lambda: daemon.status()["images"] == [])
