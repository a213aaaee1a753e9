"""Split trees on either backend, many at once, and what mount(2) refuses."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from device_images import MemoryImage, MissImage, Tree, read_files

from pagein.device import backends
from pagein.device.backends import Backend, ServedFiles, mount_image
from pagein.device.mount import (
    is_mount_point,
    mount_erofs,
    mount_overlay,
    mount_table,
    unmount,
)
from pagein.errors import DeviceError
from pagein.events import DeviceRead, Event

pytestmark = pytest.mark.root
WAIT_S = 20


@pytest.fixture
def metadata(tree: Tree, tmp_path: Path) -> Path:
    path = tmp_path / "metadata"
    path.write_bytes(tree.metadata)
    return path


@pytest.mark.parametrize("backend", ["fuse", "loop", "auto"])
@pytest.mark.parametrize("local", [True, False])
def test_each_backend_shows_the_same_tree_and_ends_with_a_plain_umount(
    backend: Backend, local: bool, tree: Tree, metadata: Path, target: Path, tmp_path: Path
):
    blob = tmp_path / "blob"
    blob.write_bytes(tree.blob)
    part = blob if local else MissImage(tree.blob)
    mounted = mount_image(metadata, {"data": part}, target, tmp_path, backend=backend)
    assert mounted.backend == ("fuse" if backend == "auto" else backend)
    assert [entry.kind for entry in mount_table() if str(tmp_path) in entry.target] == ["erofs"]
    assert not (tmp_path / "data").exists()
    assert read_files(target, list(tree.files)) == tree.files
    unmount(target)
    assert mounted.files.wait(WAIT_S)


def test_auto_falls_back_to_loop_devices_where_erofs_wants_a_block_device(
    tree: Tree, metadata: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def as_before_6_12(first: Path, *rest, **options) -> list[str]:
        if not first.is_block_device():
            raise DeviceError("cannot mount", errno=errno.ENOTBLK)
        return mount_erofs(first, *rest, **options)

    monkeypatch.setattr(backends, "mount_erofs", as_before_6_12)
    with pytest.raises(DeviceError, match="cannot mount"):
        mount_image(metadata, {"data": MemoryImage(tree.blob)}, target, tmp_path, backend="fuse")
    mounted = mount_image(metadata, {"data": MemoryImage(tree.blob)}, target, tmp_path)
    assert mounted.backend == "loop"
    assert read_files(target, list(tree.files)) == tree.files
    unmount(target)
    assert mounted.files.wait(WAIT_S)


def test_a_flat_device_mounts_with_no_options(tree: Tree, target: Path, tmp_path: Path):
    files = ServedFiles(tmp_path)
    mount_erofs(files.serve(MissImage(tree.flat), "flat"), target, [])
    files.hide()
    assert read_files(target, list(tree.files)) == tree.files
    unmount(target)
    assert files.wait(WAIT_S)


def test_fifty_mounts_at_once(tree: Tree, metadata: Path, tmp_path: Path):
    def mount_and_read(number: int):
        folder = tmp_path / str(number)
        target = folder / "target"
        target.mkdir(parents=True)
        mounted = mount_image(metadata, {"data": MissImage(tree.blob)}, target, folder)
        assert read_files(target, ["file-65536", "dir/small-7"]) == {
            name: tree.files[name] for name in ("file-65536", "dir/small-7")
        }
        return mounted

    with ThreadPoolExecutor(10) as pool:
        mounts = list(pool.map(mount_and_read, range(50)))
        found = list(
            pool.map(lambda mounted: (mounted.target / "file-300001").read_bytes(), mounts)
        )
    assert found == [tree.files["file-300001"]] * 50
    for mounted in mounts:
        unmount(mounted.target)
    assert all(mounted.files.wait(WAIT_S) for mounted in mounts)


@pytest.mark.parametrize("backend", ["fuse", "loop"])
@pytest.mark.parametrize("kilobytes", [64, 512])
def test_read_ahead_is_what_was_asked_for(
    backend: Backend, kilobytes: int, tree: Tree, metadata: Path, target: Path, tmp_path: Path
):
    events: list[Event] = []
    mounted = mount_image(
        metadata,
        {"data": MemoryImage(tree.blob)},
        target,
        tmp_path,
        backend=backend,
        read_ahead_kb=kilobytes,
        observer=events.append,
    )
    descriptor = os.open(target / "file-3145728", os.O_RDONLY)
    for offset in range(0, 3 << 20, 4096):
        os.pread(descriptor, 4096, offset)
    os.close(descriptor)
    unmount(target)
    assert mounted.files.wait(WAIT_S)
    longest = max(event.length for event in events if isinstance(event, DeviceRead))
    assert longest == kilobytes * 1024


@pytest.mark.parametrize("backend", ["fuse", "loop", "auto"])
def test_what_cannot_be_mounted_leaves_nothing_behind(
    backend: Backend, tree: Tree, metadata: Path, target: Path, tmp_path: Path
):
    metadata.write_bytes(bytes(8192))
    with pytest.raises(DeviceError, match="cannot mount erofs at"):
        mount_image(metadata, {"data": MemoryImage(tree.blob)}, target, tmp_path, backend=backend)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metadata", "target"]


def test_a_missing_folder_or_part_is_one_clear_error(
    tree: Tree, metadata: Path, target: Path, tmp_path: Path
):
    with pytest.raises(DeviceError, match="No such file") as caught:
        mount_image(metadata, {"data": tmp_path / "absent"}, target, tmp_path)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(DeviceError, match="No such file"):
        mount_image(metadata, {"data": MemoryImage(tree.blob)}, tmp_path / "no", tmp_path)


def test_a_folder_with_odd_characters_is_mounted_at_and_found_in_the_mount_table(
    tree: Tree, metadata: Path, tmp_path: Path
):
    target = tmp_path / "a b\tc\nd\\e:f,g#h"
    target.mkdir()
    mounted = mount_image(metadata, {"data": MemoryImage(tree.blob)}, target, tmp_path)
    assert is_mount_point(target)
    unmount(target)
    assert not is_mount_point(target)
    assert mounted.files.wait(WAIT_S)


def test_an_overlay_takes_folders_with_odd_characters(
    tree: Tree, metadata: Path, target: Path, tmp_path: Path
):
    odd = tmp_path / "a:b,c\\d e"
    upper, work, merged = odd / "upper", odd / "work", odd / "merged"
    for folder in (upper, work, merged, odd / "lower"):
        folder.mkdir(parents=True)
    mounted = mount_image(metadata, {"data": MissImage(tree.blob)}, odd / "lower", tmp_path)
    try:
        mount_overlay(odd / "lower", upper, work, merged)
        unmount(odd / "lower", lazy=True)
        (merged / "file-4096").write_bytes(b"changed")
        assert (merged / "file-4097").read_bytes() == tree.files["file-4097"]
        assert (upper / "file-4096").read_bytes() == b"changed"
    finally:
        for place in (merged, odd / "lower"):
            if is_mount_point(place):
                unmount(place)
    assert mounted.files.wait(WAIT_S)
