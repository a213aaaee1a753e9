"""Random trees go through the EROFS writer and back; damaged metadata never gets past a reader as
anything but a tree or a FormatError."""

import contextlib
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pagein.errors import FormatError, NotFoundError
from pagein.format.dump import dump_tree, parse_dump
from pagein.format.erofs.check import check_metadata
from pagein.format.erofs.read import ErofsReader, Extent, read_tree
from pagein.format.erofs.superblock import checksum
from pagein.format.erofs.write import write_metadata
from pagein.format.tree import HOLE, Chunked, Flat, Node, NodeKind, walk
from pagein.testing.trees import BODY_BLOCKS, SECTOR_SIZE, describe, trees

HOT_BLOCKS = SECTOR_SIZE // 4096
SIZES = {
    "sector_size": SECTOR_SIZE,
    "hot_blocks": HOT_BLOCKS,
    "data_blocks": BODY_BLOCKS - HOT_BLOCKS,
}
slow = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@slow
@given(trees())
def test_a_tree_survives_writing_and_reading(root: Node) -> None:
    metadata = write_metadata(root, **SIZES)
    assert describe(read_tree(metadata)) == describe(root)
    report = check_metadata(metadata, **SIZES)
    nodes = {node for _, node in walk(root)}
    assert report.inodes == len(nodes)
    assert report.names == sum(1 for _ in walk(root)) - 1
    assert report.file_bytes == sum(n.size for n in nodes if n.kind is NodeKind.FILE)


@slow
@given(trees())
def test_equal_trees_give_equal_bytes_whatever_order_they_were_built_in(root: Node) -> None:
    metadata = write_metadata(root, **SIZES)
    for _, node in list(walk(root)):
        node.children = dict(reversed(node.children.items()))
        node.xattrs = dict(reversed(node.xattrs.items()))
    assert write_metadata(root, **SIZES) == metadata


@slow
@given(trees())
def test_a_dump_survives_reading(root: Node) -> None:
    text = dump_tree(root)
    assert text.isascii()
    again = parse_dump(text)
    assert describe(again) == describe(root)
    assert dump_tree(again) == text


def blocks_of(node: Node) -> list[int | None]:
    """Body address of each byte / 4096 of a file, by the definition of `Flat` and `Chunked`."""
    count = -(-node.size // 4096)
    match node.layout:
        case Flat(block):
            return [block + index for index in range(count)]
        case Chunked(bits, starts):
            return [
                None if starts[i >> bits] == HOLE else starts[i >> bits] + i % (1 << bits)
                for i in range(count)
            ]
        case None:
            return []


@slow
@given(trees(), st.integers(0, 70_000), st.integers(0, 70_000))
def test_extents_name_every_byte_once_and_in_order(root: Node, offset: int, length: int) -> None:
    reader = ErofsReader(write_metadata(root, **SIZES))
    for path, node in walk(root):
        inode = reader.lookup(path, follow=False)
        if node.kind is not NodeKind.FILE:
            continue
        extents = reader.extents(inode, offset, length)
        position = offset
        blocks = blocks_of(node)
        for extent in extents:
            assert extent.offset == position
            assert extent.length > 0
            for at in {0, extent.length // 2, extent.length - 1}:
                block = blocks[(position + at) // 4096]
                wanted = None if block is None else block * 4096 + (position + at) % 4096
                assert (None if extent.body is None else extent.body + at) == wanted
            position += extent.length
        assert position - offset == max(0, min(length, node.size - offset))
        assert not any(map(continues, extents, extents[1:]))


def continues(left: Extent, right: Extent) -> bool:
    if left.body is None or right.body is None:
        return left.body is right.body
    return left.body + left.length == right.body


def read_everything(metadata: bytes) -> None:
    reader = ErofsReader(metadata)
    for path, inode in reader.walk():
        reader.xattrs(inode)
        if inode.kind is NodeKind.FILE:
            reader.extents(inode, 0, inode.size)
        elif inode.kind is NodeKind.SYMLINK:
            reader.readlink(inode)
        with contextlib.suppress(NotFoundError):
            reader.lookup(path, follow=True)


def damaged(metadata: bytes, damage: list[tuple[int, int]]) -> bytes:
    changed = bytearray(metadata)
    for position, value in damage:
        changed[1024 + position % (len(metadata) - 1024)] = value
    # A right checksum, or nothing behind it would ever be looked at.
    struct.pack_into("<I", changed, 1028, checksum(changed))
    return bytes(changed)


DAMAGE = st.lists(
    st.tuples(
        st.integers(0, 2000) | st.integers(0, 1 << 20),
        st.sampled_from([0, 1, 2, 4, 47, 127, 128, 254, 255]) | st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


@settings(slow, max_examples=150)
@given(trees(), DAMAGE)
def test_damage_gives_a_tree_or_a_format_error(root: Node, damage: list[tuple[int, int]]) -> None:
    metadata = damaged(write_metadata(root, **SIZES), damage)
    for use in (
        read_everything,
        lambda data: describe(read_tree(data)),
        lambda data: check_metadata(data, **SIZES),
    ):
        with contextlib.suppress(FormatError):
            use(metadata)


@slow
@given(trees(), DAMAGE)
def test_what_passes_the_check_is_read_without_an_error(
    root: Node, damage: list[tuple[int, int]]
) -> None:
    metadata = damaged(write_metadata(root, **SIZES), damage)
    try:
        check_metadata(metadata, **SIZES)
    except FormatError:
        return
    tree = read_tree(metadata)
    read_everything(metadata)
    # It is a tree that could have been written, so it can be again.
    assert describe(read_tree(write_metadata(tree, **SIZES))) == describe(tree)


@given(st.binary(max_size=9000))
def test_noise_is_never_an_image(data: bytes) -> None:
    with pytest.raises(FormatError):
        ErofsReader(data)
