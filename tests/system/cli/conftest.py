"""A node with state of its own, a real registry with a converted image, and what must be left."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from counting_proxy import CountingProxy
from node_image import SECTOR, NodeImage, push, write_images
from node_under_test import NodeUnderTest
from registry_site import Site

from pagein.testing.docker_registry import DockerRegistry
from pagein.testing.tree_snapshot import Seen, of_disk


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> NodeImage:
    return write_images(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def site(image: NodeImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs root and /dev/fuse")
    for tool in ("docker-registry", "skopeo"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    node = NodeUnderTest(tmp_path_factory.mktemp("builder"))
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry:
        push(image, "app", f"{registry.host}/plain:v1")
        for name in ("app", "alice"):
            push(image, name, f"{registry.host}/{name}:v1")
            node("convert", "--sector-size", SECTOR, f"{registry.host}/{name}:v1")
        yield Site(registry, image)


@pytest.fixture
def proxy(site: Site) -> Iterator[CountingProxy]:
    with CountingProxy(site.registry.host) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def unpacked(image: NodeImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image as umoci lays it on a disk."""
    if shutil.which("umoci") is None:
        pytest.skip("needs umoci")
    bundle = tmp_path_factory.mktemp("umoci") / "bundle"
    subprocess.run(
        ["umoci", "unpack", "--image", f"{image.layouts / 'app'}:v1", bundle],
        check=True,
        capture_output=True,
        umask=0o022,
    )
    return bundle / "rootfs"


@pytest.fixture(scope="session")
def expected(unpacked: Path) -> dict[bytes, Seen]:
    """What every path of the image must look like."""
    return of_disk(str(unpacked))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeUnderTest]:
    """A node on which every test must leave nothing mounted and nobody running."""
    node = NodeUnderTest(tmp_path)
    try:
        yield node
        deadline = time.monotonic() + 10
        while node.leftovers() and time.monotonic() < deadline:
            time.sleep(0.01)  # a process that nobody waited for ends
        assert node.leftovers() == []
    finally:
        node.clear()
