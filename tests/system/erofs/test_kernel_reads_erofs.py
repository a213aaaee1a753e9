"""The kernel and fsck.erofs read what our writer writes: every attribute and byte is compared with
the model that the tree was built from."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from kernel_mount import erofs_mount

from pagein.format.erofs.check import check_metadata
from pagein.format.erofs.read import ErofsReader
from pagein.format.erofs.write import write_metadata
from pagein.format.tree import Node, NodeKind, walk
from pagein.testing.trees import SECTOR_SIZE, Sample, directory, odd_sample

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

TYPES = {
    NodeKind.FILE: stat.S_IFREG,
    NodeKind.DIRECTORY: stat.S_IFDIR,
    NodeKind.CHAR_DEVICE: stat.S_IFCHR,
    NodeKind.BLOCK_DEVICE: stat.S_IFBLK,
    NodeKind.FIFO: stat.S_IFIFO,
    NodeKind.SOCKET: stat.S_IFSOCK,
    NodeKind.SYMLINK: stat.S_IFLNK,
}


def write(sample: Sample) -> bytes:
    sizes = {"hot_blocks": sample.hot_blocks, "data_blocks": sample.data_blocks}
    metadata = write_metadata(sample.root, sector_size=SECTOR_SIZE, **sizes)
    check_metadata(metadata, sector_size=SECTOR_SIZE, **sizes)
    return metadata


def store_split(sample: Sample, folder: Path) -> tuple[Path, list[Path]]:
    (folder / "metadata").write_bytes(write(sample))
    parts = [(folder / "hot", sample.hot), (folder / "data", sample.data)]
    for path, data in parts:
        path.write_bytes(data)
    return folder / "metadata", [path for path, data in parts if data]


def store_flat(sample: Sample, folder: Path) -> Path:
    metadata = write(sample)
    padding = bytes(-len(metadata) % SECTOR_SIZE)
    (folder / "flat").write_bytes(metadata + padding + sample.hot + sample.data)
    return folder / "flat"


def link_counts(root: Node) -> dict[Node, int]:
    counts: dict[Node, int] = {}
    for _, node in walk(root):
        below = sum(child.is_directory for child in node.children.values())
        counts[node] = 2 + below if node.is_directory else counts.get(node, 0) + 1
    return counts


def below(folder: Path, path: bytes) -> bytes:
    return bytes(folder) + b"/" + path


def attributes(path: bytes) -> dict[bytes, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {os.fsencode(n): os.getxattr(path, n, follow_symlinks=False) for n in names}


def expected_stat(node: Node, links: int) -> tuple[object, ...]:
    size = {NodeKind.FILE: node.size, NodeKind.SYMLINK: len(node.target)}
    device = os.makedev(*node.device) if node.device != (0, 0) else 0
    return (
        *(TYPES[node.kind] | node.mode, node.uid, node.gid, node.mtime_ns, links, device),
        size.get(node.kind),
    )


def found_stat(found: os.stat_result) -> tuple[object, ...]:
    sized = stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)
    return (
        *(found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, found.st_nlink),
        *(found.st_rdev, found.st_size if sized else None),
    )


def assert_content(path: bytes, size: int, pieces: list[tuple[int, bytes]]) -> None:
    with open(path, "rb") as file:
        if size < 1 << 22:
            expected = bytearray(size)
            for offset, piece in pieces:
                expected[offset : offset + len(piece)] = piece
            assert file.read() == expected, path
            return
        for offset, piece in pieces:
            file.seek(offset)
            assert file.read(1 << 16) == (piece + bytes(1 << 16))[: min(1 << 16, size - offset)]
        for offset in range(5 << 20, size, 50 << 20):
            file.seek(offset)
            assert not any(file.read(1 << 16)), (path, offset)


def assert_same(sample: Sample, mounted: Path, metadata: bytes | None = None) -> None:
    reader = ErofsReader(metadata) if metadata else None
    links = link_counts(sample.root)
    numbers: dict[Node, int] = {}
    for path, node in walk(sample.root):
        place = below(mounted, path)
        found = os.lstat(place)
        assert found_stat(found) == expected_stat(node, links[node]), path
        assert numbers.setdefault(node, found.st_ino) == found.st_ino
        if reader:
            assert reader.lookup(path, follow=False).nid == found.st_ino
        assert attributes(place) == node.xattrs, path
        match node.kind:
            case NodeKind.DIRECTORY:
                assert sorted(os.listdir(place)) == sorted(node.children)
            case NodeKind.SYMLINK:
                assert os.readlink(place) == node.target  # noqa: PTH115
            case NodeKind.FILE:
                assert_content(place, node.size, sample.contents[node])
            case _:
                pass
    assert len(set(numbers.values())) == len(numbers)


@pytest.mark.parametrize("hot", [False, True])
def test_the_kernel_shows_an_odd_tree_split_into_files(tmp_path: Path, hot: bool) -> None:
    sample = odd_sample(hot=hot)
    assert (sample.hot_blocks > 0) is hot
    primary, devices = store_split(sample, tmp_path)
    with erofs_mount(primary, tmp_path / "mounted", devices) as mounted:
        assert_same(sample, mounted, primary.read_bytes())


@pytest.mark.parametrize("hot", [False, True])
def test_the_kernel_shows_an_odd_tree_from_one_flat_file(tmp_path: Path, hot: bool) -> None:
    sample = odd_sample(hot=hot)
    with erofs_mount(store_flat(sample, tmp_path), tmp_path / "mounted", []) as mounted:
        assert_same(sample, mounted)


def test_the_kernel_finds_every_name_of_a_directory_with_100000(tmp_path: Path) -> None:
    sample = Sample(directory())
    for index in range(100_000):
        sample.root.children[b"%x" % (index * 7919)] = Node(NodeKind.FIFO)
    primary, devices = store_split(sample, tmp_path)
    with erofs_mount(primary, tmp_path / "mounted", devices) as mounted:
        assert sorted(os.listdir(bytes(mounted))) == sorted(sample.root.children)
        for name in list(sample.root.children)[::97]:
            assert stat.S_ISFIFO(os.lstat(below(mounted, name)).st_mode)
        assert not os.path.lexists(mounted / "absent")


def test_an_empty_tree_mounts_without_any_data(tmp_path: Path) -> None:
    sample = Sample(directory(0o751))
    primary, devices = store_split(sample, tmp_path)
    assert devices == []
    with erofs_mount(primary, tmp_path / "mounted", []) as mounted:
        assert_same(sample, mounted)


def fsck(sample: Sample, folder: Path, *options: str) -> None:
    """fsck.erofs 1.5 reads chunks from the file of their device slot, and plain files from the
    primary one: so it gets the flat file, and the parts besides."""
    if not shutil.which("fsck.erofs"):
        pytest.skip("needs fsck.erofs")
    devices = [f"--device={device}" for device in store_split(sample, folder)[1]]
    command = ["fsck.erofs", *options, *devices, str(store_flat(sample, folder))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("hot", [False, True])
def test_fsck_finds_no_fault(tmp_path: Path, hot: bool) -> None:
    fsck(odd_sample(hot=hot), tmp_path)


def test_fsck_extracts_what_was_written(tmp_path: Path) -> None:
    sample = odd_sample(hot=True)
    # fsck.erofs 1.5 spends its time on 5 GiB of holes, and loses those at the end of a file.
    del sample.root.children[b"sparse"], sample.root.children[b"only-a-hole"]
    target = tmp_path / "extracted"
    fsck(sample, tmp_path, f"--extract={target}")
    for path, node in walk(sample.root):
        if node.kind is NodeKind.FILE:
            assert_content(below(target, path), node.size, sample.contents[node])
        elif node.kind is NodeKind.SYMLINK:
            assert os.readlink(below(target, path)) == node.target  # noqa: PTH115
