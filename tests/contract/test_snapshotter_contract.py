"""The contract of snapshotters: ours, and, to check the contract, containerd's overlayfs."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagein.errors import NotFoundError
from pagein.snapshotter.grpc_server import SnapshotsServer
from pagein.snapshotter.images import LazyImage
from pagein.snapshotter.service import Snapshotter
from pagein.testing.containerd import Containerd
from pagein.testing.contract_snapshotter import SnapshotterTreesContract
from pagein.testing.snapshotter_client import SnapshotterClient
from pagein.types import Digest

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


class NoImages:
    """Nobody has converted anything."""

    def find(self, reference: str, manifest_digest: Digest, /) -> LazyImage | None:
        return None

    def attach(self, image: LazyImage, /) -> Path:
        raise NotFoundError("no image")

    def detach(self, image: LazyImage, /) -> None:
        raise NotFoundError("no image")

    def materialise(self, image: LazyImage, layers: int, into: Path, /) -> None:
        raise NotFoundError("no image")


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where pagein's snapshotter listens."""
    folder = tmp_path_factory.mktemp("pagein")
    snapshotter = Snapshotter(folder / "root", NoImages())
    server = SnapshotsServer(snapshotter, folder / "socket")
    server.start()
    yield folder / "socket"
    server.stop()
    snapshotter.close()


@pytest.fixture(scope="module")
def pagein_client(socket: Path) -> Iterator[SnapshotterClient]:
    with contextlib.closing(SnapshotterClient(socket, "pagein")) as client:
        yield client


@pytest.fixture(scope="module")
def containerd(socket: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    if shutil.which("containerd") is None:
        pytest.skip("needs containerd")
    config = (
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[proxy_plugins.pagein]\ntype = "snapshot"\naddress = "{socket}"\n'
    )
    with Containerd(tmp_path_factory.mktemp("containerd") / "node", config) as containerd:
        yield containerd


def through(containerd: Containerd, name: str) -> Iterator[SnapshotterClient]:
    """Speak to a snapshotter through containerd, under a lease: its collector takes the rest."""
    lease = subprocess.run(
        containerd.ctr("leases", "create"), check=True, capture_output=True, text=True
    ).stdout.strip()
    metadata = {"containerd-namespace": "default", "containerd-lease": lease}
    with contextlib.closing(SnapshotterClient(containerd.socket, name, metadata)) as client:
        yield client


@pytest.fixture(scope="module")
def proxied_client(containerd: Containerd) -> Iterator[SnapshotterClient]:
    yield from through(containerd, "pagein")


@pytest.fixture(scope="module")
def overlayfs_client(containerd: Containerd) -> Iterator[SnapshotterClient]:
    yield from through(containerd, "overlayfs")


class TestPagein(SnapshotterTreesContract):
    @pytest.fixture
    def client(self, pagein_client: SnapshotterClient) -> SnapshotterClient:
        return pagein_client


class TestPageinBehindContainerd(SnapshotterTreesContract):
    @pytest.fixture
    def client(self, proxied_client: SnapshotterClient) -> SnapshotterClient:
        return proxied_client


class TestContainerdOverlayfs(SnapshotterTreesContract):
    @pytest.fixture
    def client(self, overlayfs_client: SnapshotterClient) -> SnapshotterClient:
        return overlayfs_client
