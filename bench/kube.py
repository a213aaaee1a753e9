"""Kubernetes nodes for the benchmarks: stock containerd with its CRI on, without and with pagein.

What the system tests use to do kubelet's part is used here, too.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import ROOT

sys.path += [str(ROOT / "tests" / "system" / name) for name in (".", "cli", "daemon")]

import cri_client  # isort: skip
from cri_client import Cri  # isort: skip
from cri_node import CRI, DaemonUnderTest, KubeNode, NodeUnderTest, write_pod_images  # isort: skip
from node_image import push, write_layout  # isort: skip

from pagein.testing.containerd import Containerd

__all__ = [
    "NODES",
    "DaemonUnderTest",
    "Node",
    "NodeUnderTest",
    "publish_pause",
    "wait_for_output",
    "write_layout",
]

cri_client.DEADLINE_S = 3600.0  # a classical pull of several GB is one call
_POLL_S = 0.001


@dataclass(frozen=True)
class Node:
    """A node that is up, with an empty store; ``kube`` is None where it has no pagein."""

    cri: Cri
    kube: KubeNode | None

    def fetched(self) -> tuple[int, int]:
        """Count the sectors that the daemon fetched, and their bytes as stored in the registry."""
        assert self.kube is not None
        images = self.kube.daemon.status()["images"]
        return sum(one["sectors_fetched"] for one in images), sum(
            one["bytes_fetched"] for one in images
        )

    def distinct_sectors(self, reference: str) -> int:
        """Count the sectors of an image in the cache, which names each by its digest."""
        assert self.kube is not None
        facts = self.kube.node("inspect", "--json", reference).stdout
        return int(json.loads(facts)["cached_sectors"])


def publish_pause(folder: Path, host: str) -> str:
    """Push an image for sandboxes; return its name."""
    reference = f"{host}/pause:v1"
    push(write_pod_images(folder), "pause", reference)
    return reference


@contextlib.contextmanager
def overlayfs(folder: Path, pause: str) -> Iterator[Node]:
    """Run containerd with its own overlayfs snapshotter; all is removed at the end."""
    folder.mkdir(parents=True)
    with Containerd(folder / "containerd", CRI.format(pause=pause)) as containerd:
        cri = Cri(containerd.socket)
        try:
            cri.wait_until_ready()
            yield Node(cri, None)
            for image in cri.ListImages().images:
                cri.RemoveImage(image={"image": image.id})
        finally:
            cri.close()
    shutil.rmtree(folder)


@contextlib.contextmanager
def pagein(folder: Path, pause: str) -> Iterator[Node]:
    """Run containerd and ``pagein daemon`` as its snapshotter; all is removed at the end."""
    folder.mkdir(parents=True)
    with KubeNode(folder, pause) as kube:
        yield Node(kube.cri, kube)
    shutil.rmtree(folder)


NODES: dict[str, Callable[[Path, str], contextlib.AbstractContextManager[Node]]] = {
    "overlayfs": overlayfs,
    "pagein": pagein,
}


def wait_for_output(log: Path) -> None:
    """Wait for the first line of a container's log. Raises RuntimeError where none comes."""
    deadline = time.monotonic() + cri_client.DEADLINE_S
    pause = threading.Event()
    while not (log.exists() and log.stat().st_size):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{log}: no output")
        pause.wait(_POLL_S)
    line = log.read_text()
    if " stdout " not in line.partition("\n")[0]:
        raise RuntimeError(f"the container failed: {line}")
