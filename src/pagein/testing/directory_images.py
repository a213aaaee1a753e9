"""Images for a snapshotter that are plain directories: no registry, no device, calls counted."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from pagein.errors import NotFoundError, PageinError
from pagein.snapshotter.images import LazyImage
from pagein.snapshotter.labels import IMAGE_REF, LAYER_DIGEST, MANIFEST_DIGEST, SNAPSHOT_REF
from pagein.snapshotter.values import Mount
from pagein.types import Digest

Layer = Mapping[str, str | None]
"""File names and their text; None removes what is below."""

_WHITEOUT: Final = "(removed)"


def chain_id(layers: Sequence[Layer]) -> str:
    """Name a stack of layers; equal stacks have equal names, as OCI chain IDs."""
    return str(Digest.of(repr([sorted(layer.items()) for layer in layers]).encode()))


def layer_digest(layer: Layer) -> Digest:
    """Name a layer's blob."""
    return Digest.of(repr(sorted(layer.items())).encode())


class DirectoryImages:
    """An `ImageMounts`. "Mounted" is a directory that `attach` fills and `detach` removes.

    ``calls`` counts each method's calls. ``fail`` maps a method to what it raises; ``before`` maps
    one to what is called first, to hold it up.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: Counter[str] = Counter()
        self.fail: dict[str, Exception] = {}
        self.before: dict[str, Callable[[], object]] = {}
        self._layers: dict[Digest, tuple[str, tuple[Layer, ...]]] = {}
        self._lock = threading.Lock()

    def convert(self, reference: str, *layers: Layer) -> None:
        """Have an image of these layers, lowest first."""
        self._layers[self.manifest_digest(reference, *layers)] = reference, layers

    @staticmethod
    def manifest_digest(reference: str, *layers: Layer) -> Digest:
        """Return the digest of an image's manifest, converted or not."""
        return Digest.of((reference + chain_id(layers)).encode())

    def pull_labels(self, reference: str, number: int, *layers: Layer) -> dict[str, str]:
        """Return what containerd sends with layer ``number`` (from 1) of an image."""
        return {
            SNAPSHOT_REF: chain_id(layers[:number]),
            IMAGE_REF: reference,
            MANIFEST_DIGEST: str(self.manifest_digest(reference, *layers)),
            LAYER_DIGEST: str(layer_digest(layers[number - 1])),
        }

    def mounted(self) -> list[str]:
        """Return the ids of the images that are attached."""
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []

    def find(self, reference: str, manifest_digest: Digest, /) -> LazyImage | None:
        """Return an image that `convert` was called for."""
        self._called("find")
        found = self._layers.get(manifest_digest)
        if found is None:
            return None
        layers = tuple(map(layer_digest, found[1]))
        return LazyImage(manifest_digest.hex[:16], reference, manifest_digest, layers)

    def attach(self, image: LazyImage, /) -> Path:
        """Make the directory of the merged tree."""
        self._called("attach")
        target = self.folder / image.id
        with self._lock:
            if not target.exists():
                _merge(self._known(image), target)
        return target

    def detach(self, image: LazyImage, /) -> None:
        """Remove the directory."""
        self._called("detach")
        with self._lock:
            shutil.rmtree(self.folder / image.id, ignore_errors=True)

    def materialise(self, image: LazyImage, layers: int, into: Path, /) -> None:
        """Make a directory of the lowest layers."""
        self._called("materialise")
        _merge(self._known(image)[:layers], into)

    def _called(self, name: str) -> None:
        with self._lock:
            self.calls[name] += 1
        self.before.get(name, lambda: None)()
        if name in self.fail:
            raise self.fail[name]

    def _known(self, image: LazyImage) -> tuple[Layer, ...]:
        found = self._layers.get(image.manifest_digest)
        if found is None:
            raise NotFoundError(f"no image {image.reference}")
        return found[1]


def _merge(layers: Sequence[Layer], into: Path) -> None:
    if into.exists():
        raise PageinError(f"{into} exists")
    into.mkdir(parents=True)
    for layer in layers:
        for name, text in layer.items():
            path = into / name
            if text is None:
                path.unlink(missing_ok=True)
            else:
                path.write_text(text)


def apply(layer: Layer, mounts: Sequence[Mount]) -> None:
    """Write a layer where the mounts would write it, without mounting; a removal is marked."""
    (mount,) = mounts
    upper = Path(mount.source)
    for option in mount.options:
        if option.startswith("upperdir="):
            upper = Path(option.removeprefix("upperdir="))
    for name, text in layer.items():
        (upper / name).write_text(_WHITEOUT if text is None else text)


def seen(mounts: Sequence[Mount]) -> dict[str, str]:
    """Return the files that the mounts would show: the nearest directory wins."""
    (mount,) = mounts
    folders = [mount.source]
    if mount.type == "overlay":
        options = dict(option.split("=", 1) for option in mount.options if "=" in option)
        folders = [options["upperdir"]] if "upperdir" in options else []
        folders += options["lowerdir"].split(":")
    found: dict[str, str] = {}
    for folder in map(Path, folders):
        for path in folder.iterdir():
            found.setdefault(path.name, path.read_text())
    return {name: text for name, text in found.items() if text != _WHITEOUT}
