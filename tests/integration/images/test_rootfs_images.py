"""A directory tree as an image: what GNU tar, Python's tarfile and our own reader find in it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest

from pagein.errors import FormatError, NotFoundError
from pagein.format.merge import LayerMerger
from pagein.format.platforms import Platform
from pagein.format.tar import TarEntry, read_entries
from pagein.format.tree import Node
from pagein.store.rootfs import RootfsRepository
from pagein.testing.tree_snapshot import Seen, of_disk, of_nodes
from pagein.types import ByteRange, Digest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def set_times(top: Path) -> None:
    for number, (folder, directories, files) in enumerate(os.walk(os.fsencode(top), topdown=False)):
        for name in [*files, *directories]:
            mtime_ns = 1_600_000_000_123_456_789 + number
            os.utime(folder + b"/" + name, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
    os.utime(top / "etc", ns=(0, -1_500_000_000))
    os.utime(top, ns=(5, 5))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "rootfs"
    (top / "etc").mkdir(parents=True)
    (top / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (top / "etc/passwd-").hardlink_to(top / "etc/passwd")
    (top / "etc-after").write_bytes(b"")
    (top / "bin").mkdir(mode=0o2755)
    (top / "bin/big").write_bytes(os.urandom(3 << 20) + b"tail")
    (top / "bin/sh").symlink_to("big")
    (top / "bin/link").symlink_to("x" * 4000)
    os.link(top / "bin/sh", top / "bin/sh-again", follow_symlinks=False)
    (top / "\u00fcml\u00e4ut").write_text("u")
    with open(os.fsencode(top) + b"/not-\xff\xfe-utf8\n", "wb") as odd:
        odd.write(b"odd")
    deep = top / ("d" * 200)
    deep.mkdir()
    (deep / ("f" * 255)).write_text("long")
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as left_out:
        here = os.open(top, os.O_RDONLY)
        left_out.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    return top


def layer_of(repository: RootfsRepository) -> tuple[Digest, int]:
    layer = json.loads(repository.only_manifest().data)["layers"][0]
    return Digest.parse(layer["digest"]), layer["size"]


def without_sockets(seen: dict[bytes, Seen]) -> dict[bytes, Seen]:
    return {path: one for path, one in seen.items() if path != b"socket"}


def stream(repository: RootfsRepository) -> bytes:
    digest, size = layer_of(repository)
    with repository.open_blob(digest, size=size) as opened:
        return opened.read()


def merged(data: bytes) -> dict[bytes, Seen]:
    merger = LayerMerger()
    contents: dict[Node, bytes] = {}

    def hashed(entry: TarEntry) -> bytes:
        return hashlib.sha256(b"".join(piece for _, piece in entry.chunks())).digest()

    merger.begin_layer()
    for entry in read_entries(io.BytesIO(data)):
        if (node := merger.add(entry)) is not None:
            contents[node] = hashed(entry)
    merger.end_layer()
    return of_nodes(merger.root, contents)


@needs_root
def test_our_reader_finds_the_tree_that_is_on_the_disk(tree: Path) -> None:
    os.chown(tree / "bin/big", 3_000_000_000, 2_100_000)
    (tree / "bin/big").chmod(0o4755)
    os.setxattr(tree / "bin/big", "user.odd", b"\0\xff\n=binary")
    os.setxattr(
        tree / "bin/big", "security.capability", bytes.fromhex("0100000200200000" + "00" * 12)
    )
    subprocess.run(["setfacl", "-m", "u:1000:r", tree / "etc/passwd"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1000:rx", tree / "etc"], check=True)
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    os.mknod(tree / "disk", 0o60660, os.makedev(259, 300_000))
    set_times(tree)
    assert merged(stream(RootfsRepository(tree))) == without_sockets(of_disk(str(tree)))


@needs_root
def test_gnu_tar_unpacks_the_layer_to_the_same_tree(tree: Path, tmp_path: Path) -> None:
    os.setxattr(tree / "bin/big", "user.odd", b"some text")
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    os.chown(tree / "bin/big", 3_000_000_000, 2_100_000)
    set_times(tree)
    out = tmp_path / "out"
    out.mkdir()
    command = ["tar", "-C", out, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", "-"]
    subprocess.run(command, input=stream(RootfsRepository(tree)), check=True)
    assert of_disk(str(out)) == without_sockets(of_disk(str(tree)))


def test_pythons_tarfile_reads_the_names_and_data(tree: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(stream(RootfsRepository(tree)))) as archive:
        found = {info.name: info for info in archive}
        assert archive.extractfile("bin/big").read() == (tree / "bin/big").read_bytes()
    assert found["d" * 200 + "/" + "f" * 255].isreg()
    assert found["bin/link"].linkname == "x" * 4000
    assert found["etc/passwd-"].linkname == "etc/passwd"
    assert "socket" not in found


def test_the_same_tree_has_the_same_digest_twice(tree: Path) -> None:
    amd64 = Platform("linux", "amd64")
    once, again = (RootfsRepository(tree, amd64).only_manifest() for _ in range(2))
    assert once == again
    assert RootfsRepository(tree).manifest("latest") == RootfsRepository(tree).only_manifest()


def command_of(tree: Path) -> list[str] | None:
    repository = RootfsRepository(tree)
    config = json.loads(repository.only_manifest().data)["config"]["digest"]
    document = json.loads(repository.read_blob(Digest.parse(config), limit=1 << 20))
    return document["config"].get("Cmd")


def test_a_shell_is_the_command_only_where_there_is_one(tmp_path: Path) -> None:
    assert command_of(tmp_path) is None
    (tmp_path / "bin").symlink_to("/usr/bin")
    assert command_of(tmp_path) is None, "this machine's shell is not the tree's"
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/sh").symlink_to("/usr/bin/dash")
    assert command_of(tmp_path) == ["/bin/sh"]
    (tmp_path / "bin").unlink()
    assert command_of(tmp_path) is None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sh").touch()
    assert command_of(tmp_path) == ["/bin/sh"]


def test_a_range_of_the_layer_is_exact(tree: Path) -> None:
    repository = RootfsRepository(tree)
    digest, size = layer_of(repository)
    data = stream(repository)
    assert len(data) == size
    assert repository.read_range(digest, ByteRange(1_000_001, 70_000)) == data[1_000_001:1_070_001]
    with pytest.raises(FormatError, match="ends before byte"):
        repository.read_range(digest, ByteRange(size - 1, 2))


def test_a_tree_that_changes_between_the_passes_is_a_damaged_blob(tree: Path) -> None:
    repository = RootfsRepository(tree)
    layer_of(repository)
    (tree / "etc/passwd").write_text("root:x:0:0::/root:/bin/no\n")
    with pytest.raises(FormatError, match="has digest"):
        stream(repository)


def test_a_name_that_means_a_deletion_is_refused(tree: Path) -> None:
    (tree / "bin/.wh.sh").write_text("")
    with pytest.raises(FormatError, match="means a deletion"):
        RootfsRepository(tree).only_manifest()


def test_a_missing_tree_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no directory"):
        RootfsRepository(tmp_path / "nowhere").only_manifest()
