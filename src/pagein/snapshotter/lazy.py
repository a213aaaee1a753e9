"""The layers that nobody downloads: committed by us, mounted as one tree, unpacked when needed.

containerd asks, layer by layer and lowest first, to prepare a snapshot to unpack into. For a layer
of an image that can be mounted we commit the snapshot ourselves; containerd finds it and fetches
nothing. The top layer then stands for the whole merged tree, which covers all that is below it. A
lower layer is a placeholder: its own files are only needed if something else stands on it.

Rule 1. Whatever stands in the way of a lazy pull makes it a classical one, never a failed one. The
        image is attached with its first layer, so that this shows before any placeholder is made.
Rule 2. An image is attached, committed and released under its lock: none is unmounted between the
        question whether something stands on it and the answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from pagein.errors import (
    FormatError,
    NotFoundError,
    PageinError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    SnapshotUnavailableError,
)
from pagein.events import (
    LayerMaterialised,
    Observer,
    PulledClassically,
    PulledLazily,
    SnapshotterProblem,
)
from pagein.snapshotter.catalogue import Catalogue
from pagein.snapshotter.directories import SnapshotDirectories
from pagein.snapshotter.images import ImageMounts, LazyImage
from pagein.snapshotter.labels import LayerRequest, parse_layer, snapshot_ref
from pagein.snapshotter.locks import KeyedLocks
from pagein.snapshotter.rows import NewSnapshot, Record, Rows
from pagein.snapshotter.values import Kind, Mode
from pagein.types import Digest

_REMEMBERED: Final = 1024
_Pull = tuple[str, Digest | None]


class LazyLayers:
    """Commits image layers without their files, and finds files for what stands on them."""

    def __init__(
        self,
        catalogue: Catalogue,
        directories: SnapshotDirectories,
        images: ImageMounts,
        observer: Observer,
        now_ns: Callable[[], int],
    ) -> None:
        self._catalogue = catalogue
        self._directories = directories
        self._images = images
        self._observer = observer
        self._now_ns = now_ns
        self._locks = KeyedLocks()
        self._reported_lock = threading.Lock()
        self._reported: dict[_Pull, None] = {}

    def commit(self, key: str, parent: str, labels: Mapping[str, str]) -> bool:
        """Commit the layer that ``key`` would be unpacked for; False: it must be pulled.

        Raises SnapshotNotFoundError where there is no such parent.
        """
        with self._catalogue.read() as rows:
            depth = rows.get(parent).depth + 1 if parent else 1
        pull: _Pull = "", None
        try:
            request = parse_layer(labels)
            pull = request.reference, request.manifest_digest
            image = self._find(request, depth)
            with self._locks.holding(image.id):
                self._images.attach(image)
                self._store(key, parent, labels, image, depth)
        except (SnapshotExistsError, SnapshotNotFoundError):
            raise
        except Exception as error:
            self._report(pull, error)
            return False
        if depth == len(image.layers):
            self._observer(PulledLazily(request.reference, request.manifest_digest))
            with self._reported_lock:
                self._reported.pop(pull, None)
        return True

    def tree(self, record: Record) -> Path:
        """Return a directory with the whole tree up to a lazy snapshot or placeholder.

        Idempotent. Raises SnapshotUnavailableError.
        """
        assert record.image is not None
        try:
            if record.mode is Mode.LAZY:
                return self._attached(record.image)
            return self._materialised(record, record.image)
        except (PageinError, OSError) as error:
            raise SnapshotUnavailableError(
                f"cannot show snapshot {record.info.name!r}: {error}",
                hint=getattr(error, "hint", None),
            ) from error

    def release(self, image_id: str) -> None:
        """Unmount an image if no snapshot is its top layer; forget it if none is of it at all."""
        with self._locks.holding(image_id):
            with self._catalogue.read() as rows:
                if rows.count_of_image(image_id, Mode.LAZY):
                    return
                image = rows.image(image_id)
            try:
                self._images.detach(image)
            except PageinError as error:
                # The image stays known, so the next cleanup tries again.
                self._observer(SnapshotterProblem(f"unmount {image.reference}", str(error)))
                return
            with self._catalogue.write() as rows:
                if not rows.count_of_image(image_id, *Mode):
                    rows.forget_image(image_id)

    def release_unused(self) -> None:
        """Release what a cancelled pull or a failed unmount left."""
        with self._catalogue.read() as rows:
            images = [one.id for one in rows.images() if not rows.count_of_image(one.id, Mode.LAZY)]
        for image_id in images:
            self.release(image_id)

    def attach_all(self) -> None:
        """Attach every image that a snapshot stands for; what fails is tried when it is used."""
        with self._catalogue.read() as rows:
            images = [one for one in rows.images() if rows.count_of_image(one.id, Mode.LAZY)]
        for image in images:
            try:
                self._attached(image.id)
            except PageinError as error:
                self._observer(SnapshotterProblem(f"mount {image.reference}", str(error)))

    def _find(self, request: LayerRequest, depth: int) -> LazyImage:
        image = self._images.find(request.reference, request.manifest_digest)
        if image is None:
            raise NotFoundError(f"nobody has converted {request.reference}")
        if depth > len(image.layers) or image.layers[depth - 1] != request.layer_digest:
            raise FormatError(
                f"layer {depth} of {request.reference} is to be {request.layer_digest}, which is "
                "not what the image was converted from",
                field="layers",
            )
        return image

    def _store(
        self, key: str, parent: str, labels: Mapping[str, str], image: LazyImage, depth: int
    ) -> None:
        mode = Mode.LAZY if depth == len(image.layers) else Mode.PLACEHOLDER
        with self._catalogue.write() as rows:
            if rows.has(key):
                raise SnapshotExistsError(f"snapshot {key!r} exists")
            rows.put_image(image)  # also if it adds no snapshot: it is mounted, and may be unused
            if _is_here(rows, parent, snapshot_ref(labels)):
                return
            name = _free_name(rows, snapshot_ref(labels), key)
            new = NewSnapshot(name, parent, Kind.COMMITTED, labels, mode, image.id)
            rows.insert(new, self._now_ns())

    def _attached(self, image_id: str) -> Path:
        with self._locks.holding(image_id):
            with self._catalogue.read() as rows:
                image = rows.image(image_id)
                if not rows.count_of_image(image_id, Mode.LAZY):
                    raise NotFoundError(f"image {image.reference} was removed meanwhile")
            return self._images.attach(image)

    def _materialised(self, record: Record, image_id: str) -> Path:
        with self._locks.holding(f"snapshot {record.id}"):
            with self._catalogue.read() as rows:
                image = rows.image(image_id)

            def unpack(into: Path) -> None:
                began = time.monotonic()
                self._images.materialise(image, record.depth, into)
                seconds = time.monotonic() - began
                self._observer(LayerMaterialised(image.reference, record.depth, seconds))

            return self._directories.fill(record.id, unpack)

    def _report(self, pull: _Pull, error: Exception) -> None:
        with self._reported_lock:
            if pull in self._reported:
                return
            while len(self._reported) >= _REMEMBERED:
                del self._reported[next(iter(self._reported))]
            self._reported[pull] = None
        known = isinstance(error, PageinError)
        reason = str(error) if known else f"unexpected {type(error).__name__}: {error}"
        self._observer(PulledClassically(*pull, reason))


def _is_here(rows: Rows, parent: str, ref: str) -> bool:
    """Whether we committed this layer before: for another image, or in another namespace.

    containerd looks for the label and the parent, whatever the name is.
    """
    return any(
        child.mode is not Mode.CLASSICAL and snapshot_ref(child.info.labels) == ref
        for child in rows.children(parent)
    )


def _free_name(rows: Rows, ref: str, key: str) -> str:
    """Return the chain ID itself, which is taken where it stands on another parent already."""
    return f"{key} {ref}" if rows.has(ref) else ref
