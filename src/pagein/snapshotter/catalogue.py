"""The state of all snapshots: one SQLite database, one transaction a call.

Rule 1. Write-ahead log with ``synchronous=FULL``: a commit is on the disk when it returns.
        containerd's own store (bbolt) syncs each transaction too, and believes from then on that
        the snapshot is there; ``NORMAL`` may lose the last ones in a power cut, and images would be
        broken until somebody removed them.
Rule 2. Writers take turns on one connection, and readers share another: a reader sees the last
        commit, and never waits for a writer's fsync.
Rule 3. A database that cannot be read is set aside together with the directories that it described:
        never with an empty list in its place, by which they would all be garbage.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pagein.errors import CatalogueDamagedError, UsageError
from pagein.snapshotter.rows import Rows

VERSION: Final = 1
"""``PRAGMA user_version``. A newer one is refused; an older one would be migrated here."""

_FILE: Final = "catalogue.db"
_SETTINGS: Final = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
)
_SCHEMA: Final = """
BEGIN;
-- An image whose layers we committed ourselves: all that it takes to mount it again.
CREATE TABLE image (
    id TEXT PRIMARY KEY,               -- LazyImage.id, also the name of its mount
    reference TEXT NOT NULL,           -- as the last puller spelled it
    manifest_digest TEXT NOT NULL,
    layers TEXT NOT NULL               -- blob digests, lowest first, with spaces between
);
CREATE TABLE snapshot (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- its directory; never used twice
    name TEXT NOT NULL UNIQUE,         -- the key while active, the name once committed
    parent INTEGER REFERENCES snapshot (id),
    kind INTEGER NOT NULL,             -- values.Kind
    mode TEXT NOT NULL,                -- values.Mode
    depth INTEGER NOT NULL,            -- snapshots from the bottom to this one, counted from 1
    image TEXT REFERENCES image (id),  -- null where mode is classical
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL,
    labels TEXT NOT NULL,              -- JSON object
    size INTEGER,                      -- usage; null: not counted yet
    inodes INTEGER
);
CREATE INDEX snapshot_by_parent ON snapshot (parent);
CREATE INDEX snapshot_by_image ON snapshot (image);
PRAGMA user_version = 1;
COMMIT;
"""


class Catalogue:
    """The snapshots of one root folder. Safe to call from any thread.

    Raises CatalogueDamagedError when the database was damaged (the next one made here is empty),
    and UsageError for one of a newer pagein.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._writer = _open(root / _FILE)
            self._reader = _connect(root / _FILE)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and not _is_damage(error):
                raise UsageError(f"cannot open {root / _FILE}: {error}") from error
            place = _set_aside(root)
            reason = " ".join(str(error).split())
            raise CatalogueDamagedError(
                f"the database of snapshots {root / _FILE} is damaged ({reason}); it and the "
                f"snapshots are now in {place}",
                hint="start again to begin with none, and have containerd pull its images anew",
            ) from error
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()

    @contextlib.contextmanager
    def write(self) -> Iterator[Rows]:
        """Yield the tables for a transaction: it is kept at the end, or undone by an error."""
        with self._write_lock:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield Rows(self._writer)
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def read(self) -> Iterator[Rows]:
        """Yield the tables as they are now, for several reads that agree with each other."""
        with self._read_lock:
            self._reader.execute("BEGIN")
            try:
                yield Rows(self._reader)
            finally:
                self._reader.execute("ROLLBACK")

    def close(self) -> None:
        """Close the database; idempotent."""
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()


def _connect(path: Path) -> sqlite3.Connection:
    # One process uses the database, so nobody waits long; sqlite3 itself must begin no transaction.
    connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    try:
        for setting in _SETTINGS:
            connection.execute(setting)
    except BaseException:
        connection.close()
        raise
    return connection


def _open(path: Path) -> sqlite3.Connection:
    connection = _connect(path)
    try:
        path.chmod(0o600)
        _check(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection, path: Path) -> None:
    problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise sqlite3.DatabaseError(str(problem))
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise UsageError(
            f"{path} has version {version}, and this pagein knows {VERSION}",
            hint="install the newer pagein again",
        )
    if version == 0:
        connection.executescript(_SCHEMA)


def _is_damage(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _set_aside(root: Path) -> Path:
    """Move the database and the directories it described away. Mounts over them go on."""
    place = (
        root / f"damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{time.time_ns() % 1000}"
    )
    place.mkdir(mode=0o700)
    for name in ("snapshots", _FILE, f"{_FILE}-wal", f"{_FILE}-shm"):
        with contextlib.suppress(FileNotFoundError):
            (root / name).rename(place / name)
    return place
