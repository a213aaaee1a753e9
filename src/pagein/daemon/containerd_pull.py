"""Pull an image into containerd with the labels by which a snapshotter knows it.

kubelet's pulls carry them; those of plain ``ctr`` and ``nerdctl`` do not. What the snapshotter does
not take is fetched and unpacked here, so that every image is whole afterwards.
Sources: containerd core/unpack/unpacker.go (order of calls, keys), core/images/handlers.go and
docs/garbage-collection.md (labels that hold content), pkg/snapshotters/annotations.go.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, Final

from pagein.daemon.images import Images
from pagein.errors import FormatError, PageinError, SnapshotExistsError, UsageError
from pagein.format.manifest import Descriptor, parse_config
from pagein.snapshotter.containerd_client import ContainerdClient
from pagein.snapshotter.labels import (
    IMAGE_REF,
    LAYER_DIGEST,
    MANIFEST_DIGEST,
    MAX_LABEL_BYTES,
    SNAPSHOT_REF,
)
from pagein.store.repository import ManifestBlob, Repository
from pagein.store.resolve import SourceImage
from pagein.types import Digest, ImageName, Transport

IMAGE_LAYERS: Final = "containerd.io/snapshot/cri.image-layers"
_HELD: Final = "containerd.io/gc.ref.content"
_SOURCE: Final = "containerd.io/distribution.source"
_UNCOMPRESSED: Final = "containerd.io/uncompressed"
_MAX_CONFIG: Final = 16 << 20
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class PulledImage:
    """What a pull came to. ``fetched`` of ``layers`` were downloaded and unpacked."""

    name: str
    digest: Digest
    layers: int
    fetched: int


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer of an image that is being pulled, and the names of its snapshot and its parent."""

    blob: Descriptor
    diff_id: Digest
    chain: Digest
    parent: str
    labels: Mapping[str, str]


def containerd_name(name: ImageName) -> str:
    """Spell a reference as containerd does: ``docker.io/library/python:3.12``."""
    if name.transport is not Transport.DOCKER:
        raise UsageError(f"{name} is not in a registry: containerd cannot name it")
    tag = f":{name.tag or 'latest'}" if name.tag or name.digest is None else ""
    digest = f"@{name.digest}" if name.digest else ""
    return f"{name.host}/{name.repository}{tag}{digest}"


