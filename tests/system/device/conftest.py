"""Every test here must give back its threads, descriptors, mounts and loop devices."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_images import Tree, make_tree

from pagein.device.mount import mount_table


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs root and /dev/fuse")
    if shutil.which("mkfs.erofs") is None:
        pytest.skip("needs mkfs.erofs")
    return make_tree(tmp_path_factory.mktemp("tree"))


def loops_of(folder: Path) -> list[str]:
    backing = Path("/sys/block").glob("loop*/loop/backing_file")
    return [path.read_text() for path in backing if str(folder) in path.read_text()]


@pytest.fixture(autouse=True)
def nothing_leaks(tree: Tree, tmp_path: Path) -> Iterator[None]:
    threads = set(threading.enumerate())
    descriptors = set(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + 10
    while loops_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)  # udev may hold a loop device open for a moment
    assert not loops_of(tmp_path)
    assert [entry for entry in mount_table() if entry.target.startswith(str(tmp_path))] == []
    assert set(threading.enumerate()) <= threads
    assert set(os.listdir("/proc/self/fd")) <= descriptors  # others may close late


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder
