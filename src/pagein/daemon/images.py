"""The images that this machine can start: found converted, converted here, or known from before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pagein.daemon.stats import MountStats
from pagein.daemon.wiring import Node
from pagein.errors import NotFoundError, PageinError, RemoteError, RemoteUnavailableError
from pagein.events import Observer, ignore
from pagein.format.index import Index
from pagein.format.manifest import parse_artifact
from pagein.store.atomic import write_durably
from pagein.store.files import ImageFiles
from pagein.store.layout import LayoutRepository
from pagein.store.repository import Repository
from pagein.store.resolve import (
    FoundArtifact,
    Resolved,
    SourceImage,
    checked_index,
    find_artifact,
    resolve,
)
from pagein.types import Digest, ImageName, Transport

ShowProgress = Callable[[int, int], None]
"""Called with bytes done and bytes in all (0: not known)."""

Say = Callable[[str], None]
"""Tells the user one line about the work at hand."""


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image that can be started: its index, and the places its packs can be read from."""

    name: ImageName
    artifact: FoundArtifact
    index: Index
    repositories: tuple[Repository, ...]

    @property
    def index_digest(self) -> Digest:
        """Digest of the index blob."""
        return self.artifact.artifact.index.digest


class Images:
    """Finds images, and keeps beside the cache what a start without the registry needs."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def resolve(
        self, name: ImageName, platform: str | None, *, want_artifact: bool = True
    ) -> tuple[Repository, Resolved]:
        """Follow a reference at the first place that answers. Raises what the last one raises.

        A mirror may have the image and not what refers to it: the places after it are asked for
        the artifact.
        """
        wanted = self.node.platform(platform)
        *mirrors, own = self.node.places(name)
        without: tuple[Repository, Resolved] | None = None
        for mirror in mirrors:
            with contextlib.suppress(NotFoundError, RemoteError):
                reference = self.node.reference(name, mirror)
                found = resolve(mirror, reference, wanted, want_artifact=want_artifact)
                if found.artifact is not None or not want_artifact:
                    return mirror, found
                without = without or (mirror, found)
        try:
            reference = self.node.reference(name, own)
            return own, resolve(own, reference, wanted, want_artifact=want_artifact)
        except (NotFoundError, RemoteError):
            if without is None:
                raise
            return without

    def place(self, name: ImageName) -> Repository:
        """Return the first place that has an image, to read its source from."""
        *mirrors, own = self.node.places(name)
        for mirror in mirrors:
            with contextlib.suppress(NotFoundError, RemoteError):
                mirror.manifest(self.node.reference(name, mirror))
                return mirror
        return own

    def find(self, reference: str, *, platform: str | None = None) -> FoundImage:
        """Find a converted image. Raises NotFoundError where nobody has converted it."""
        name = absolute_name(reference)
        try:
            _, resolved = self.resolve(name, platform)
        except RemoteUnavailableError as error:
            return self._known(name, error)
        found = self.converted(name, resolved)
        if found is None:
            raise NotFoundError(
                f"{name} has not been converted", hint=f"pagein convert {reference}"
            )
        return found

    def require(
        self, reference: str, *, platform: str | None, progress: ShowProgress, say: Say
    ) -> FoundImage:
        """Find a converted image, or convert it here while its layers arrive."""
        name = absolute_name(reference)
        try:
            place, resolved = self.resolve(name, platform)
        except RemoteUnavailableError as error:
            known = self._known(name, error)
            say(f"{error}; starting {name} from what is here")
            return known
        found = self.converted(name, resolved)
        if found is not None:
            return found
        assert resolved.source is not None
        say(f"nobody has converted {name}; converting it here first")
        from pagein.daemon.conversion import convert_here  # 110 ms that most starts can do without

        convert_here(self.node, place, resolved.source, progress)
        here = self._converted_here(name, resolved.source)
        assert here is not None
        return here

    def converted(self, name: ImageName, resolved: Resolved) -> FoundImage | None:
        """Return what serves an image: its artifact, or what was converted here; None: nothing."""
        if resolved.artifact is not None:
            return self._ready(name, resolved.artifact, self.node.places(name))
        assert resolved.source is not None
        return self._converted_here(name, resolved.source)

    def _converted_here(self, name: ImageName, source: SourceImage) -> FoundImage | None:
        local = LayoutRepository(self.node.paths.converted)
        found = find_artifact(local, replace(source, listed_in=None))
        return self._ready(name, found, [local]) if found else None

    def _ready(self, name: ImageName, found: FoundArtifact, places: list[Repository]) -> FoundImage:
        """Read the index, from the local copy if there is one, and remember what was found."""
        data = self._index(found, places)
        index = checked_index(data, found)
        with contextlib.suppress(OSError):  # a full disk only means no start without the registry
            self._remember(name, found)
        return FoundImage(name, found, index, tuple(places))

    def known(self, name: ImageName, artifact: bytes) -> FoundImage:
        """Return an image whose artifact's manifest is at hand: mostly without the registry."""
        found = FoundArtifact(Digest.of(artifact), parse_artifact(artifact), artifact)
        blobs = self.node.paths.converted / "blobs/sha256"
        here = all((blobs / pack.digest.hex).exists() for pack in found.artifact.packs)
        places: list[Repository] = (
            [LayoutRepository(self.node.paths.converted)] if here else self.node.places(name)
        )
        data = self._index(found, places)
        return FoundImage(name, found, checked_index(data, found), tuple(places))

    def _index(self, found: FoundArtifact, places: list[Repository]) -> bytes:
        index = found.artifact.index
        file = self.node.paths.image(index.digest) / "index"
        data = _read_intact(file, index.digest)
        if data is None:
            data = _first_blob(places, index.digest, index.size)
            with contextlib.suppress(OSError):
                self.node.paths.make(file.parent)
                write_durably(file, data)
        return data

    def _remember(self, name: ImageName, found: FoundArtifact) -> None:
        entry = self._entry(name)
        if not entry.exists() or entry.read_bytes() != found.data:
            self.node.paths.make(entry.parent)
            write_durably(entry, found.data)

    def _entry(self, name: ImageName) -> Path:
        return self.node.paths.state / "references" / Digest.of(str(name).encode()).hex

    def _known(self, name: ImageName, error: PageinError) -> FoundImage:
        """Return an image as it was when its place last answered, or raise ``error``."""
        try:
            data = self._entry(name).read_bytes()
        except OSError:
            raise error from None
        found = FoundArtifact(Digest.of(data), parse_artifact(data), data)
        digest = found.artifact.index.digest
        index = _read_intact(self.node.paths.image(digest) / "index", digest)
        if index is None:
            raise error
        places = [*self.node.places(name), LayoutRepository(self.node.paths.converted)]
        return FoundImage(name, found, checked_index(index, found), tuple(places))

    def metadata_file(self, image: FoundImage) -> Path:
        """Return a local file that is exactly the metadata part of an image's device."""
        path = self.node.paths.make(self.node.paths.image(image.index_digest)) / "metadata"
        if _read_intact(path, Digest.of(image.index.metadata)) is None:
            write_durably(path, image.index.metadata)
        return path

    @contextlib.contextmanager
    def files(
        self, reference: str, *, platform: str | None = None, observer: Observer = ignore
    ) -> Iterator[ImageFiles]:
        """Open an image to look inside. Only what is read is fetched."""
        image = self.find(reference, platform=platform)
        with self.node.read_path(image.index, image.repositories, observer) as path:
            yield ImageFiles(image.index.metadata, path.image)

    def hydrate(self, image: FoundImage, progress: ShowProgress) -> int:
        """Have every sector in the cache; return the stored bytes that had to be fetched."""
        stats = MountStats()
        with self.node.read_path(image.index, image.repositories, stats.observe) as path:
            path.hydrate(progress)
        fetched: int = stats.snapshot()["bytes_fetched"]
        return fetched


def absolute_name(reference: str) -> ImageName:
    """Read a reference; a local path becomes absolute, so that it means the same anywhere."""
    name = ImageName.parse(reference)
    if name.transport is Transport.DOCKER:
        return name
    return replace(name, path=str(Path(name.path).absolute()))


def _read_intact(path: Path, digest: Digest) -> bytes | None:
    """Return a local copy if it is whole; None if it is absent or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if Digest.of(data) != digest:
        path.unlink(missing_ok=True)
        return None
    return data


def _first_blob(places: list[Repository], digest: Digest, size: int) -> bytes:
    *mirrors, own = places
    for mirror in mirrors:
        with contextlib.suppress(PageinError):
            return mirror.read_blob(digest, limit=size)
    return own.read_blob(digest, limit=size)
