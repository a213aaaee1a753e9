"""What the EROFS code does that a mount does not show: refusals, bounds, lookups, determinism."""

import struct
import subprocess
import sys

import pytest

from pagein.errors import FormatError, NotFoundError
from pagein.format.dump import dump_tree, parse_dump
from pagein.format.erofs.check import check_metadata
from pagein.format.erofs.read import ErofsReader, Extent, read_tree
from pagein.format.erofs.superblock import checksum
from pagein.format.erofs.write import write_metadata
from pagein.format.tree import HOLE, Chunked, Flat, Node, NodeKind
from pagein.testing.trees import SECTOR_SIZE, describe, directory, odd_sample

SECTOR_BLOCKS = SECTOR_SIZE // 4096
SIZES = {"sector_size": SECTOR_SIZE, "hot_blocks": SECTOR_BLOCKS, "data_blocks": 2 * SECTOR_BLOCKS}


def link(target: bytes) -> Node:
    return Node(NodeKind.SYMLINK, 0o777, target=target)


def root_with(**children: Node) -> Node:
    root = directory()
    root.children = {name.encode(): child for name, child in children.items()}
    return root


def image(root: Node) -> bytes:
    return write_metadata(root, **SIZES)


def patched(metadata: bytes, offset: int, data: bytes) -> bytes:
    changed = bytearray(metadata)
    changed[offset : offset + len(data)] = data
    struct.pack_into("<I", changed, 1028, checksum(changed))
    return bytes(changed)


def test_the_checksum_is_crc32c_without_the_final_inversion() -> None:
    # RFC 3720 B.4: 32 bytes of zeros have CRC-32C 0x8a9136aa. A crc register takes the known
    # answer on as its seed: so extend the vector by the rest of the block bit by bit.
    block = bytearray(4096)
    crc = ~0x8A9136AA & 0xFFFFFFFF
    for _ in range((4096 - 1024 - 32) * 8):
        crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    assert checksum(block) == crc


def test_parts_start_on_sectors_behind_the_metadata_and_empty_ones_have_no_slot() -> None:
    root = directory()
    cases = {
        (0, 0): [],
        (SECTOR_BLOCKS, 0): [(SECTOR_BLOCKS, SECTOR_BLOCKS)],
        (0, 3 * SECTOR_BLOCKS): [(SECTOR_BLOCKS, 3 * SECTOR_BLOCKS)],
        (SECTOR_BLOCKS, 64): [(SECTOR_BLOCKS, SECTOR_BLOCKS), (2 * SECTOR_BLOCKS, 64)],
    }
    for (hot, data), parts in cases.items():
        metadata = write_metadata(root, sector_size=SECTOR_SIZE, hot_blocks=hot, data_blocks=data)
        geometry = ErofsReader(metadata).geometry
        assert geometry.metadata_bytes == len(metadata) == 4096
        assert [(part.start, part.blocks) for part in geometry.parts] == parts


def test_the_superblock_has_the_fields_that_the_kernel_wants() -> None:
    root = root_with(a=Node(NodeKind.FILE, size=4096, layout=Chunked(0, (HOLE,))))
    metadata = image(root)
    magic, _, compat = struct.unpack_from("<III", metadata, 1024)
    assert (magic, compat) == (0xE0F5E1E2, 3)
    assert struct.unpack_from("<I", metadata, 1024 + 80) == (0xC,)
    assert struct.unpack_from("<HH", metadata, 1024 + 86) == (2, 9)
    assert struct.unpack_from("<II", metadata, 1152 + 64) == (SECTOR_BLOCKS, SECTOR_BLOCKS)
    assert struct.unpack_from("<II", metadata, 1280 + 64) == (2 * SECTOR_BLOCKS, 2 * SECTOR_BLOCKS)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_hash_seed_does_not_change_the_bytes(hash_seed: str) -> None:
    program = (
        "import hashlib; from pagein.testing.trees import *; "
        "from pagein.format.erofs.write import write_metadata as w; s = odd_sample(hot=True); "
        "print(hashlib.sha256(w(s.root, sector_size=SECTOR_SIZE, hot_blocks=s.hot_blocks, "
        "data_blocks=s.data_blocks)).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == (
        "9e6711f546b72292bd23c0cfac2c645388fa9383f551a5d55988aba1c1485d7a"
    )


def test_an_odd_tree_reads_back_as_it_was_and_is_sound() -> None:
    sample = odd_sample(hot=True)
    sizes = {"hot_blocks": sample.hot_blocks, "data_blocks": sample.data_blocks}
    metadata = write_metadata(sample.root, sector_size=SECTOR_SIZE, **sizes)
    again = read_tree(metadata)
    assert describe(again) == describe(sample.root)
    assert describe(parse_dump(dump_tree(again))) == describe(sample.root)
    report = check_metadata(metadata, sector_size=SECTOR_SIZE, **sizes)
    assert report.symlinks == 7
    assert report.holes == 1280 - 3 + 3


