"""An optimized image in a registry behind a proxy, and a node of its own."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
sys.path.insert(0, str(Path(__file__).parents[1] / "daemon"))
sys.path.insert(0, str(Path(__file__).parents[1] / "record"))

from counting_proxy import CountingProxy
from daemon_under_test import DaemonUnderTest
from hot_image import SECTOR, write_profile
from node_image import NodeImage, push, write_layout
from node_under_test import NodeUnderTest, wait_until
from recorded_image import layers

from pagein.testing.docker_registry import DockerRegistry


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Has ``app:v1``, optimized."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs root and /dev/fuse")
    for tool in ("docker-registry", "skopeo", "runc"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    folder = tmp_path_factory.mktemp("image")
    config: dict[str, object] = {"Cmd": ["sh"], "Env": ["PATH=/bin"]}
    digest = write_layout(folder / "app", layers(folder / "rootfs"), config)
    builder = NodeUnderTest(tmp_path_factory.mktemp("builder"))
    profile = write_profile(folder / "profile", digest)
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry:
        app = f"{registry.host}/app:v1"
        push(NodeImage(folder, {"app": digest}), "app", app)
        builder("convert", "--sector-size", SECTOR, "--profile", profile, app)
        yield registry


@pytest.fixture
def proxy(registry: DockerRegistry) -> Iterator[CountingProxy]:
    with CountingProxy(registry.host) as proxy:
        yield proxy


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeUnderTest]:
    """A node on which every test must leave nothing mounted and nobody running."""
    node = NodeUnderTest(tmp_path)
    try:
        yield node
        wait_until(lambda: node.leftovers() == [])
    finally:
        node.clear()


@pytest.fixture
def daemon(node: NodeUnderTest) -> Iterator[DaemonUnderTest]:
    daemon = DaemonUnderTest(node)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.end()
