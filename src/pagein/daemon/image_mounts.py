"""What the snapshotter asks for (`ImageMounts`), from the images and mounts of this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pagein.daemon.attachments import Attachments
from pagein.daemon.images import Images
from pagein.errors import NotFoundError, PageinError
from pagein.snapshotter.images import LazyImage
from pagein.snapshotter.locks import KeyedLocks
from pagein.snapshotter.values import Usage
from pagein.types import Digest, Encoding, ImageName, SectorRef

SNAPSHOTS: Final = "snapshots"
"""The name under which the snapshotter uses images."""

_FOUND_S: Final = 300.0
_NOT_FOUND_S: Final = 10.0
"""A pull asks once for each layer, within a second; somebody who converts an image and pulls it
again should not be told of what was before."""

_CACHE_SEEN_S: Final = 30.0
"""kubelet looks at image sizes every few minutes, containerd every 10 s."""

_REMEMBERED: Final = 256


@dataclass(frozen=True, slots=True)
class _Answer:
    """What `find` found out, and until when it holds."""

    until: float
    image: LazyImage | None = None
    error: PageinError | None = None


class NodeImages:
    """An `ImageMounts` over this machine's registries, cache and devices."""

    def __init__(
        self,
        images: Images,
        attachments: Attachments,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._images = images
        self._attachments = attachments
        self._monotonic = monotonic
        self._locks = KeyedLocks()
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, Digest], _Answer] = {}
        self._held: tuple[float, frozenset[str]] = 0.0, frozenset()

    def find(self, reference: str, manifest_digest: Digest, /) -> LazyImage | None:
        """Return the image if somebody has converted it. Raises PageinError."""
        key = reference, manifest_digest
        with self._locks.holding(f"{reference} {manifest_digest}"):
            answer = self._answers.get(key)
            if answer is None or answer.until <= self._monotonic():
                answer = self._ask(reference, manifest_digest)
                self._note(key, answer)
        if answer.error is not None:
            raise answer.error.with_traceback(None)
        return answer.image

    def attach(self, image: LazyImage, /) -> Path:
        """Return the path of the mounted merged tree. Raises PageinError."""
        try:
            return self._attachments.attach(image.id, SNAPSHOTS)
        except NotFoundError:
            # Our journal was lost, and containerd's state was not: the registry knows.
            found = self._look_up(image.reference, image.manifest_digest)
            if found is None or found.id != image.id:
                raise
        return self._attachments.attach(image.id, SNAPSHOTS)

    def detach(self, image: LazyImage, /) -> None:
        """Unmount the tree, unless others than the snapshotter use it. Raises PageinError."""
        self._attachments.detach(image.id, SNAPSHOTS)

    def materialise(self, image: LazyImage, layers: int, into: Path, /) -> None:
        """Unpack the lowest ``layers`` layers, from the source image. Raises PageinError.

        An artifact holds the merged tree: what a higher layer removed or replaced is not in it.
        """
        from pagein.build.unpack import unpack  # rarely needed, and 100 ms to import

        name = replace(ImageName.parse(image.reference), digest=image.manifest_digest)
        place, resolved = self._images.resolve(name, None, want_artifact=False)
        if resolved.source is None:
            raise NotFoundError(f"no source image behind {name}")
        unpack(place, resolved.source.manifest, into, layers=layers)

    def usage(self, image: LazyImage) -> Usage:
        """Return what the cache holds of an image. What several images share counts for each."""
        device = self._attachments.current(image.id)
        if device is None:
            return Usage()
        return cached_usage(device.sectors, self._cached())

    def _cached(self) -> frozenset[str]:
        seen, held = self._held
        if seen <= self._monotonic():
            held = frozenset(self._attachments.cache.refs())
            self._held = self._monotonic() + _CACHE_SEEN_S, held
        return held

    def _ask(self, reference: str, digest: Digest) -> _Answer:
        try:
            image = self._look_up(reference, digest)
        except PageinError as error:
            return _Answer(self._monotonic() + _NOT_FOUND_S, error=error)
        kept = _NOT_FOUND_S if image is None else _FOUND_S
        return _Answer(self._monotonic() + kept, image=image)

    def _look_up(self, reference: str, digest: Digest) -> LazyImage | None:
        name = ImageName.parse(reference)
        # The tag first: its image index may name the artifact. It may also have moved meanwhile.
        by_digest = replace(name, digest=digest)
        names = [by_digest] if name.digest or name.tag is None else [name, by_digest]
        for asked in names:
            _, resolved = self._images.resolve(asked, None)
            source = resolved.source
            if source is None or source.blob.digest != digest:
                continue
            found = self._images.converted(asked, resolved)
            if found is not None:
                image_id = self._attachments.remember(name, found.artifact.data)
                layers = tuple(layer.digest for layer in source.manifest.layers)
                return LazyImage(image_id, reference, digest, layers)
        return None

    def _note(self, key: tuple[str, Digest], answer: _Answer) -> None:
        with self._lock:
            while len(self._answers) >= _REMEMBERED:
                del self._answers[next(iter(self._answers))]
            self._answers[key] = answer


def cached_usage(sectors: tuple[SectorRef, ...], held: frozenset[str]) -> Usage:
    """Sum up the sectors of an image that a cache holds."""
    distinct = {ref.digest.hex: ref.size for ref in sectors if ref.encoding is not Encoding.ZERO}
    sizes = [size for name, size in distinct.items() if name in held]
    return Usage(sum(sizes), len(sizes))
