"""A Kubernetes node in a folder: containerd with CRI on, and pagein as a user installs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cri_client import Cri

from pagein.testing.containerd import Containerd

sys.path += [str(Path(__file__).parent / name) for name in ("cli", "daemon")]

from daemon_under_test import DaemonUnderTest  # isort: skip
from node_image import NodeImage, data_layer, odd_layer, write_layout  # isort: skip
from node_under_test import NodeUnderTest  # isort: skip
from tiny_rootfs import build_tiny_rootfs  # isort: skip

PROGRAMS = ("sh", "cat", "chown", "id", "ls", "mkdir", "rm", "sleep", "stat", "touch")

CRI = """
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
disable_apparmor = true
restrict_oom_score_adj = true  # tests may not have the right to lower it
stats_collect_period = 1
"""

CERTS = """
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{certs}"
"""


class KubeNode:
    """containerd, ``pagein daemon``, and the socket that kubelet is told. ``with`` owns all."""

    def __init__(self, folder: Path, pause: str) -> None:
        self.node = NodeUnderTest(folder)
        self.daemon = DaemonUnderTest(self.node)
        self.certs = folder / "certs.d"
        config = CRI.format(pause=pause) + CERTS.format(certs=self.certs)
        self.containerd = Containerd(folder / "containerd", config, configure=self._install)
        self.node.configure(
            cri_image_service=str(self.containerd.socket), hosts_dir=str(self.certs)
        )

    def _install(self, file: Path) -> None:
        self.node("install-snapshotter", "--containerd-config", file)

    @property
    def credentials(self) -> Path:
        return self.node.root / "lib/credentials.json"

    def counted(self, what: str) -> int:
        """One of the daemon's counts, of its present life."""
        return int(self.daemon.status()["daemon"][what])

    def ctr(self, *words: str, namespace: str = "k8s.io") -> str:
        command = self.containerd.ctr("--namespace", namespace, *words)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def __enter__(self) -> KubeNode:
        self.daemon.start()
        try:
            self.containerd.__enter__()
            self.cri = Cri(self.node.root / "run/cri.sock", self.containerd.socket)
            self.cri.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.daemon.answers():
            for image in self.cri.ListImages().images:
                self.cri.RemoveImage(image={"image": image.id})
        self.cri.close()
        self.containerd.close()
        self.daemon.end()


def write_pod_images(folder: Path) -> NodeImage:
    """Write ``app``, which prints and stays; ``base``, its lowest layer; ``plain``; ``pause``."""
    packed = _packed(build_tiny_rootfs(folder / "rootfs", PROGRAMS))
    pause = _packed(build_tiny_rootfs(folder / "pause-rootfs", ("sleep",)))
    command = ["sh", "-c", "echo from the image; echo and a warning >&2; exec sleep 1000"]
    app = {"Cmd": command, "Env": ["PATH=/bin", "GREETING=good day"]}
    layers = (packed, odd_layer(), data_layer())
    images = {
        "app": (layers, app),
        "base": (layers[:1], app),
        "plain": ((layers[1], layers[0]), app),
        "pause": ((pause,), {"Cmd": ["/bin/sleep", "infinity"]}),
    }
    return NodeImage(folder, {name: write_layout(folder / name, *i) for name, i in images.items()})


def _packed(rootfs: Path) -> bytes:
    return subprocess.run(
        ["tar", "--format=pax", "--numeric-owner", "--sort=name", "-C", rootfs, "-cf", "-", "."],
        check=True,
        capture_output=True,
    ).stdout
