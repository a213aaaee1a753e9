"""What the server promises to the kernel: each request answered, with the right bytes or EIO."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from device_images import FileImage, MemoryImage, MissImage, Tree, read_files

from pagein.device.backends import ImageMount, ServedFiles, mount_image
from pagein.device.block import BlockImage
from pagein.device.fuse_server import FuseServer, mount_fuse_file, open_fuse_device
from pagein.device.mount import unmount
from pagein.errors import DeviceError, RemoteUnavailableError
from pagein.events import DeviceRead, DeviceReadFailed, Event, Observer, ignore
from pagein.store.source import FileSlice

pytestmark = pytest.mark.root
WAIT_S = 20


def mount_split(
    tree: Tree, blob: BlockImage, target: Path, observer: Observer = ignore
) -> ImageMount:
    metadata = target.parent / "metadata"
    metadata.write_bytes(tree.metadata)
    return mount_image(metadata, {"data": blob}, target, target.parent, observer=observer)


def end(mounted: ImageMount) -> None:
    unmount(mounted.target)
    assert mounted.files.wait(WAIT_S), "the server outlived its mount"


@pytest.fixture(params=["memory", "file", "miss"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make_image(kind: str, data: bytes, folder: Path) -> BlockImage:
    match kind:
        case "memory":
            return MemoryImage(data)
        case "file":
            return FileImage(data, folder / "sector")
    return MissImage(data)


def test_every_byte_of_the_device_file_can_be_read(kind: str, tmp_path: Path):
    data = random.Random(3).randbytes(5 << 20)
    files = ServedFiles(tmp_path)
    path = files.serve(make_image(kind, data, tmp_path), "device")
    assert path.stat().st_size == len(data)
    assert path.stat().st_mode == 0o100400
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for offset, length in [(0, 1), (4095, 2), (0, 4096), (1, 1 << 20), (12288, (3 << 20) + 5)]:
            assert os.pread(descriptor, length, offset) == data[offset : offset + length]
        assert os.pread(descriptor, 8192, len(data) - 10) == data[-10:]
        assert os.pread(descriptor, 8192, len(data)) == b""
        assert os.pread(descriptor, 8192, 1 << 50) == b""
        assert os.pread(descriptor, 8 << 20, 0) == data
    finally:
        os.close(descriptor)
    with pytest.raises(OSError, match="Read-only"):
        path.open("r+b")
    files.close()
    assert not path.exists()


def test_the_tree_is_the_one_that_went_in(kind: str, tree: Tree, target: Path, tmp_path: Path):
    image = make_image(kind, tree.blob, tmp_path)
    events: list[Event] = []
    mounted = mount_split(tree, image, target, events.append)
    assert read_files(target, list(tree.files)) == tree.files
    end(mounted)
    reads = [event for event in events if isinstance(event, DeviceRead)]
    assert len(reads) == len(events) > 0
    assert {read.hit for read in reads} == {kind != "miss"}


def test_a_sector_that_is_not_in_memory_is_read_from_the_disk(
    tree: Tree, target: Path, tmp_path: Path
):
    image = FileImage(tree.blob, tmp_path / "sector")
    mounted = mount_split(tree, image, target)
    os.fsync(image.file.fd)
    os.posix_fadvise(image.file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert read_files(target, list(tree.files)) == tree.files
    end(mounted)


def test_a_cached_sector_that_was_cut_short_is_asked_of_the_image(
    tree: Tree, target: Path, tmp_path: Path
):
    image = FileImage(tree.blob, tmp_path / "sector")
    os.truncate(tmp_path / "sector", 8192)
    mounted = mount_split(tree, image, target)
    assert read_files(target, list(tree.files)) == tree.files
    end(mounted)


def test_thirty_two_slow_reads_wait_side_by_side(tree: Tree, target: Path):
    everyone = threading.Barrier(32, timeout=WAIT_S)
    seen: set[int] = set()

    def wait_for_all(offset: int) -> None:
        if len(seen) < 32:
            seen.add(offset)
            everyone.wait()

    image = MissImage(tree.blob, wait_for_all)
    mounted = mount_split(tree, image, target)
    names = [f"dir/small-{number}" for number in range(32)]
    with ThreadPoolExecutor(32) as readers:
        found = dict(
            zip(names, readers.map(lambda n: (target / n).read_bytes(), names), strict=True)
        )
    assert found == {name: tree.files[name] for name in names}
    assert image.most_waiting == 32
    end(mounted)


def test_reads_that_wait_hold_up_none_that_need_not(tree: Tree, target: Path):
    release = threading.Event()
    first, second = tree.files["file-300001"], tree.files["file-65536"]
    start = tree.blob.index(first[:4096])

    class HalfHere(MissImage):
        def peek(self, offset: int, length: int, /):
            here = not start <= offset < start + len(first)
            return self.data[offset : offset + length] if here else None

    image = HalfHere(tree.blob, lambda offset: release.wait(WAIT_S) and None)
    mounted = mount_split(tree, image, target)
    with ThreadPoolExecutor(80) as readers:
        waiting = [readers.submit(lambda: (target / "file-300001").read_bytes()) for _ in range(80)]
        assert (target / "file-65536").read_bytes() == second
        assert not any(future.done() for future in waiting)
        release.set()
        assert all(future.result() == first for future in waiting)
    end(mounted)


@pytest.mark.parametrize(
    "error",
    [RemoteUnavailableError("gone"), RuntimeError("bug"), SystemExit(3), MemoryError()],
    ids=lambda error: type(error).__name__,
)
def test_an_image_that_raises_gives_eio_and_later_the_right_bytes(
    error: BaseException, tree: Tree, target: Path
):
    broken = True

    def fail(offset: int) -> None:
        if broken:
            raise error

    events: list[Event] = []
    mounted = mount_split(tree, MissImage(tree.blob, fail), target, events.append)
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            (target / "file-65536").read_bytes()
        assert caught.value.errno in (errno.EIO, errno.ENOMEM)
    failures = [event for event in events if isinstance(event, DeviceReadFailed)]
    assert len(failures) >= 3
    assert type(error).__name__ in failures[0].reason
    broken = False
    assert read_files(target, list(tree.files)) == tree.files
    end(mounted)


def test_an_image_that_raises_when_peeked_at_gives_eio(tree: Tree, target: Path):
    class Broken(MemoryImage):
        broken = True

        def peek(self, offset: int, length: int, /) -> memoryview:
            if self.broken:
                raise RuntimeError("bug")
            return memoryview(self.data)[offset : offset + length]

    image = Broken(tree.blob)
    mounted = mount_split(tree, image, target)
    with pytest.raises(OSError, match="Input/output error"):
        (target / "file-4096").read_bytes()
    image.broken = False
    assert (target / "file-4096").read_bytes() == tree.files["file-4096"]
    end(mounted)


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_wrong_count_of_bytes_gives_eio(extra: int, tree: Tree, target: Path):
    class Wrong(MemoryImage):
        def peek(self, offset: int, length: int, /) -> bytes:
            return bytes(length + extra)

    mounted = mount_split(tree, Wrong(tree.blob), target)
    with pytest.raises(OSError, match="Input/output error"):
        (target / "file-4096").read_bytes()
    end(mounted)


def test_an_observer_that_raises_costs_no_reply(tree: Tree, target: Path):
    def broken(event: Event) -> None:
        raise RuntimeError("observer")

    mounted = mount_split(tree, MissImage(tree.blob), target, broken)
    assert read_files(target, list(tree.files)) == tree.files
    end(mounted)


def test_a_file_can_be_mapped(tree: Tree, target: Path):
    # By another process: a page fault does not give up the interpreter lock that the server needs.
    code = (
        "import mmap, sys\nwith open(sys.argv[1], 'rb') as f:\n"
        " m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n sys.stdout.buffer.write(m[:])"
    )
    mounted = mount_split(tree, MissImage(tree.blob), target)
    command = [sys.executable, "-I", "-c", code, target / "file-3145728"]
    assert (
        subprocess.run(command, check=True, capture_output=True).stdout
        == (tree.files["file-3145728"])
    )
    end(mounted)


def test_unmounting_while_a_read_waits_is_refused_and_a_lazy_one_lets_it_finish(
    tree: Tree, target: Path
):
    release, reached = threading.Event(), threading.Event()

    def wait(offset: int) -> None:
        reached.set()
        release.wait(WAIT_S)

    mounted = mount_split(tree, MissImage(tree.blob, wait), target)
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit((target / "file-65536").read_bytes)
        assert reached.wait(WAIT_S)
        with pytest.raises(DeviceError, match="cannot unmount") as caught:
            unmount(target)
        assert caught.value.errno == errno.EBUSY
        unmount(target, lazy=True)
        assert not mounted.files.wait(0.05)
        release.set()
        assert read.result(WAIT_S) == tree.files["file-65536"]
    assert mounted.files.wait(WAIT_S)


def test_a_reader_that_is_killed_while_it_waits_leaves_the_server_well(tree: Tree, target: Path):
    release, reached = threading.Event(), threading.Event()

    def wait(offset: int) -> None:
        reached.set()
        release.wait(WAIT_S)

    mounted = mount_split(tree, MissImage(tree.blob, wait), target)
    with subprocess.Popen(["cat", target / "file-65536"], stdout=subprocess.DEVNULL) as reader:
        assert reached.wait(WAIT_S)
        reader.send_signal(signal.SIGKILL)
        release.set()
    assert read_files(target, list(tree.files)) == tree.files
    end(mounted)


def test_a_stopped_server_gives_errors_and_no_hangs(tree: Tree, target: Path):
    mounted = mount_split(tree, MissImage(tree.blob), target)
    assert (target / "file-4096").read_bytes() == tree.files["file-4096"]
    mounted.files.close()
    mounted.files.close()
    with pytest.raises(OSError, match="Input/output error"):
        (target / "file-300001").read_bytes()
    unmount(target)


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("splice", [True, False])
def test_the_last_close_of_the_device_file_is_told(
    readers: int, splice: bool, tree: Tree, tmp_path: Path
):
    closed = threading.Event()
    image = FileImage(tree.flat, tmp_path / "sector")
    path = tmp_path / "device"
    path.touch()
    descriptor = open_fuse_device()
    server = FuseServer(
        descriptor, image, reader_threads=readers, splice=splice, on_last_release=closed.set
    )
    mount_fuse_file(descriptor, path)
    thread = threading.Thread(target=server.serve)
    thread.start()
    with path.open("rb") as first:
        with path.open("rb") as second:
            assert second.read() == tree.flat
        assert not closed.is_set()
        assert first.read() == tree.flat
    assert closed.wait(WAIT_S)
    unmount(path)
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_a_slice_that_starts_amid_a_page_is_spliced_whole(tmp_path: Path):
    data = random.Random(5).randbytes(2 << 20)

    class Shifted(FileImage):
        def peek(self, offset: int, length: int, /) -> FileSlice:
            return FileSlice(self.file, offset + 77, length)

    image = Shifted(bytes(77) + data, tmp_path / "sector")
    image.size = len(data)
    files = ServedFiles(tmp_path)
    path = files.serve(image, "device")
    assert path.read_bytes() == data
    files.close()


def test_bytes_given_to_the_page_cache_are_read_without_a_request(tmp_path: Path):
    data = random.Random(5).randbytes(3 << 20)
    asked: list[int] = []
    files = ServedFiles(tmp_path)
    path = files.serve(MissImage(data, asked.append), "device", cached=True)
    path.stat()
    assert files.store("device", 1 << 20, data[1 << 20 : 2 << 20])
    with path.open("rb", buffering=0) as device:
        assert os.pread(device.fileno(), 1 << 20, 1 << 20) == data[1 << 20 : 2 << 20]
        assert asked == []
        assert os.pread(device.fileno(), 3 << 20, 0) == data
        assert asked
    files.close()
    assert not files.store("device", 0, data[:4096])


def test_what_a_cached_file_gave_once_is_not_asked_for_again(tmp_path: Path):
    data = random.Random(6).randbytes(1 << 20)
    asked: list[int] = []
    files = ServedFiles(tmp_path)
    path = files.serve(MissImage(data, asked.append), "device", cached=True)
    for _ in range(3):
        assert path.read_bytes() == data
    once = len(asked)
    assert path.read_bytes() == data
    assert len(asked) == once
    files.close()
