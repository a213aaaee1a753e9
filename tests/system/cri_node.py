"""A Kubernetes node in a folder: containerd with CRI on, pagein behind it, a proxy before it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from pagein.daemon.config import Config
from pagein.daemon.images import Images
from pagein.daemon.paths import Paths
from pagein.daemon.wiring import Node
from pagein.errors import NotFoundError, PageinError
from pagein.format.manifest import ImageManifest, parse_manifest
from pagein.snapshotter.images import LazyImage
from pagein.store.captured_credentials import CapturedCredentials
from pagein.types import Digest, ImageName

sys.path.insert(0, str(Path(__file__).parent / "cli"))

from node_image import NodeImage, data_layer, odd_layer, push, write_layout  # isort: skip
from node_under_test import NodeUnderTest  # isort: skip
from tiny_rootfs import build_tiny_rootfs  # isort: skip

PROGRAMS = ("sh", "cat", "chown", "id", "ls", "mkdir", "rm", "sleep", "stat", "touch")

CRI = """
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
disable_apparmor = true
restrict_oom_score_adj = true  # tests may not have the right to lower it
stats_collect_period = 1
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
disable_snapshot_annotations = false
"""

PLUGIN = """
[proxy_plugins.pagein]
type = "snapshot"
address = "{socket}"
"""


def write_pod_images(folder: Path) -> NodeImage:
    """Write ``app``, which prints and stays, and ``pause``, which only stays."""
    packed = _packed(build_tiny_rootfs(folder / "rootfs", PROGRAMS))
    pause = _packed(build_tiny_rootfs(folder / "pause-rootfs", ("sleep",)))
    command = ["sh", "-c", "echo from the image; echo and a warning >&2; exec sleep 1000"]
    app = {"Cmd": command, "Env": ["PATH=/bin", "GREETING=good day"]}
    layers = (packed, odd_layer(), data_layer())
    return NodeImage(
        folder,
        {
            "app": write_layout(folder / "app", layers, app),
            "plain": write_layout(folder / "plain", (layers[1], layers[0]), app),
            "pause": write_layout(folder / "pause", (pause,), {"Cmd": ["/bin/sleep", "infinity"]}),
        },
    )


def _packed(rootfs: Path) -> bytes:
    return subprocess.run(
        ["tar", "--format=pax", "--numeric-owner", "--sort=name", "-C", rootfs, "-cf", "-", "."],
        check=True,
        capture_output=True,
    ).stdout


__all__ = ["CRI", "PLUGIN", "MountedImages", "NodeUnderTest", "push", "write_pod_images"]


class MountedImages:
    """An `ImageMounts` of converted images, mounted with ``pagein mount``."""

    def __init__(self, folder: Path, captured: CapturedCredentials) -> None:
        self._pagein = NodeUnderTest(folder)
        root = self._pagein.root
        self._node = Node(Paths(root / "lib", root / "run"), Config(), captured=captured)
        self._images = Images(self._node)
        self._folder = folder / "trees"
        self._captured = captured

    def find(self, reference: str, manifest_digest: Digest, /) -> LazyImage | None:
        try:
            found = self._images.find(_pinned(reference, manifest_digest))
        except NotFoundError:
            return None
        blob = self._node.places(found.name)[-1].manifest(manifest_digest)
        manifest = parse_manifest(blob.data, blob.media_type)
        assert isinstance(manifest, ImageManifest)
        layers = tuple(layer.digest for layer in manifest.layers)
        return LazyImage(found.index_digest.hex[:16], reference, manifest_digest, layers)

    def attach(self, image: LazyImage, /) -> Path:
        target = self._folder / image.id
        if not target.is_mount():
            target.mkdir(parents=True, exist_ok=True)
            name = _pinned(image.reference, image.manifest_digest)
            self._pagein("mount", name, target, env=self._environment(image.reference))
        return target

    def _environment(self, reference: str) -> dict[str, str]:
        """A docker login for the process that serves the mount."""
        name = ImageName.parse(reference)
        login = self._captured.credential(name, name.host)
        folder = self._folder.parent / "docker"
        folder.mkdir(exist_ok=True)
        auths = {name.host: {"auth": login.basic.removeprefix("Basic ")}} if login else {}
        (folder / "config.json").write_text(json.dumps({"auths": auths}))
        return self._pagein.environment | {"DOCKER_CONFIG": str(folder)}

    def detach(self, image: LazyImage, /) -> None:
        target = self._folder / image.id
        if target.is_mount():
            self._pagein("umount", target)

    def materialise(self, image: LazyImage, layers: int, into: Path, /) -> None:
        raise PageinError("nothing here needs it")


def _pinned(reference: str, digest: Digest) -> str:
    name = ImageName.parse(reference)
    return f"{name.host}/{name.repository}@{digest}"
