"""What the snapshotter asks of whoever finds, attaches and unpacks images.

It decides which snapshot stands on what; this protocol is all that it knows of registries, caches
and devices.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pagein.errors import FormatError
from pagein.types import Digest

_ID = re.compile(r"[a-z0-9]{8,64}")


@dataclass(frozen=True, slots=True)
class LazyImage:
    """An image that can be mounted at once, as it was when it was found.

    ``id`` names one merged tree: two finds with the same id may share a mount. It is a file name of
    8 to 64 of ``a-z0-9``, and short is good: overlay options name the mount point. ``reference`` is
    what the puller spelled (``docker.io/library/python:3.12``). ``layers`` are the digests of the
    layer blobs of the source manifest, lowest first: the merged tree is all of them.
    """

    id: str
    reference: str
    manifest_digest: Digest
    layers: tuple[Digest, ...]

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise FormatError(f"not an image id: {self.id[:80]!r}", field="id")
        if not self.layers:
            raise FormatError(f"image {self.reference} has no layers", field="layers")


class ImageMounts(Protocol):
    """Finds images, and has their trees mounted in the host's mount namespace.

    Safe to call from any thread; calls for one image may overlap. The snapshotter keeps the
    `LazyImage` in its own state, and hands it in again after a restart: all but `find` must work
    for such a value without a call to `find` before, and `attach` without the registry.
    """

    def find(self, reference: str, manifest_digest: Digest, /) -> LazyImage | None:
        """Return the image if its merged tree can be mounted; None if nobody has converted it.

        Called for each layer of a pull, so the answer is worth keeping for a while. Raises
        PageinError where it cannot be told or must not be used: the pull is then classical, with
        that reason.
        """
        ...

    def attach(self, image: LazyImage, /) -> Path:
        """Return the absolute path of the mounted merged tree; mount it first if need be.

        Idempotent, and fast where it is mounted: it is called for each container. The path of an
        image never changes while a container may use it, and has no ``:``, ``,`` or ``\\``. Raises
        PageinError.
        """
        ...

    def detach(self, image: LazyImage, /) -> None:
        """Unmount the tree: no snapshot stands on it any more. Idempotent. Raises PageinError.

        `attach` and `materialise` may follow.
        """
        ...

    def materialise(self, image: LazyImage, layers: int, into: Path, /) -> None:
        """Unpack the tree of the lowest ``layers`` layers into ``into``, which does not exist.

        ``into`` is made on the snapshotter's own file system, by root, with owners, modes, xattrs
        and times as the layers say, and no whiteouts: the tree stands alone. Nothing is left there
        after an error. Raises PageinError.
        """
        ...
