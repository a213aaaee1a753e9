"""A registry with a converted image, a counting proxy before it, and a machine for the daemon."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

from counting_proxy import CountingProxy
from daemon_under_test import DaemonUnderTest
from node_image import SECTOR, NodeImage, push, write_images
from node_under_test import NodeUnderTest, wait_until

from pagein.testing.docker_registry import DockerRegistry


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> NodeImage:
    return write_images(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def registry(
    image: NodeImage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DockerRegistry]:
    """Has ``app:v1`` and ``alice:v1``, which share their layers, converted."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs root and /dev/fuse")
    for tool in ("docker-registry", "skopeo"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    node = NodeUnderTest(tmp_path_factory.mktemp("builder"))
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry:
        for name in ("app", "alice"):
            push(image, name, f"{registry.host}/{name}:v1")
            node("convert", "--sector-size", SECTOR, f"{registry.host}/{name}:v1")
        yield registry


@pytest.fixture
def proxy(registry: DockerRegistry) -> Iterator[CountingProxy]:
    with CountingProxy(registry.host) as proxy:
        yield proxy


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeUnderTest]:
    """A machine on which every test must leave nothing mounted and nobody running."""
    node = NodeUnderTest(tmp_path)
    try:
        yield node
        wait_until(lambda: node.leftovers() == [])
    finally:
        node.clear()


@pytest.fixture
def daemon(node: NodeUnderTest) -> Iterator[DaemonUnderTest]:
    """A daemon that runs, with its holder; what it has mounted is unmounted at the end."""
    daemon = DaemonUnderTest(node)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.end()
