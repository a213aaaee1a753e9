"""The statements that read and change snapshots, inside a transaction of `catalogue.Catalogue`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pagein.errors import SnapshotExistsError, SnapshotNotFoundError, SnapshotStateError, UsageError
from pagein.snapshotter.images import LazyImage
from pagein.snapshotter.values import Info, Kind, Mode, Usage
from pagein.types import Digest


@dataclass(frozen=True, slots=True)
class Record:
    """A row: what containerd sees (``info``), and what stands behind it.

    ``depth`` counts the snapshots from the bottom to this one. ``image`` is the id of the image
    that a lazy one or a placeholder is of. ``usage`` is None until it was counted.
    """

    id: int
    info: Info
    mode: Mode
    depth: int
    image: str | None
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class NewSnapshot:
    """What `Rows.insert` stores. ``parent`` is empty at the bottom."""

    name: str
    parent: str
    kind: Kind
    labels: Mapping[str, str]
    mode: Mode = Mode.CLASSICAL
    image: str | None = None


_COLUMNS: Final = """
    s.id, s.name, p.name, s.kind, s.created_ns, s.updated_ns, s.labels, s.mode, s.depth, s.image,
    s.size, s.inodes FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent
"""
_CHAIN: Final = f"""
    WITH RECURSIVE below (id, parent) AS (
        SELECT id, parent FROM snapshot WHERE name = ?
        UNION ALL SELECT n.id, n.parent FROM snapshot n JOIN below ON n.id = below.parent)
    SELECT {_COLUMNS} JOIN below ON below.id = s.id ORDER BY s.depth DESC