def test_twenty_thousand_levels_of_directories_need_no_stack() -> None:
    root = deep = directory()
    name = b"d" * 50
    for _ in range(20_000):
        deep.children[name] = deep = directory()
    metadata = image(root)
    assert check_metadata(metadata, **SIZES).directories == 20_001
    depth, node = 0, read_tree(metadata)
    while node.children:
        depth, node = depth + 1, node.children[name]
    assert depth == 20_000
    with pytest.raises(FormatError, match="a path of more than 65536 bytes"):
        for _ in ErofsReader(metadata).walk():
            pass


@pytest.mark.parametrize(
    ("path", "follow", "found"),
    [
        (b"", False, b""),
        (b"/", False, b""),
        (b"../..", False, b""),
        (b"/usr//./bin/sh", False, b"usr/bin/sh"),
        (b"bin/sh", True, b"usr/bin/sh"),
        (b"bin", False, b"bin"),
        (b"bin", True, b"usr/bin"),
        (b"bin/", False, b"usr/bin"),
        (b"bin/../sbin", False, b"usr/sbin"),
        (b"absolute", True, b"usr/bin/sh"),
        (b"escape", True, b"usr/bin/sh"),
        (b"loop", False, b"loop"),
        (b"usr/bin/up", True, b"usr/bin/sh"),
    ],
)
def test_lookup_walks_as_linux_does_but_never_out_of_the_image(
    path: bytes, follow: bool, found: bytes
) -> None:
    reader = ErofsReader(image(LINKED))
    inodes = dict(reader.walk())
    assert reader.lookup(path, follow=follow) == inodes[found]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (b"absent", "does not exist"),
        (b"usr/absent/x", "does not exist"),
        (b"usr/bin/sh/x", "a parent is not a directory"),
        (b"usr/bin/sh/", "a parent is not a directory"),
        (b"usr/bin/sh/..", "a parent is not a directory"),
        (b"loop", "too many symlinks"),
        (b"loop/x", "too many symlinks"),
        (b"dangling", "does not exist"),
        (b"us", "does not exist"),
        (b"usr\0", "does not exist"),
    ],
)
def test_lookup_says_why_there_is_nothing(path: bytes, why: str) -> None:
    with pytest.raises(NotFoundError, match=why):
        ErofsReader(image(LINKED)).lookup(path, follow=True)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/usr/b\xe4r".encode(), "'/usr/b\xe4r' in the image: 'b\xe4r'"),
        (b"/usr/\xff\n", r"'/usr/\\\\xff\\n' in the image: '\\\\xff\\n'"),
    ],
)
def test_a_message_shows_a_path_as_it_was_typed_and_on_one_line(path: bytes, shown: str) -> None:
    with pytest.raises(NotFoundError, match=f"^no {shown} does not exist$"):
        ErofsReader(image(LINKED)).lookup(path, follow=True)


LINKED = root_with(
    usr=root_with(
        bin=root_with(sh=Node(NodeKind.FILE), up=link(b"../../bin/sh")), sbin=directory()
    ),
    bin=link(b"usr/bin"),
    absolute=link(b"/bin/sh"),
    escape=link(b"../../../bin/./sh"),
    loop=link(b"loop"),
    dangling=link(b"/nowhere"),
)


