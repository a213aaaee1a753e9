"""The contract of snapshotters: ours, and, to check the contract, containerd's overlayfs."""

from __future__ import annotations

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
def pagein_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SnapshotterClient]:
    folder = tmp_path_factory.mktemp("pagein")
    snapshotter = Snapshotter(folder / "root", NoImages())
    server = SnapshotsServer(snapshotter, folder / "socket")
    server.start()
    client = SnapshotterClient(folder / "socket", "pagein")
    yield client
    client.close()
    server.stop()
    snapshotter.close()


@pytest.fixture(scope="module")
def overlayfs_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SnapshotterClient]:
    if shutil.which("containerd") is None:
        pytest.skip("needs containerd")
    with Containerd(tmp_path_factory.mktemp("containerd") / "node") as containerd:
        lease = subprocess.run(
            containerd.ctr("leases", "create"), check=True, capture_output=True, text=True
        ).stdout.strip()
        metadata = {"containerd-namespace": "default", "containerd-lease": lease}
        client = SnapshotterClient(containerd.socket, "overlayfs", metadata)
        yield client
        client.close()


class TestPagein(SnapshotterTreesContract):
    @pytest.fixture
    def client(self, pagein_client: SnapshotterClient) -> SnapshotterClient:
        return pagein_client


class TestContainerdOverlayfs(SnapshotterTreesContract):
    @pytest.fixture
    def client(self, overlayfs_client: SnapshotterClient) -> SnapshotterClient:
        return overlayfs_client
