"""A machine in a folder: containerd with ``pagein daemon`` as its proxy plugin."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from pagein.snapshotter.values import Info, Mount
from pagein.testing.containerd import Containerd
from pagein.testing.snapshotter_client import SnapshotterClient

sys.path += [str(Path(__file__).parent / name) for name in ("cli", "daemon")]

from daemon_under_test import DaemonUnderTest  # isort: skip
from node_under_test import NodeUnderTest  # isort: skip

CONFIG = """\
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[proxy_plugins.pagein]
type = "snapshot"
address = "{socket}"
"""


class SnapshotterNode:
    """The daemon with its holder, and containerd beside it. ``with`` owns both."""

    def __init__(self, folder: Path) -> None:
        self.pagein = NodeUnderTest(folder)
        self.daemon = DaemonUnderTest(self.pagein)
        self._socket = self.pagein.root / "run/snapshotter.sock"
        self.containerd = Containerd(folder / "containerd", CONFIG.format(socket=self._socket))

    def __enter__(self) -> SnapshotterNode:
        self.daemon.start()
        try:
            self.containerd.__enter__()
        except BaseException:
            self.daemon.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.containerd.close()
        self.daemon.end()

    def ctr(self, *words: str | Path, namespace: str = "default") -> str:
        """Run ctr; return what it prints. AssertionError with its words where it fails."""
        command = [*self.containerd.ctr("--namespace", namespace), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def pull(self, reference: str, namespace: str = "default") -> None:
        """Pull with the labels that ctr does not send."""
        address = ("--address", self.containerd.socket, "--namespace", namespace)
        self.pagein("ctr-pull", *address, reference)

    def counted(self, what: str) -> int:
        """One of the daemon's counts, of its present life."""
        return int(self.daemon.status()["daemon"][what])

    def attached(self) -> list[str]:
        """The images that the daemon serves."""
        return [str(image["reference"]) for image in self.daemon.status()["images"]]

    def snapshots(self, *filters: str) -> list[Info]:
        """Ask the daemon itself, not containerd."""
        with contextlib.closing(SnapshotterClient(self._socket, "pagein")) as client:
            return client.list(*filters)

    def mounts(self, key: str) -> list[Mount]:
        with contextlib.closing(SnapshotterClient(self._socket, "pagein")) as client:
            return client.mounts(key)

    def directories(self) -> list[str]:
        folder = self.pagein.root / "lib/snapshotter/snapshots"
        return sorted(path.name for path in folder.iterdir())