def test_extents_join_what_lies_together_and_split_at_holes() -> None:
    node = Node(NodeKind.FILE, size=5 * 4096 + 10)
    node.layout = Chunked(0, (70, 71, HOLE, HOLE, 3, 72))
    reader = ErofsReader(image(root_with(a=node)))
    inode = reader.lookup(b"a", follow=False)
    assert reader.extents(inode, 100, 10**9) == [
        Extent(100, 8092, 70 * 4096 + 100),
        Extent(8192, 8192, None),
        Extent(16384, 4096, 3 * 4096),
        Extent(20480, 10, 72 * 4096),
    ]
    assert reader.extents(inode, 20490, 1) == []
    with pytest.raises(FormatError, match="not a regular file"):
        reader.extents(reader.root, 0, 1)


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (Node(NodeKind.FIFO, xattrs={b"user.": b""}), "has no usable name"),
        (Node(NodeKind.FIFO, xattrs={b"user." + b"x" * 256: b""}), "has no usable name"),
        (Node(NodeKind.FIFO, xattrs={b"user.a": bytes(65_536)}), "erofs holds 65535 at most"),
        (
            Node(NodeKind.FIFO, xattrs={b"user.%d" % i: bytes(65_535) for i in range(5)}),
            "erofs holds 262148 at most",
        ),
        (Node(NodeKind.FIFO, xattrs={b"system.posix_acl_access": b"\1"}), "not a version 2"),
        (Node(NodeKind.FIFO, xattrs={b"btrfs.x": b""}), "cannot hold the namespace b'btrfs'"),
        (Node(NodeKind.FIFO, mode=0o10000), "not 12 permission bits"),
        (Node(NodeKind.FIFO, uid=-1), "owner -1:0 does not fit"),
        (Node(NodeKind.FIFO, mtime_ns=2**63 * 10**9), "does not fit 64 bits"),
        (Node(NodeKind.CHAR_DEVICE, device=(4096, 0)), "does not fit 12 and 20 bits"),
        (Node(NodeKind.BLOCK_DEVICE, device=(0, 1 << 20)), "does not fit 12 and 20 bits"),
        (link(b""), "a symlink target of 0 bytes"),
        (link(b"x" * 4096), "a symlink target of 4096 bytes"),
        (link(b"a\0b"), "without NUL"),
        (Node(NodeKind.FIFO, children={b"a": directory()}), "a FIFO cannot have children"),
        (Node(NodeKind.FILE, size=-1), "cannot have -1 bytes"),
        (Node(NodeKind.FILE, size=1, layout=Flat(3 * SECTOR_BLOCKS)), "inside one part"),
        (Node(NodeKind.FILE, size=1, layout=Flat(-1)), "inside one part"),
        (Node(NodeKind.FILE, size=1, layout=Chunked(0, (-2,))), "inside one part"),
        (Node(NodeKind.FILE, size=8192, layout=Chunked(1, (63,))), "inside one part"),
        (Node(NodeKind.FILE, size=1, layout=Chunked(32, (0,))), "1 chunks of 2"),
    ],
)
def test_what_erofs_cannot_hold_is_refused_in_words(node: Node, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        image(root_with(a=node))


@pytest.mark.parametrize("name", [b"", b"x" * 256, b"a/b", b"a\0", b".", b".."])
def test_a_name_that_linux_does_not_allow_is_refused(name: bytes) -> None:
    root = directory()
    root.children[name] = Node(NodeKind.FIFO)
    with pytest.raises(FormatError, match=r"not a file name|linux allows 1 to 255"):
        image(root)


def test_a_cycle_of_directories_is_refused() -> None:
    root = root_with(a=directory())
    root.children[b"a"].children[b"b"] = root
    with pytest.raises(FormatError, match="directory b'b' has two names"):
        image(root)


def test_part_sizes_must_be_sectors() -> None:
    with pytest.raises(FormatError, match="hot_blocks is 1, not a multiple of 64"):
        write_metadata(directory(), sector_size=SECTOR_SIZE, hot_blocks=1, data_blocks=0)
    with pytest.raises(FormatError, match="not a sector size: 4096"):
        write_metadata(directory(), sector_size=4096, hot_blocks=0, data_blocks=0)


def test_the_check_refuses_other_part_sizes_than_the_index_claims() -> None:
    metadata = image(directory())
    with pytest.raises(FormatError, match="the device slots are"):
        check_metadata(metadata, **{**SIZES, "data_blocks": SECTOR_BLOCKS})


# Root is the first inode, behind two slots: byte 1408. Its inline names follow at 1472.
ROOT = 1408


@pytest.mark.parametrize(
    ("offset", "data", "why"),
    [
        (1024, b"\0", "magic"),
        (1024 + 12, b"\x09", "blkszbits"),
        (1024 + 14, b"\xff\xff", "outside the metadata"),
        (1024 + 16, b"\x09", "inodes where the superblock counts 9"),
        (1024 + 80, b"\x1c", "feature_incompat"),
        (1024 + 80, b"\x0c", "the chunk feature does not fit"),
        (1152 + 64, b"\x41", "device slot 1"),
        (1152 + 68, b"\0\0\0\0", "device slot 0"),
        (ROOT, b"\x04\0", "format 0x4 is not one of ours"),
        (ROOT, b"\x03\0", "DIRECTORY with data layout 1"),
        (ROOT + 2, b"\xff\xff", "inline data crosses a block"),
        (ROOT + 8, b"\0\0\0\0", "a DIRECTORY of 0 bytes"),
        (ROOT + 8, b"\xff" * 8, "out of range"),
        (ROOT + 8, b"\xff" * 5, "inline data crosses a block"),
        (ROOT + 44, b"\x05", "5 links, 3 found"),
        (ROOT + 64 + 8, b"\x0d", "names start at 13"),
        (ROOT + 64 + 8, b"\xf0\xff", "names start at 65520"),
        (ROOT + 64 + 10, b"\x09", "of no type"),
        (ROOT + 64, b"\x2d", "does not lead to the right directory"),
        (ROOT + 64 + 24, b"\x2c", "has another name|wrong type"),
        (ROOT + 64 + 24, b"\xff" * 8, "outside the metadata"),
    ],
)
def test_the_check_names_what_is_broken(offset: int, data: bytes, why: str) -> None:
    metadata = image(root_with(a=directory()))
    assert struct.unpack_from("<HHH", metadata, ROOT) == (5, 0, 0o40755)
    with pytest.raises(FormatError, match=why):
        check_metadata(patched(metadata, offset, data), **SIZES)


def one_file(size: int) -> tuple[bytes, int]:
    """An image with one flat file, and the byte of its inode."""
    metadata = image(root_with(f=Node(NodeKind.FILE, size=size, layout=Flat(3))))
    return metadata, ErofsReader(metadata).lookup(b"f", follow=False).offset


@pytest.mark.parametrize(("size", "chunks"), [(1, 0), (4096, 0), (4097, 1), (60 * 4096, 1)])
def test_a_file_of_more_than_a_block_has_one_chunk_and_reads_back_as_a_run(
    size: int, chunks: int
) -> None:
    metadata, _ = one_file(size)
    reader = ErofsReader(metadata)
    inode = reader.lookup(b"f", follow=False)
    assert inode.chunks == chunks
    assert reader.layout(inode) == Flat(3)


@pytest.mark.parametrize(
    ("offset", "data", "why"),
    [
        (0, struct.pack("<H", 1), "a plain file of 12289 bytes"),
        (16, struct.pack("<I", 2), "chunk format 0x2"),
        (16, struct.pack("<I", 0x42), "chunk format 0x42"),
        (64, struct.pack("<HHI", 0, 3, 3), "of device 3 are not there"),
        (64, struct.pack("<HHI", 0, 0, 3), "of device 0 are not there"),
        (64, struct.pack("<HHI", 1, 1, 3), "are not there"),
        (64, struct.pack("<HHI", 0, 1, SIZES["hot_blocks"] - 3), "are not there"),
    ],
)
def test_a_chunk_index_must_name_blocks_that_its_device_has(
    offset: int, data: bytes, why: str
) -> None:
    metadata, inode = one_file(3 * 4096 + 1)
    check_metadata(metadata, **SIZES)
    with pytest.raises(FormatError, match=why):
        check_metadata(patched(metadata, inode + offset, data), **SIZES)


def test_a_wrong_checksum_is_refused() -> None:
    metadata = bytearray(image(directory()))
    metadata[3000] ^= 1
    with pytest.raises(FormatError, match="checksum"):
        ErofsReader(bytes(metadata))


def test_directories_that_share_blocks_cannot_multiply_the_work() -> None:
    """200 directories with the same 60 blocks would be 12,000 blocks of names."""
    root = directory()
    shared = Node(NodeKind.FIFO)
    for index in range(200):
        member = root.children[b"%03d" % index] = directory()
        if index == 0:
            member.children = {b"%05d" % i + b"x" * 240: shared for i in range(960)}
    metadata = bytearray(image(root))
    reader = ErofsReader(bytes(metadata))
    first = reader.lookup(b"000", follow=False)
    for _, other in reader.iterdir(reader.root):
        # A plain layout, the size of the whole blocks, and the address of the first one's.
        struct.pack_into("<H", metadata, other.offset, 1)
        struct.pack_into("<QI", metadata, other.offset + 8, 60 * 4096, first.address)
    with pytest.raises(FormatError, match="overlap"):
        read_tree(patched(metadata, 0, b""))
    with pytest.raises(FormatError, match="overlap"):
        for _ in ErofsReader(patched(metadata, 0, b"")).walk():
            pass


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "starts with"),
        ("pagein-tree 1\n", "without a root"),
        ("pagein-tree 1\n/a fifo 0644 0:0 0\n", "line 2"),
        ("pagein-tree 1\n/ directory 0755 0:0\n", "line 2"),
        ("pagein-tree 1\n/ dictionary 0755 0:0 0\n", "line 2: 'DICTIONARY'"),
        ("pagein-tree 1\n/ directory 0755 0:0 0 colour=1\n", "no field is called 'colour'"),
        ("pagein-tree 1\n/ directory 0755 0:0 0\n/ directory 0755 0:0 0\n", "line 3.*twice"),
        ("pagein-tree 1\n/ directory 0755 0:0 0\n/\\xzz fifo 0644 0:0 0\n", "not escaped"),
    ],
)
def test_a_dump_that_cannot_be_read_is_refused_by_line(text: str, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        parse_dump(text)