"""  # noqa: S608 - nothing of a caller's is in it


class Rows:
    """The tables, for as long as one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection

    def get(self, name: str) -> Record:
        """Return a snapshot by key or name. Raises SnapshotNotFoundError."""
        row = self._sql.execute(f"SELECT {_COLUMNS} WHERE s.name = ?", (name,)).fetchone()
        if row is None:
            raise SnapshotNotFoundError(f"no snapshot {name!r}")
        return _record(row)

    def has(self, name: str) -> bool:
        """Whether a key or name is taken."""
        found = self._sql.execute("SELECT 1 FROM snapshot WHERE name = ?", (name,)).fetchone()
        return found is not None

    def chain(self, name: str) -> list[Record]:
        """Return a snapshot and all below it, itself first. Raises SnapshotNotFoundError."""
        rows = [_record(row) for row in self._sql.execute(_CHAIN, (name,))]
        if not rows:
            raise SnapshotNotFoundError(f"no snapshot {name!r}")
        return rows

    def all(self) -> list[Record]:
        """Return every snapshot, oldest first."""
        return [_record(row) for row in self._sql.execute(f"SELECT {_COLUMNS} ORDER BY s.id")]

    def children(self, parent: str) -> list[Record]:
        """Return what stands on a snapshot, or, for an empty name, on nothing.

        Raises SnapshotNotFoundError.
        """
        parent_id = self.get(parent).id if parent else None
        query = f"SELECT {_COLUMNS} WHERE s.parent IS ?"
        return [_record(row) for row in self._sql.execute(query, (parent_id,))]

    def insert(self, new: NewSnapshot, now_ns: int) -> Record:
        """Store a snapshot on a committed parent.

        Raises SnapshotNotFoundError (parent), UsageError (parent not committed), and
        SnapshotExistsError.
        """
        parent_id, depth = None, 1
        if new.parent:
            parent = self.get(new.parent)
            if parent.info.kind is not Kind.COMMITTED:
                raise UsageError(f"parent {new.parent!r} is not a committed snapshot")
            parent_id, depth = parent.id, parent.depth + 1
        if self.has(new.name):
            raise SnapshotExistsError(f"snapshot {new.name!r} exists")
        fields = (new.name, parent_id, new.kind, new.mode, depth, new.image, now_ns, now_ns)
        self._sql.execute(
            """INSERT INTO snapshot
            (name, parent, kind, mode, depth, image, created_ns, updated_ns, labels)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
            (*fields, _text(new.labels)),
        )
        return self.get(new.name)

    def commit(self, key: str, name: str, labels: Mapping[str, str], now_ns: int) -> Record:
        """Turn the active snapshot ``key`` into the committed ``name``; the labels are replaced.

        Raises SnapshotNotFoundError, SnapshotStateError (not active) and SnapshotExistsError.
        """
        if self.has(name):
            raise SnapshotExistsError(f"snapshot {name!r} exists")
        record = self.get(key)
        if record.info.kind is not Kind.ACTIVE:
            raise SnapshotStateError(f"snapshot {key!r} is not active")
        self._sql.execute(
            """UPDATE snapshot SET name = ?, kind = ?, labels = ?, created_ns = ?, updated_ns = ?
            WHERE id = ?""",
            (name, Kind.COMMITTED, _text(labels), now_ns, now_ns, record.id),
        )
        return self.get(name)

    def remove(self, key: str) -> Record:
        """Forget a snapshot. Raises SnapshotNotFoundError, and SnapshotStateError with children."""
        record = self.get(key)
        query = "SELECT 1 FROM snapshot WHERE parent = ?"
        if self._sql.execute(query, (record.id,)).fetchone():
            raise SnapshotStateError(f"cannot remove snapshot {key!r}: others stand on it")
        self._sql.execute("DELETE FROM snapshot WHERE id = ?", (record.id,))
        return record

    def set_labels(self, name: str, labels: Mapping[str, str], now_ns: int) -> Record:
        """Replace all labels. Raises SnapshotNotFoundError."""
        self._sql.execute(
            "UPDATE snapshot SET labels = ?, updated_ns = ? WHERE name = ?",
            (_text(labels), now_ns, name),
        )
        return self.get(name)

    def set_usage(self, id: int, usage: Usage) -> None:  # noqa: A002 - a snapshot's id
        """Keep what was counted."""
        self._sql.execute(
            "UPDATE snapshot SET size = ?, inodes = ? WHERE id = ?", (usage.size, usage.inodes, id)
        )

    def ids(self) -> set[int]:
        """Return the ids of all snapshots: the directories that are not garbage."""
        return {row[0] for row in self._sql.execute("SELECT id FROM snapshot")}

    def put_image(self, image: LazyImage) -> None:
        """Keep what mounts an image; the last puller's reference stays."""
        self._sql.execute(
            """INSERT INTO image VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
            reference = excluded.reference, manifest_digest = excluded.manifest_digest""",
            (
                image.id,
                image.reference,
                str(image.manifest_digest),
                " ".join(map(str, image.layers)),
            ),
        )

    def image(self, id: str) -> LazyImage:  # noqa: A002 - an image's id
        """Return an image that a snapshot is of."""
        row = self._sql.execute("SELECT * FROM image WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise SnapshotNotFoundError(f"no image {id!r}")
        return _image(row)

    def images(self) -> list[LazyImage]:
        """Return every image that is known."""
        return [_image(row) for row in self._sql.execute("SELECT * FROM image ORDER BY id")]

    def count_of_image(self, id: str, *modes: Mode) -> int:  # noqa: A002 - an image's id
        """Return how many snapshots of these modes are of an image."""
        marks = ", ".join("?" * len(modes))
        query = f"SELECT count(*) FROM snapshot WHERE image = ? AND mode IN ({marks})"  # noqa: S608
        (count,) = self._sql.execute(query, (id, *modes)).fetchone()
        return int(count)

    def forget_image(self, id: str) -> None:  # noqa: A002 - an image's id
        """Forget an image that no snapshot is of."""
        self._sql.execute("DELETE FROM image WHERE id = ?", (id,))


def _text(labels: Mapping[str, str]) -> str:
    return json.dumps(dict(labels), ensure_ascii=False)


def _record(row: tuple[Any, ...]) -> Record:
    (number, name, parent, kind, created, updated, labels, mode, depth, image, size, inodes) = row
    return Record(
        number,
        Info(name, parent or "", Kind(kind), created, updated, json.loads(labels)),
        Mode(mode),
        depth,
        image,
        None if size is None else Usage(size, inodes),
    )


def _image(row: tuple[str, str, str, str]) -> LazyImage:
    number, reference, manifest_digest, layers = row
    blobs = tuple(Digest.parse(text) for text in layers.split())
    return LazyImage(number, reference, Digest.parse(manifest_digest), blobs)
