"""What every snapshotter must do, as tests to subclass: over its socket, with real mounts.

Written from the interface's documentation (containerd's core/snapshots/snapshotter.go) and service
definition, not from an implementation. Override the fixture ``client``; root is needed.

Names are unique to a test, because a server may outlive it, and every test removes what it made.
"""

# ruff: noqa: D102 - a test is named by what it says
from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from pagein.snapshotter.values import Info, Kind
from pagein.testing.snapshot_stack import Stack, nothing, refused, writes, writes_all
from pagein.testing.snapshotter_client import SnapshotterClient


class SnapshotterContract:
    """Keys, kinds, errors, labels and lists."""

    @pytest.fixture
    def client(self) -> SnapshotterClient:
        """Return a client of the server under test."""
        raise NotImplementedError

    @pytest.fixture
    def stack(self, client: SnapshotterClient, tmp_path: Path) -> Iterator[Stack]:
        """Return a maker of snapshots."""
        stack = Stack(client, tmp_path)
        try:
            yield stack
        finally:
            stack.close()

    def test_prepare_makes_an_active_snapshot(self, stack: Stack) -> None:
        key = stack.name("a")
        assert stack.client.prepare(key)
        info = stack.client.stat(key)
        assert (info.name, info.parent, info.kind) == (key, "", Kind.ACTIVE)
        assert info.created_ns > 0
        assert info.updated_ns >= info.created_ns

    def test_commit_consumes_the_key_and_makes_the_name(self, stack: Stack) -> None:
        name = stack.layer("base", writes("f", "1"))
        info = stack.client.stat(name)
        assert (info.parent, info.kind) == ("", Kind.COMMITTED)
        with refused(grpc.StatusCode.NOT_FOUND):
            stack.client.stat(stack.name("base-active"))

    def test_a_view_is_of_its_own_kind_and_shows_what_was_committed(self, stack: Stack) -> None:
        base = stack.layer("base", writes("f", "1"))
        key = stack.name("v")
        with stack.mounted(stack.client.view(key, base)) as root:
            assert (root / "f").read_text() == "1"
            with pytest.raises(OSError, match="Read-only"):
                (root / "g").write_text("2")
        info = stack.client.stat(key)
        assert (info.parent, info.kind) == (base, Kind.VIEW)

    def test_a_key_is_taken_once_by_whatever_kind(self, stack: Stack) -> None:
        base = stack.layer("base", nothing)
        taken = stack.name("a")
        stack.client.prepare(taken, base)
        for again in (stack.client.prepare, stack.client.view):
            with refused(grpc.StatusCode.ALREADY_EXISTS):
                again(taken, base)
            with refused(grpc.StatusCode.ALREADY_EXISTS):
                again(base)
        other = stack.name("b")
        stack.client.prepare(other, base)
        with refused(grpc.StatusCode.ALREADY_EXISTS):
            stack.client.commit(base, other)

    def test_a_removed_key_may_be_used_again(self, stack: Stack) -> None:
        key = stack.name("a")
        with stack.mounted(stack.client.prepare(key)) as root:
            (root / "old").touch()
        stack.client.remove(key)
        with stack.mounted(stack.client.prepare(key)) as root:
            assert os.listdir(root) == []

    def test_a_parent_must_exist_and_be_committed(self, stack: Stack) -> None:
        with refused(grpc.StatusCode.NOT_FOUND):
            stack.client.prepare(stack.name("a"), stack.name("absent"))
        active = stack.name("active")
        stack.client.prepare(active)
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            stack.client.prepare(stack.name("b"), active)
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            stack.client.view(stack.name("c"), active)

    def test_only_an_active_snapshot_is_committed(self, stack: Stack) -> None:
        base = stack.layer("base", nothing)
        view = stack.name("v")
        stack.client.view(view, base)
        with refused(grpc.StatusCode.FAILED_PRECONDITION):
            stack.client.commit(stack.name("n1"), view)
        with refused(grpc.StatusCode.FAILED_PRECONDITION):
            stack.client.commit(stack.name("n2"), base)
        with refused(grpc.StatusCode.NOT_FOUND):
            stack.client.commit(stack.name("n3"), stack.name("absent"))

    def test_what_others_stand_on_stays(self, stack: Stack) -> None:
        base = stack.layer("base", nothing)
        stack.client.prepare(stack.name("child"), base)
        with refused(grpc.StatusCode.FAILED_PRECONDITION):
            stack.client.remove(base)
        stack.client.remove(stack.name("child"))
        stack.client.remove(base)
        with refused(grpc.StatusCode.NOT_FOUND):
            stack.client.stat(base)

    def test_an_unknown_key_is_not_found(self, stack: Stack) -> None:
        key = stack.name("absent")
        calls: tuple[Callable[[], object], ...] = (
            lambda: stack.client.stat(key),
            lambda: stack.client.mounts(key),
            lambda: stack.client.usage(key),
            lambda: stack.client.remove(key),
            lambda: stack.client.update(key, {"a": "b"}),
        )
        for call in calls:
            with refused(grpc.StatusCode.NOT_FOUND):
                call()

    def test_mounts_are_the_same_each_time(self, stack: Stack) -> None:
        base = stack.layer("base", nothing)
        active, view = stack.name("a"), stack.name("v")
        first = stack.client.prepare(active, base)
        assert stack.client.mounts(active) == stack.client.mounts(active) == first
        first = stack.client.view(view, base)
        assert stack.client.mounts(view) == stack.client.mounts(view) == first

    def test_labels_come_back_and_change_by_mask(self, stack: Stack) -> None:
        key = stack.name("a")
        stack.client.prepare(key, labels={"one": "1", "two": "2"})
        assert _ours(stack.client.stat(key)) == {"one": "1", "two": "2"}
        info = stack.client.update(key, {"two": "22", "three": "3"}, "labels.two")
        assert _ours(info) == {"one": "1", "two": "22"}
        info = stack.client.update(key, {"three": "3"}, "labels")
        assert _ours(info) == {"three": "3"}
        assert info == stack.client.stat(key)
        info = stack.client.update(key, {"a.b/c": "4"}, "labels.a.b/c")
        assert _ours(info) == {"three": "3", "a.b/c": "4"}
        info = stack.client.update(key, {}, "labels.three")
        assert info.labels.get("three", "") == ""

    def test_an_update_without_a_mask_replaces_the_labels(self, stack: Stack) -> None:
        base = stack.layer("base", nothing, labels={"one": "1"})
        before = stack.client.stat(base)
        info = stack.client.update(base, {"two": "2"})
        assert _ours(info) == {"two": "2"}
        assert (info.name, info.kind, info.created_ns) == (base, before.kind, before.created_ns)
        assert info.updated_ns > before.updated_ns

    def test_nothing_but_labels_changes(self, stack: Stack) -> None:
        key = stack.name("a")
        stack.client.prepare(key)
        for path in ("name", "parent", "kind", "created_at"):
            with refused(grpc.StatusCode.INVALID_ARGUMENT):
                stack.client.update(key, {}, path)

    def test_a_label_that_is_too_long_is_refused(self, stack: Stack) -> None:
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            stack.client.prepare(stack.name("a"), labels={"k": "v" * 4096})

    def test_the_labels_of_a_commit_replace_those_of_the_active(self, stack: Stack) -> None:
        key, name = stack.name("a"), stack.name("n")
        stack.client.prepare(key, labels={"active": "yes"})
        stack.client.commit(name, key, {"committed": "yes"})
        assert stack.client.stat(name).labels.get("committed") == "yes"

    def test_a_list_has_every_snapshot_once(self, stack: Stack) -> None:
        base = stack.layer("base", nothing)
        keys = [stack.name(f"a{number}") for number in range(150)]  # more than a batch
        for key in keys:
            stack.client.prepare(key, base)
        listed = [info.name for info in stack.client.list()]
        assert len(listed) == len(set(listed))
        assert {base, *keys} <= set(listed)

    @pytest.mark.parametrize(
        ("template", "expected"),
        [
            ('name=="{base}"', {"base"}),
            ("name=={base}", {"base"}),
            ('parent=="{base}"', {"top", "view"}),
            ('parent=="{base}",kind==active', {"top"}),
            ("kind==view,name~={prefix}", {"view"}),
            ('name~="^{prefix}-(top|view)$"', {"top", "view"}),
            ("name~=/^{prefix}-t.p$/", {"top"}),
            ('labels."org.example/colour"==red', {"base"}),
            ("labels.shape,name~={prefix}", {"base", "top"}),
            ('labels.shape!=round,parent=="{base}"', {"top", "view"}),
            ('labels."org.example/colour"==red,labels.shape==square', set()),
            ("name=={prefix}-nobody", set()),
        ],
    )
    def test_filters_choose(self, stack: Stack, template: str, expected: set[str]) -> None:
        base = stack.layer("base", nothing)
        stack.client.update(base, {"org.example/colour": "red", "shape": "round"}, *_LABELS)
        stack.client.prepare(stack.name("top"), base, {"shape": "square"})
        stack.client.view(stack.name("view"), base)
        prefix = base.removesuffix("-base")
        text = template.format(base=base, prefix=prefix)
        found = {info.name.removeprefix(f"{prefix}-") for info in stack.client.list(text)}
        assert found == expected

    def test_of_several_filters_any_may_hold(self, stack: Stack) -> None:
        base = stack.layer("base", nothing)
        top = stack.name("top")
        stack.client.prepare(top, base)
        found = stack.client.list(f"name=={base}", f"name=={top}", "name==nobody")
        assert {info.name for info in found} == {base, top}

    @pytest.mark.parametrize(
        "text",
        [
            "name==",
            "name=x",
            '"name',
            ",",
            'name=="a',
            "==",
            "name==/a/",
            "name.",
            "name kind",
        ],
    )
    def test_a_filter_that_is_none_is_refused(self, client: SnapshotterClient, text: str) -> None:
        # containerd 1.6 says "invalid argument" in words, with the code UNKNOWN.
        with refused(grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN):
            client.list(text)


