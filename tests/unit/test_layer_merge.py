"""What the merger refuses, what it drops, and that size does not slow it. Semantics are proved
against umoci (tests/system) and against a dictionary (tests/property)."""

import io
import tarfile

import pytest

from pagein.errors import FormatError
from pagein.format.merge import LayerMerger
from pagein.format.tar import HARDLINK, TarEntry, read_entries
from pagein.format.tree import Node, NodeKind, walk
from pagein.testing.layer_corpus import (
    Item,
    directory,
    file,
    hard_link,
    opaque,
    symlink,
    tar_layer,
    whiteout,
)

FILE, DIRECTORY, SYMLINK = NodeKind.FILE, NodeKind.DIRECTORY, NodeKind.SYMLINK


def merge(*layers: list[TarEntry | Item]) -> Node:
    merger = LayerMerger()
    for layer in layers:
        merger.begin_layer()
        for entry in layer:
            if isinstance(entry, Item):
                (entry,) = read_entries(io.BytesIO(tar_layer(entry)))
            merger.add(entry)
        merger.end_layer()
    return merger.root


def paths(root: Node) -> list[bytes]:
    return [path for path, _ in walk(root)][1:]


def test_the_node_of_a_file_is_returned_to_be_placed_and_nothing_else_is() -> None:
    merger = LayerMerger()
    merger.begin_layer()
    node = merger.add(TarEntry(b"f", FILE, size=7))
    assert node is merger.root.children[b"f"]
    assert (node.size, node.content, node.layout) == (7, None, None)
    assert merger.add(TarEntry(b"h", HARDLINK, link_target=b"f")) is None
    assert merger.add(TarEntry(b"d", DIRECTORY)) is None
    assert merger.add(TarEntry(b"s", SYMLINK, link_target=b"f")) is None
    assert merger.root.children[b"h"] is node


def test_missing_parents_are_made_plain() -> None:
    node = merge([TarEntry(b"a/b", FILE, mtime_ns=5, uid=9)]).children[b"a"]
    assert (node.mode, node.uid, node.gid, node.mtime_ns) == (0o755, 0, 0, 0)


def test_overlay_orders_are_dropped_and_user_attributes_kept() -> None:
    xattrs = {b"trusted.overlay.redirect": b"/etc", b"user.overlay.x": b"1", b"trusted.o": b"2"}
    root = merge([TarEntry(b"d", DIRECTORY, xattrs=xattrs)])
    assert root.children[b"d"].xattrs == {b"user.overlay.x": b"1", b"trusted.o": b"2"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (TarEntry(b"n" * 256, FILE), "name of 256 bytes"),
        (TarEntry(b"n" * 256 + b"/f", FILE), "name of 256 bytes"),
        (TarEntry(b"a\0b", FILE), "NUL in the name"),
        (TarEntry(b"", FILE), "would replace the root"),
        (TarEntry(b"../..", SYMLINK, link_target=b"/"), "would replace the root"),
        (TarEntry(b"/", HARDLINK, link_target=b"lower"), "would replace the root"),
        (TarEntry(b"s", SYMLINK), "symlink 's' to 0 bytes"),
        (TarEntry(b"s", SYMLINK, link_target=b"t" * 4096), "symlink 's' to 4096 bytes"),
        (TarEntry(b"s", SYMLINK, link_target=b"a\0"), "symlink 's' to 2 bytes"),
        (TarEntry(b"h", HARDLINK, link_target=b"no/such"), "hard link 'h' to 'no/such': no such"),
        (TarEntry(b"h", HARDLINK, link_target=b"h"), "hard link 'h' to 'h': no such"),
        (TarEntry(b"h", HARDLINK, link_target=b""), "that is a directory"),
        (TarEntry(b"h", HARDLINK, link_target=b"folder"), "that is a directory"),
        (TarEntry(b"h", HARDLINK, link_target=b"lower/x"), "no such file"),
        (TarEntry(b"lower/x", FILE), "'lower' on its way is not a directory"),
        (TarEntry(b"c", NodeKind.CHAR_DEVICE, device=(4096, 0)), "device 'c' has number 4096:0"),
        (TarEntry(b"c", NodeKind.BLOCK_DEVICE, device=(0, 1 << 20)), "has number 0:1048576"),
        (TarEntry(b"c", NodeKind.BLOCK_DEVICE, device=(-1, 0)), "has number -1:0"),
        (TarEntry(b"x", FILE, xattrs={b"user.x": bytes(65537)}), "xattr 'user.x' of 'x'"),
        (TarEntry(b"x", FILE, xattrs={b"": b""}), "xattr '' of 'x'"),
        (TarEntry(b"x", FILE, xattrs={b"user." + b"n" * 251: b""}), "out of bounds"),
        (TarEntry(b"a/.wh.", FILE), "whiteout of no name"),
        (TarEntry(b"a/.wh..", FILE), "whiteout of no name"),
        (TarEntry(b"a/.wh...", FILE), "whiteout of no name"),
    ],
)
def test_what_no_file_system_could_hold_is_refused(entry: TarEntry, message: str) -> None:
    lower = [TarEntry(b"lower", FILE), TarEntry(b"folder", DIRECTORY), TarEntry(b"a/b", FILE)]
    with pytest.raises(FormatError, match=message):
        merge(lower, [entry])