class ContainerdPull:
    """Pulls images for one snapshotter of one containerd."""

    def __init__(
        self,
        images: Images,
        client: ContainerdClient,
        snapshotter: str,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._images = images
        self._client = client
        self._snapshotter = snapshotter
        self._say = say

    def pull(self, reference: str, platform: str | None = None) -> PulledImage:
        """Pull one image. Raises PageinError."""
        name = ImageName.parse(reference)
        spelled = containerd_name(name)
        place, resolved = self._images.resolve(name, platform, want_artifact=False)
        source = resolved.source
        if source is None:
            raise UsageError(f"{spelled} is what pagein made of an image, not the image")
        origin = {f"{_SOURCE}.{name.host}": name.repository}
        config = place.read_blob(source.manifest.config.digest, limit=_MAX_CONFIG)
        layers = _layers(spelled, source, parse_config(config).diff_ids)
        with self._client.leasing():
            fetched = sum(self._layer(place, layer, origin) for layer in layers)
            target = self._store(name, place, source, config, layers[-1].chain, origin)
            self._client.set_image(spelled, target)
        return PulledImage(spelled, source.blob.digest, len(layers), fetched)

    def _layer(self, place: Repository, layer: _Layer, origin: Mapping[str, str]) -> bool:
        """Have a layer's snapshot; returns whether it had to be fetched."""
        for _ in range(3):  # as containerd: somebody may remove it between the two calls
            if self._client.has_snapshot(self._snapshotter, str(layer.chain)):
                return False
            key = f"extract-{time.time_ns() % 10**9}-{secrets.token_urlsafe(3)} {layer.chain}"
            try:
                mounts = self._client.prepare(self._snapshotter, key, layer.parent, layer.labels)
            except SnapshotExistsError:
                continue
            try:
                self._fetch(place, layer, origin)
                if (found := self._client.apply(layer.blob, mounts)) != layer.diff_id:
                    raise FormatError(  # noqa: TRY301 - the same as for any other failure is due
                        f"layer {layer.blob.digest} unpacks to {found}, not to {layer.diff_id}"
                    )
                self._client.commit(self._snapshotter, str(layer.chain), key, layer.labels)
            except SnapshotExistsError:
                self._client.remove(self._snapshotter, key)  # somebody was faster
            except BaseException:
                with suppress(PageinError):
                    self._client.remove(self._snapshotter, key)
                raise
            return True
        raise FormatError(f"snapshot {layer.chain} comes and goes")

    def _fetch(self, place: Repository, layer: _Layer, origin: Mapping[str, str]) -> None:
        self._say(f"fetching layer {layer.blob.digest}")
        labels = {**origin, _UNCOMPRESSED: str(layer.diff_id)}
        with place.open_blob(layer.blob.digest, size=layer.blob.size) as stream:
            self._client.write(layer.blob.digest, layer.blob.size, _pieces(stream), labels)

    def _store(
        self,
        name: ImageName,
        place: Repository,
        source: SourceImage,
        config: bytes,
        chain: Digest,
        origin: Mapping[str, str],
    ) -> Descriptor:
        """Store configuration, manifest and index; return what the image's name points to."""
        held = {**origin, f"containerd.io/gc.ref.snapshot.{self._snapshotter}": str(chain)}
        self._client.write(source.manifest.config.digest, len(config), [config], held)
        children = {f"{_HELD}.config": str(source.manifest.config.digest)}
        children |= {f"{_HELD}.l.{i}": str(e.digest) for i, e in enumerate(source.manifest.layers)}
        target = self._write_manifest(source.blob, {**origin, **children})
        if source.listed_in is not None:
            index = place.manifest(name.digest or name.tag or "latest")
            target = self._write_manifest(
                index, {**origin, f"{_HELD}.m.0": str(source.blob.digest)}
            )
        return target

    def _write_manifest(self, blob: ManifestBlob, labels: Mapping[str, str]) -> Descriptor:
        self._client.write(blob.digest, len(blob.data), [blob.data], labels)
        return Descriptor(media_type=blob.media_type, digest=blob.digest, size=len(blob.data))


def _layers(reference: str, source: SourceImage, diff_ids: Sequence[Digest]) -> list[_Layer]:
    """Return the layers of an image, lowest first. Raises FormatError."""
    blobs = source.manifest.layers
    if len(diff_ids) != len(blobs) or not blobs:
        raise FormatError(f"{reference} has {len(blobs)} layers and {len(diff_ids)} diff ids")
    found: list[_Layer] = []
    for number, (blob, diff_id) in enumerate(zip(blobs, diff_ids, strict=True)):
        parent = str(found[-1].chain) if found else ""
        chain = _chain_id(parent, diff_id)
        labels = {
            SNAPSHOT_REF: str(chain),
            IMAGE_REF: reference,
            MANIFEST_DIGEST: str(source.blob.digest),
            LAYER_DIGEST: str(blob.digest),
            IMAGE_LAYERS: _image_layers([one.digest for one in blobs[number:]]),
        }
        found.append(_Layer(blob, diff_id, chain, parent, labels))
    return found


def _chain_id(parent: str, diff_id: Digest) -> Digest:
    """Name a stack of layers (image-spec config.md, "Layer ChainID")."""
    if not parent:
        return diff_id
    return Digest(hashlib.sha256(f"{parent} {diff_id}".encode()).hexdigest())


def _image_layers(digests: Sequence[Digest]) -> str:
    """List the layers from one on, as many as fit a label."""
    room = MAX_LABEL_BYTES - len(IMAGE_LAYERS)
    length = len(str(digests[0])) + 1
    return ",".join(map(str, digests[: (room + 1) // length]))


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    while piece := stream.read(_PIECE):
        yield piece
