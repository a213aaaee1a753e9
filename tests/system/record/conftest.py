"""An image whose files a test knows to the block, in a registry, and a node of its own."""

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

from node_image import NodeImage, push, write_layout
from node_under_test import NodeUnderTest, wait_until
from recorded_image import Place, layers

from pagein.testing.docker_registry import DockerRegistry

SECTOR = 256 << 10


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs root and /dev/fuse")
    for tool in ("docker-registry", "skopeo", "runc"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    folder = tmp_path_factory.mktemp("image")
    config: dict[str, object] = {"Cmd": ["sh"], "Env": ["PATH=/bin"], "StopSignal": "SIGINT"}
    digest = write_layout(folder / "app", layers(folder / "rootfs"), config)
    image = NodeImage(folder, {"app": digest})
    builder = NodeUnderTest(tmp_path_factory.mktemp("builder"))
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry:
        for name in ("app", "plain"):
            push(image, "app", f"{registry.host}/{name}:v1")
        builder("convert", "--sector-size", SECTOR, f"{registry.host}/app:v1")
        yield Place(registry, image)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeUnderTest]:
    """A node on which every test must leave nothing mounted and nobody running."""
    node = NodeUnderTest(tmp_path)
    try:
        yield node
        wait_until(lambda: node.leftovers() == [])
    finally:
        node.clear()