@pytest.mark.parametrize(
    "path", [b"../../etc/passwd", b"/../../etc/passwd", b"x/../../../etc/passwd", b"l/passwd"]
)
def test_nothing_leaves_the_root(path: bytes) -> None:
    root = merge([symlink(b"l", b"../../../../etc"), file(path)])
    assert b"etc/passwd" in paths(root)


@pytest.mark.parametrize(
    "loop",
    [
        [symlink(b"l", b"l")],
        [symlink(b"l", b"m"), symlink(b"m", b"l")],
        [symlink(b"l", b"/d/x"), directory(b"d"), symlink(b"d/x", b"../l/.././l")],
        [symlink(b"l", b"l/l")],
    ],
)
@pytest.mark.parametrize("last", [file(b"l/f"), hard_link(b"h", b"l/f"), whiteout(b"l/f")])
def test_symlinks_in_a_loop_are_refused(loop: list[Item], last: Item) -> None:
    with pytest.raises(FormatError, match="too many symlinks"):
        merge([*loop, last])


def test_255_symlinks_are_followed_and_256_are_not() -> None:
    chain = [symlink(b"l%d" % n, b"l%d" % (n + 1)) for n in range(300)] + [directory(b"l300")]
    assert b"l300/f" in paths(merge([*chain, file(b"l45/f")]))
    with pytest.raises(FormatError, match="too many symlinks"):
        merge([*chain, file(b"l44/f")])


def test_a_parent_that_changes_within_a_layer_is_looked_up_again() -> None:
    root = merge(
        [symlink(b"l", b"one"), file(b"l/f")],
        [file(b"l/g"), whiteout(b"l"), file(b"l/h"), symlink(b"l", b"two"), file(b"l/i")],
        [file(b"l/j"), file(b"l"), directory(b"l"), file(b"l/k")],
    )
    assert paths(root) == [
        b"l", b"l/k", b"one", b"one/f", b"one/g", b"two", b"two/i", b"two/j"
    ]  # fmt: skip


def test_a_hard_link_to_a_symlink_is_followed_like_it() -> None:
    root = merge([file(b"x/f"), directory(b"d"), file(b"d/f"), symlink(b"s", b"d")])
    assert b"d/f" in paths(root)
    layer = [file(b"p/f"), symlink(b"s", b"d"), whiteout(b"p"), hard_link(b"q", b"s"), file(b"q/g")]
    assert paths(merge(layer)) == [b"d", b"d/g", b"p", b"p/f", b"q", b"s"]


def test_aufs_housekeeping_is_ignored_with_all_below() -> None:
    names = [b".wh..wh.aufs", b".wh..wh.plnk/1.2", b"a/.wh..wh.orph/x/y", b".wh..wh.plnk/"]
    names += [b".wh..wh.plnk/.wh..wh..opq"]
    assert paths(merge([file(b"a/f")], [file(name) for name in names])) == [b"a", b"a/f"]


def test_a_name_that_only_contains_the_prefix_is_a_name() -> None:
    names = [b"a.wh.b", b".whale", b"x.wh..wh.y"]
    assert paths(merge([file(name) for name in names])) == sorted(names)


def test_a_path_of_ten_thousand_names_needs_no_stack() -> None:
    deep = b"/".join([b"d"] * 10_000)
    root = merge([TarEntry(deep + b"/f", FILE)], [TarEntry(deep + b"/.wh.f", FILE), opaque(b"d")])
    assert paths(root) == [b"d"]


def test_a_hundred_thousand_entries_in_a_folder_with_whiteouts_between() -> None:
    entries = [TarEntry(b"d/%d" % n, FILE) for n in range(100_000)]
    marks = [TarEntry(b"d/.wh..wh..opq", FILE), TarEntry(b"d/.wh.x", FILE)]
    mixed = [e for n, entry in enumerate(entries) for e in ([entry, *marks] if n % 2 else [entry])]
    root = merge(entries, mixed)
    assert len(root.children[b"d"].children) == 100_000


def test_a_second_archive_after_the_end_is_not_read() -> None:
    archive = tar_layer(file(b"a")) + tar_layer(file(b"b"))
    assert [entry.path for entry in read_entries(io.BytesIO(archive))] == [b"a"]


def test_a_layer_of_many_kinds_has_no_double_faces() -> None:
    kinds = [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.REGTYPE, tarfile.DIRTYPE]
    root = merge(*[[Item(b"x", kind)] for kind in kinds])
    assert root.children[b"x"].kind is DIRECTORY
