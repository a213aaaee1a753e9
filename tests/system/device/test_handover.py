"""A device file whose server was killed goes on with the next one: readers only wait."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from device_images import MemoryImage

from pagein.device.backends import ServedFiles
from pagein.device.fuse_server import mount_fuse_file, open_fuse_device
from pagein.device.handover import ask_again, has_request, is_connected
from pagein.device.mount import unmount
from pagein.device.reply_pool import ReplyPool
from pagein.wire import fuse

pytestmark = pytest.mark.root
WAIT_S = 20

DYING = """
import sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from device_images import MissImage
from pagein.device.fuse_server import FuseServer

def never(offset):
    print("asked", flush=True)
    threading.Event().wait()

FuseServer(int(sys.argv[1]), MissImage(bytes(1 << 20), never)).serve()
"""


def start_dying_server(descriptor: int) -> subprocess.Popen[str]:
    """Serve zeros, in a process that never answers a read."""
    here = str(Path(__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-c", DYING, str(descriptor), here],
        pass_fds=[descriptor],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_read_that_a_killed_server_left_is_answered_by_the_next(tmp_path: Path):
    data = os.urandom(1 << 20)
    path = tmp_path / "device"
    path.touch()
    descriptor = open_fuse_device()
    mount_fuse_file(descriptor, path)
    found: list[bytes] = []
    with start_dying_server(descriptor) as server:
        reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
        reader.start()
        assert server.stdout is not None
        assert server.stdout.readline() == "asked\n"
        server.kill()
    assert is_connected(descriptor)
    assert ask_again(descriptor, fuse.WANTED)
    assert has_request(descriptor)
    files = ServedFiles(tmp_path)
    files.adopt(descriptor, MemoryImage(data), "device")
    reader.join(WAIT_S)
    assert found == [data]
    unmount(path)
    assert files.wait(WAIT_S)


def test_a_kernel_that_cannot_send_again_is_not_asked(tmp_path: Path):
    with (tmp_path / "file").open("wb") as file:
        assert not ask_again(file.fileno(), fuse.InitFlag.ASYNC_DIO)
    assert (tmp_path / "file").read_bytes() == b""


def test_a_descriptor_whose_file_is_unmounted_is_no_longer_connected(tmp_path: Path):
    ended = threading.Event()
    files = ServedFiles(tmp_path, on_end=ended.set)
    path = files.serve(MemoryImage(bytes(4096)), "device")
    assert path.read_bytes() == bytes(4096)
    assert fuse.InitFlag.HAS_RESEND in files.agreed
    kept = os.dup(files.descriptors["device"])
    assert is_connected(kept)
    files.hide()
    assert ended.wait(WAIT_S)
    assert files.wait(WAIT_S)
    assert not is_connected(kept)
    os.close(kept)


def test_reply_threads_end_when_nothing_waits():
    pool = ReplyPool(4, idle_s=0.01)
    go, running = threading.Event(), threading.Barrier(5)

    def work() -> None:
        running.wait(WAIT_S)
        go.wait(WAIT_S)

    for _ in range(4):
        pool.submit(work)
    running.wait(WAIT_S)
    done = threading.Event()
    pool.submit(done.set)  # no thread is left for it
    assert not done.is_set()
    go.set()
    assert done.wait(WAIT_S)
    while any(thread.name == "demand" for thread in threading.enumerate()):
        threading.Event().wait(0.01)
    again = threading.Event()
    pool.submit(again.set)
    assert again.wait(WAIT_S)
    pool.finish()


def test_what_has_not_begun_when_the_pool_finishes_is_dropped():
    pool = ReplyPool(1)
    go, begun, dropped = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait(WAIT_S)

    pool.submit(work)
    assert begun.wait(WAIT_S)
    pool.submit(dropped.set)
    threading.Timer(0.05, go.set).start()
    pool.finish()
    assert not dropped.is_set()