class SnapshotterTreesContract(SnapshotterContract):
    """What the mounts show."""

    def test_a_change_is_seen_above_and_not_below(self, stack: Stack) -> None:
        base = stack.layer("base", writes("dir/f", "old"))
        top = stack.layer("top", writes("dir/f", "new"), base)
        with stack.viewed(base) as root:
            assert (root / "dir/f").read_text() == "old"
        with stack.viewed(top) as root:
            assert (root / "dir/f").read_text() == "new"

    def test_children_of_one_parent_know_nothing_of_each_other(self, stack: Stack) -> None:
        base = stack.layer("base", writes("f", "base"))
        one, two = stack.name("one"), stack.name("two")
        with (
            stack.mounted(stack.client.prepare(one, base)) as first,
            stack.mounted(stack.client.prepare(two, base)) as second,
        ):
            (first / "f").write_text("one")
            (first / "g").touch()
            (second / "f").unlink()
            assert sorted(os.listdir(first)) == ["f", "g"]
            assert os.listdir(second) == []

    def test_what_was_removed_stays_removed(self, stack: Stack) -> None:
        def remove(root: Path) -> None:
            (root / "gone").unlink()
            (root / "folder/inner").unlink()
            (root / "folder").rmdir()

        base = stack.layer("base", writes_all(*_TREE))
        top = stack.layer("top", remove, base)
        with stack.viewed(top) as root:
            assert sorted(os.listdir(root)) == ["kept"]

    def test_a_folder_made_anew_hides_what_the_old_one_held(self, stack: Stack) -> None:
        def replace(root: Path) -> None:
            (root / "folder/inner").unlink()
            (root / "folder").rmdir()
            (root / "folder").mkdir()
            (root / "folder/fresh").touch()

        base = stack.layer("base", writes("folder/inner", "x"))
        top = stack.layer("top", replace, base)
        higher = stack.layer("higher", writes("other", "y"), top)
        with stack.viewed(higher) as root:
            assert os.listdir(root / "folder") == ["fresh"]

    def test_a_file_and_a_folder_take_each_others_place(self, stack: Stack) -> None:
        def swap(root: Path) -> None:
            (root / "a").unlink()
            (root / "a").mkdir()
            (root / "b/inner").unlink()
            (root / "b").rmdir()
            (root / "b").write_text("file now")

        base = stack.layer("base", writes_all("a", "b/inner"))
        top = stack.layer("top", swap, base)
        with stack.viewed(top) as root:
            assert (root / "a").is_dir()
            assert (root / "b").read_text() == "file now"

    def test_rename_link_and_chown_work_on_files_from_below(self, stack: Stack) -> None:
        def change(root: Path) -> None:
            (root / "kept").rename(root / "renamed")
            os.link(root / "gone", root / "linked")
            for folder, _, files in os.walk(root):
                for name in ["", *files]:
                    os.chown(Path(folder) / name, 1000, 1001, follow_symlinks=False)

        base = stack.layer("base", writes_all(*_TREE))
        top = stack.layer("top", change, base)
        with stack.viewed(top) as root:
            assert sorted(os.listdir(root)) == ["folder", "gone", "linked", "renamed"]
            linked = (root / "linked").stat()
            assert (root / "gone").stat().st_ino == linked.st_ino
            assert (linked.st_uid, linked.st_gid, linked.st_nlink) == (1000, 1001, 2)
            assert (root / "folder/inner").stat().st_uid == 1000
            assert root.stat().st_uid == 1000
        with stack.viewed(base) as root:
            assert (root / "kept").stat().st_uid == 0

    def test_a_childs_root_has_the_owner_of_its_parents(self, stack: Stack) -> None:
        base = stack.layer("base", lambda root: os.chown(root, 1000, 1001))
        with stack.mounted(stack.client.prepare(stack.name("a"), base)) as root:
            assert (root.stat().st_uid, root.stat().st_gid) == (1000, 1001)

    def test_modes_devices_and_xattrs_are_kept(self, stack: Stack) -> None:
        def fill(root: Path) -> None:
            (root / "tool").touch()
            (root / "tool").chmod(0o4755)
            os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            os.mkfifo(root / "pipe")
            (root / "link").symlink_to("/nowhere")
            os.setxattr(root / "tool", "security.capability", _CAPABILITY)

        base = stack.layer("base", fill)
        top = stack.layer("top", writes("other", "x"), base)
        with stack.viewed(top) as root:
            assert stat.S_IMODE((root / "tool").stat().st_mode) == 0o4755
            assert (root / "null").stat().st_rdev == os.makedev(1, 3)
            assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
            assert str((root / "link").readlink()) == "/nowhere"
            assert os.getxattr(root / "tool", "security.capability") == _CAPABILITY

    def test_a_chain_of_a_hundred_layers_is_one_tree(self, stack: Stack) -> None:
        name = ""
        for number in range(100):

            def fill(root: Path, number: int = number) -> None:
                (root / f"f{number}").touch()
                (root / "last").write_text(str(number))

            name = stack.layer(f"l{number}", fill if number % 33 == 0 else nothing, name)
        with stack.viewed(name) as root:
            assert sorted(os.listdir(root)) == ["f0", "f33", "f66", "f99", "last"]
            assert (root / "last").read_text() == "99"

    def test_usage_counts_what_a_snapshot_adds(self, stack: Stack) -> None:
        def fill(root: Path) -> None:
            (root / "big").write_bytes(os.urandom(1 << 20))
            os.link(root / "big", root / "same")

        base = stack.layer("base", fill)
        usage = stack.client.usage(base)
        assert 1 << 20 <= usage.size < 1 << 21
        assert usage.inodes == 2  # the root and one file
        key = stack.name("a")
        with stack.mounted(stack.client.prepare(key, base)) as root:
            assert stack.client.usage(key).size < 1 << 16
            (root / "own").write_bytes(os.urandom(1 << 18))
            os.sync()
            usage = stack.client.usage(key)
        assert 1 << 18 <= usage.size < 1 << 19
        assert stack.client.usage(base).size >= 1 << 20

    def test_many_threads_work_side_by_side(self, stack: Stack) -> None:
        base = stack.layer("base", writes("f", "x"))
        names = [stack.name(f"t{number}") for number in range(64)]
        keys = {name: stack.name(f"{name}-key") for name in names}

        def work(name: str) -> None:
            stack.client.prepare(keys[name], base)
            assert stack.client.mounts(keys[name])
            stack.client.commit(name, keys[name])
            assert stack.client.stat(name).parent == base

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, names))
        children = {info.name for info in stack.client.list(f'parent=="{base}"')}
        assert children == set(names)

    def test_of_many_that_want_one_key_one_gets_it(self, stack: Stack) -> None:
        key = stack.name("contended")

        def work(_: int) -> bool:
            try:
                stack.client.prepare(key)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.ALREADY_EXISTS  # noqa: PT017
                return False
            return True

        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(work, range(32))) == 1

    def test_cleanup_leaves_what_is_in_use(self, stack: Stack) -> None:
        base = stack.layer("base", writes("f", "x"))
        removed = stack.name("removed")
        stack.client.prepare(removed, base)
        stack.client.remove(removed)
        with stack.mounted(stack.client.prepare(stack.name("a"), base)) as root:
            try:
                stack.client.cleanup()
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:  # the call is optional
                    raise
            assert (root / "f").read_text() == "x"


_TREE = ("kept", "gone", "folder/inner")
_LABELS = ("labels.org.example/colour", "labels.shape")
_CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
_RESERVED = re.compile(r"containerd\.io/")


def _ours(info: Info) -> dict[str, str]:
    """Return the labels but those that containerd adds itself."""
    return {key: value for key, value in info.labels.items() if not _RESERVED.match(key)}
