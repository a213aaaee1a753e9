"""The database of snapshots: transactions, restarts, damage."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pagein.errors import (
    CatalogueDamagedError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    SnapshotStateError,
    UsageError,
)
from pagein.snapshotter.catalogue import Catalogue
from pagein.snapshotter.images import LazyImage
from pagein.snapshotter.rows import NewSnapshot
from pagein.snapshotter.values import Info, Kind, Mode, Usage
from pagein.types import Digest

IMAGE = LazyImage("0123456789abcdef", "host/app:1", Digest.of(b"m"), (Digest.of(b"1"),))


def committed(name: str, parent: str = "") -> NewSnapshot:
    return NewSnapshot(name, parent, Kind.COMMITTED, {"a": "é"})


def test_what_was_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    first = Catalogue(tmp_path)
    with first.write() as rows:
        rows.put_image(IMAGE)
        rows.insert(committed("base"), 1)
        rows.insert(NewSnapshot("top", "base", Kind.COMMITTED, {"l": "v"}, Mode.LAZY, IMAGE.id), 2)
        rows.set_usage(1, Usage(7, 8))
    first.close()
    second = Catalogue(tmp_path)
    with second.read() as rows:
        top, base = rows.chain("top")
        assert top.info == Info("top", "base", Kind.COMMITTED, 2, 2, {"l": "v"})
        assert (top.mode, top.image, top.depth, top.usage) == (Mode.LAZY, IMAGE.id, 2, None)
        assert (base.id, base.info.labels, base.usage) == (1, {"a": "é"}, Usage(7, 8))
        assert rows.images() == [IMAGE]
    second.close()


def test_an_error_undoes_the_whole_transaction(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)

    def twice() -> None:
        with catalogue.write() as rows:
            rows.insert(committed("one"), 1)
            rows.insert(committed("one"), 1)

    with pytest.raises(SnapshotExistsError):
        twice()
    with catalogue.read() as rows:
        assert rows.all() == []
    with catalogue.write() as rows:  # and the next one works
        rows.insert(committed("two"), 1)
    catalogue.close()


def test_an_id_is_never_used_twice(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    with catalogue.write() as rows:
        first = rows.insert(committed("one"), 1).id
        rows.remove("one")
    with catalogue.write() as rows:
        assert rows.insert(committed("one"), 1).id > first
    catalogue.close()


def test_rules_of_the_tree_are_kept(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    with catalogue.write() as rows:
        rows.insert(committed("base"), 1)
        rows.insert(NewSnapshot("active", "base", Kind.ACTIVE, {}), 1)
        with pytest.raises(SnapshotNotFoundError, match="'gone'"):
            rows.insert(committed("x", "gone"), 1)
        with pytest.raises(UsageError, match="not a committed"):
            rows.insert(committed("x", "active"), 1)
        with pytest.raises(SnapshotStateError, match="others stand on it"):
            rows.remove("base")
        with pytest.raises(SnapshotStateError, match="not active"):
            rows.commit("base", "y", {}, 1)
        with pytest.raises(SnapshotExistsError):
            rows.commit("active", "base", {}, 1)
        assert rows.commit("active", "top", {"k": "v"}, 5).info == Info(
            "top", "base", Kind.COMMITTED, 5, 5, {"k": "v"}
        )
        assert [child.info.name for child in rows.children("base")] == ["top"]
        assert [child.info.name for child in rows.children("")] == ["base"]
    catalogue.close()


def test_a_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    with catalogue.write() as rows:
        rows.insert(committed("one"), 1)
        with catalogue.read() as others:
            assert others.all() == []
    with catalogue.read() as others:
        assert [record.info.name for record in others.all()] == ["one"]
    catalogue.close()


def test_writers_take_turns(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)

    def work(start: int) -> None:
        for number in range(start, start + 20):
            with catalogue.write() as rows:
                rows.insert(committed(str(number)), number)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 100, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with catalogue.read() as rows:
        assert rows.ids() == set(range(1, 101))
    catalogue.close()


@pytest.mark.parametrize("damage", ["head", "page", "text"])
def test_a_damaged_database_is_set_aside_with_its_directories(tmp_path: Path, damage: str) -> None:
    catalogue = Catalogue(tmp_path)
    with catalogue.write() as rows:
        for number in range(200):
            rows.insert(committed(f"{number}-{'x' * 200}"), 1)
    catalogue.close()
    (tmp_path / "snapshots" / "7").mkdir(parents=True)
    file = tmp_path / "catalogue.db"
    data = bytearray(file.read_bytes())
    match damage:
        case "head":
            data[:100] = bytes(100)
        case "page":
            data[4096 * 3 : 4096 * 12] = b"\xff" * 4096 * 9
        case "text":
            data = bytearray(b"not a database at all" * 1000)
    file.write_bytes(data)
    with pytest.raises(CatalogueDamagedError, match=r"is damaged .* are now in") as caught:
        Catalogue(tmp_path)
    assert "start again" in (caught.value.hint or "")
    (aside,) = tmp_path.glob("damaged-*")
    assert (aside / "catalogue.db").read_bytes() == data
    assert (aside / "snapshots" / "7").is_dir()
    assert not (tmp_path / "snapshots").exists()
    fresh = Catalogue(tmp_path)
    with fresh.read() as rows:
        assert rows.all() == []
    fresh.close()


def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    with catalogue.write() as rows:
        rows._sql.execute("PRAGMA user_version = 99")
    catalogue.close()
    with pytest.raises(UsageError, match="version 99"):
        Catalogue(tmp_path)
    assert not list(tmp_path.glob("damaged-*"))


def test_a_folder_that_is_not_ours_to_write_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "catalogue.db").mkdir()
    with pytest.raises(UsageError, match="cannot open"):
        Catalogue(tmp_path)
    assert not list(tmp_path.glob("damaged-*"))


def test_only_root_may_read_the_database(tmp_path: Path) -> None:
    Catalogue(tmp_path / "new").close()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new/catalogue.db").stat().st_mode & 0o777 == 0o600
