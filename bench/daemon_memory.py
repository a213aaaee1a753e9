"""Resident memory of ``pagein daemon``: idle, and with many images mounted and read from.

    python bench/daemon_memory.py --images-mounted 50

The images are small, so that what grows is what an image costs beside its metadata.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from pathlib import Path

from harness import Series, save, workspace
from kube import DaemonUnderTest, NodeUnderTest, write_layout
from pagein.daemon.client import mount_image
from pagein.daemon.config import Config
from pagein.daemon.images import Images
from pagein.daemon.mount_server import MountOptions
from pagein.daemon.paths import Paths
from pagein.daemon.wiring import Node
from pagein.testing.layer_corpus import directory, file, tar_layer

DATA = hashlib.shake_128(b"what every image holds").digest(300_000)


def resident_kb(pid: int) -> int:
    """VmRSS of a process, in KiB (proc(5))."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def mount_images(node: NodeUnderTest, count: int) -> None:
    """Write and mount images of different digests, and read a file of each."""
    paths = Paths(node.root / "lib", node.root / "run")
    images = Images(Node(paths, Config()))
    layers = (tar_layer(directory(b"d/"), file(b"d/f", DATA)),)
    for number in range(count):
        layout = node.folder / f"image{number}"
        write_layout(layout, layers, {"Labels": {"number": str(number)}})
        found = images.require(
            f"oci:{layout}:v1", platform=None, progress=lambda *_: None, say=lambda _: None
        )
        target = node.target()
        mount_image(images, found, MountOptions(target=target))
        if (target / "d/f").read_bytes() != DATA:
            raise SystemExit(f"{target}: not what was packed")


def main() -> None:
    """Measure once; print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images-mounted", type=int, default=50, metavar="N")
    count = parser.parse_args().images_mounted
    with workspace() as folder:
        daemon = DaemonUnderTest(NodeUnderTest(folder))
        daemon.start()
        try:
            idle = resident_kb(daemon.pid)
            mount_images(daemon.node, count)
            full = resident_kb(daemon.pid)
            all_of_it = sum(resident_kb(pid) for pid in daemon.node.processes())
        finally:
            daemon.end()
    series = [
        Series("idle", "KiB", [idle]),
        Series(f"{count} images mounted", "KiB", [full]),
        Series("more for each image", "KiB", [(full - idle) / count]),
        Series("the holder, which starts the daemon", "KiB", [all_of_it - full]),
    ]
    for one in series:
        print(f"{one.name:36} {one.median:8.0f} KiB")
    print(save("daemon_memory", series))


if __name__ == "__main__":
    main()
