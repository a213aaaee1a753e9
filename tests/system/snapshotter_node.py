"""A machine in a folder: containerd with pagein as its proxy plugin, and a registry in front."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pagein.events import Event
from pagein.snapshotter.grpc_server import SnapshotsServer
from pagein.snapshotter.images import ImageMounts
from pagein.snapshotter.service import Snapshotter
from pagein.testing.containerd import Containerd

sys.path.insert(0, str(Path(__file__).parent / "cli"))

CONFIG = """\
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[proxy_plugins.pagein]
type = "snapshot"
address = "{socket}"
"""


class SnapshotterNode:
    """The snapshotter runs in this process; containerd beside it. ``with`` owns both."""

    def __init__(self, folder: Path, images: ImageMounts) -> None:
        self.folder = folder
        self.root = folder / "pagein"
        self.events: list[Event] = []
        self._images = images
        self._socket = folder / "snapshotter.sock"
        self.containerd = Containerd(folder / "node", CONFIG.format(socket=self._socket))

    def start_snapshotter(self) -> None:
        self.snapshotter = Snapshotter(self.root, self._images, observer=self.events.append)
        self.snapshotter.ensure()
        self._server = SnapshotsServer(self.snapshotter, self._socket)
        self._server.start()

    def stop_snapshotter(self) -> None:
        self._server.stop()
        self.snapshotter.close()

    def __enter__(self) -> SnapshotterNode:
        self.start_snapshotter()
        try:
            self.containerd.__enter__()
        except BaseException:
            self.stop_snapshotter()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.containerd.close()
        self.stop_snapshotter()

    def ctr(self, *words: str | Path, namespace: str = "default") -> str:
        """Run ctr; return what it prints. AssertionError with its words where it fails."""
        command = [*self.containerd.ctr("--namespace", namespace), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def directories(self) -> list[str]:
        return sorted(path.name for path in (self.root / "snapshots").iterdir())
