"""containerd's snapshot interface, without gRPC (its core/snapshots/snapshotter.go).

A *key* names an active snapshot or a view, a *name* a committed one; both share one space.
`prepare` gives an active snapshot on a committed parent, or on nothing; the caller makes the mounts
that it returns, writes, and `commit`s under a name that others may stand on. A `view` is never
committed. A layer that comes with the labels of an image pull may already be here: see `lazy`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from pagein.errors import SnapshotExistsError, SnapshotStateError, UsageError
from pagein.events import Observer, SnapshotterProblem, ignore
from pagein.snapshotter.catalogue import Catalogue
from pagein.snapshotter.directories import SnapshotDirectories
from pagein.snapshotter.disk_usage import UsageMeter, disk_usage
from pagein.snapshotter.filters import parse_filters
from pagein.snapshotter.images import ImageMounts, LazyImage
from pagein.snapshotter.labels import check_labels, snapshot_ref, updated_labels
from pagein.snapshotter.lazy import LazyLayers
from pagein.snapshotter.overlay import OverlayChoices, snapshot_mounts
from pagein.snapshotter.rows import NewSnapshot, Record
from pagein.snapshotter.values import Info, Kind, Mode, Mount, Usage

MAX_KEY: Final = 4096
"""Bytes of a key or name; containerd's are a namespace, a number and a chain ID."""

_INDEX: Final = Path("/sys/module/overlay/parameters/index")


def no_usage(image: LazyImage, /) -> Usage:
    """Charge nothing to the snapshot that stands for an image."""
    del image
    return Usage()


def overlay_choices() -> OverlayChoices:
    """Choose as containerd's overlayfs snapshotter does, for root of the first user namespace."""
    return OverlayChoices(index_off=_INDEX.exists())


class Snapshotter:
    """All snapshots below one root folder. Safe to call from any thread.

    ``image_usage`` says what an image's data takes on this disk; it is charged to the snapshot of
    its top layer. Raises what `Catalogue` raises.
    """

    def __init__(
        self,
        root: Path,
        images: ImageMounts,
        *,
        observer: Observer = ignore,
        image_usage: Callable[[LazyImage], Usage] = no_usage,
        choices: OverlayChoices | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._catalogue = Catalogue(root)
        self._directories = SnapshotDirectories(root)
        self._lazy = LazyLayers(self._catalogue, self._directories, images, observer, now_ns)
        self._observer = observer
        self._image_usage = image_usage
        self._choices = choices or overlay_choices()
        self._now_ns = now_ns
        self._meter = UsageMeter()

    def ensure(self) -> None:
        """Bring back what snapshots stand on, from local state only. Before the first call."""
        self._directories.drop_unfinished()
        self._lazy.attach_all()

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """Make an active snapshot.

        Raises SnapshotExistsError: the key is taken, or the layer that the labels name is here and
        committed. Raises SnapshotNotFoundError, UsageError (the parent is not committed, or the
        labels may not be stored) and SnapshotUnavailableError.
        """
        _check_key(key)
        kept = check_labels(labels)
        ref = snapshot_ref(kept)
        if ref and self._lazy.commit(key, parent, kept):
            raise SnapshotExistsError(f"layer {ref} is here already")
        return self._add(NewSnapshot(key, parent, Kind.ACTIVE, kept))

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """Make a read-only snapshot. Raises what `prepare` raises."""
        _check_key(key)
        return self._add(NewSnapshot(key, parent, Kind.VIEW, check_labels(labels)))

    def mounts(self, key: str) -> list[Mount]:
        """Return the mounts of an active snapshot or view, the same each time.

        Raises SnapshotNotFoundError, SnapshotStateError (committed), SnapshotUnavailableError.
        """
        with self._catalogue.read() as rows:
            record = rows.get(key)
        if record.info.kind is Kind.COMMITTED:
            raise SnapshotStateError(f"snapshot {key!r} is committed, and has no mounts")
        return self._mounts(record, self._lowers(record.info.parent))

    def commit(self, name: str, key: str, labels: Mapping[str, str], *, parent: str = "") -> None:
        """Turn an active snapshot into a committed one; ``labels`` replace those that it had.

        Nothing is counted here: containerd waits with its own transaction open. Raises
        SnapshotNotFoundError, SnapshotStateError (not active), SnapshotExistsError, and UsageError
        for a ``parent`` that the snapshot does not have.
        """
        _check_key(name)
        with self._catalogue.write() as rows:
            if parent and rows.get(key).info.parent != parent:
                raise UsageError(f"cannot commit {key!r} on another parent, {parent!r}")
            rows.commit(key, name, check_labels(labels), self._now_ns())

    def remove(self, key: str) -> None:
        """Forget a snapshot; `cleanup` removes its files.

        Raises SnapshotNotFoundError, and SnapshotStateError while others stand on it.
        """
        with self._catalogue.write() as rows:
            record = rows.remove(key)
        if record.image is not None:
            self._lazy.release(record.image)

    def stat(self, key: str) -> Info:
        """Describe a snapshot. Raises SnapshotNotFoundError."""
        with self._catalogue.read() as rows:
            return rows.get(key).info

    def update(self, name: str, labels: Mapping[str, str], mask: Iterable[str]) -> Info:
        """Change labels. Raises SnapshotNotFoundError, and UsageError for anything else."""
        with self._catalogue.write() as rows:
            changed = updated_labels(rows.get(name).info.labels, labels, mask)
            return rows.set_labels(name, changed, self._now_ns()).info

    def walk(self, filters: Iterable[str]) -> list[Info]:
        """Return the snapshots that any filter holds for, oldest first. Raises UsageError."""
        holds = parse_filters(filters)
        with self._catalogue.read() as rows:
            return [record.info for record in rows.all() if holds(record.info)]

    def usage(self, key: str) -> Usage:
        """Return what a snapshot takes on the disk, parents not counted.

        Raises SnapshotNotFoundError. A committed one is counted once, when first asked for.
        """
        with self._catalogue.read() as rows:
            record = rows.get(key)
            image = rows.image(record.image) if record.image else None
        if record.mode is Mode.LAZY:
            assert image is not None
            return self._image_usage(image)
        if record.usage is not None:
            return record.usage
        files = self._directories.files(record.id)
        if record.info.kind is Kind.ACTIVE:
            return self._meter.measure(files)
        if record.info.kind is Kind.VIEW or not files.exists():
            return Usage()
        usage = disk_usage(files)
        with self._catalogue.write() as rows:
            rows.set_usage(record.id, usage)
        return usage

    def cleanup(self) -> None:
        """Remove the files of removed snapshots, and unmount images that nothing stands on."""
        with self._catalogue.write() as rows:  # so that no directory is made meanwhile
            self._directories.put_aside(rows.ids())
        for problem in self._directories.remove_garbage():
            self._observer(SnapshotterProblem("remove the files of a snapshot", str(problem)))
        self._lazy.release_unused()

    def close(self) -> None:
        """Close the database. Mounts stay, for the containers that run."""
        self._catalogue.close()

    def _add(self, new: NewSnapshot) -> list[Mount]:
        lowers = self._lowers(new.parent)  # before the transaction: it may have to unpack
        with self._catalogue.write() as rows:
            record = rows.insert(new, self._now_ns())
            self._directories.make(
                record.id,
                writable=new.kind is Kind.ACTIVE,
                like=lowers[0] if lowers else None,
            )
        return self._mounts(record, lowers)

    def _lowers(self, parent: str) -> list[Path]:
        """Return the directories of a chain, nearest first; a whole tree covers the rest."""
        if not parent:
            return []
        with self._catalogue.read() as rows:
            chain = rows.chain(parent)
        lowers = []
        for record in chain:
            if record.mode is not Mode.CLASSICAL:
                lowers.append(self._lazy.tree(record))
                break
            lowers.append(self._directories.files(record.id))
        return lowers

    def _mounts(self, record: Record, lowers: list[Path]) -> list[Mount]:
        own = self._directories.of(record.id)
        return snapshot_mounts(record.info.kind, own, lowers, self._choices)


def _check_key(key: str) -> None:
    if not key:
        raise UsageError("a snapshot needs a key")
    if len(key.encode()) > MAX_KEY:
        raise UsageError(f"a key of more than {MAX_KEY} bytes: {key[:64]!r}")
