"""Artifacts that a conversion may build on: sectors that they have are not stored again.

Rule 1. A base is a function of the base artifacts named, in their order, and of nothing else.
Rule 2. A pack counts only where the destination holds it, or takes it from its own registry.
Rule 3. Nothing of a base is believed but where a sector lies: a row that lies makes a read fail,
        as each sector is hashed before its use. What a sector holds is read from its bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from pagein.engine.nearest import nearest_tags
from pagein.errors import FormatError, NotFoundError, RemoteError, UsageError
from pagein.format.erofs.read import read_tree
from pagein.format.index import Index
from pagein.format.manifest import MAX_LAYERS, Descriptor
from pagein.format.platforms import Platform
from pagein.format.tree import Flat, Node, walk
from pagein.store.pack import PackSource
from pagein.store.repository import BlobTaker, Repository, WritableRepository
from pagein.store.resolve import (
    FoundArtifact,
    Resolved,
    SourceImage,
    find_artifact,
    load_index,
    plain_artifact,
    resolve,
)
from pagein.store.retrying import RetryingSource
from pagein.types import BLOCK_SIZE, Digest, Sector, SectorRef

MAX_BASE_PACKS: Final = 64
"""Packs of bases that an artifact may use. Each version of an image adds a pack; the limit keeps
manifests, and the requests of the next conversion, few. The smallest parts are stored again."""

_LOOK_AT: Final = 4
"""Tags whose image is looked at: a request or two each."""

_MAX_TAGS: Final = 5000
"""Tags that are listed: five requests."""


@dataclass(frozen=True, slots=True)
class NamedBase:
    """A base that the user named: ``reference`` leads to an artifact, or to a converted image."""

    repository: Repository
    reference: str | Digest


@dataclass(frozen=True, slots=True)
class PreviousBase:
    """The artifact of the version before, looked for at the destination.

    ``near`` is the tag of the version to be converted.
    """

    near: str | None = None


BaseWish = PreviousBase | tuple[NamedBase, ...]
"""What to build on; an empty tuple: nothing."""


@dataclass(frozen=True, slots=True)
class Home:
    """The sector that holds a small file, and the file's size in bytes."""

    sector: Digest
    size: int


def _read_nothing(ref: SectorRef) -> Sector:
    raise NotFoundError(f"no sector {ref.digest} without a base")


@dataclass(frozen=True, slots=True)
class Base:
    """Where sectors are stored already, and the packs they are in.

    ``sectors`` has those that hold small files: offset and size (bytes) of each. ``homes`` has the
    same by path, its parts joined by NUL. ``read`` fetches a sector, from any thread.
    """

    rows: Mapping[Digest, SectorRef] = field(default_factory=dict)
    packs: Mapping[Digest, Descriptor] = field(default_factory=dict)
    sectors: Mapping[Digest, Mapping[int, int]] = field(default_factory=dict)
    homes: Mapping[bytes, Home] = field(default_factory=dict)
    read: Callable[[SectorRef], Sector] = _read_nothing


@dataclass(frozen=True, slots=True)
class _Part:
    place: Repository
    found: FoundArtifact
    index: Index
    tree: Node

    @classmethod
    def load(cls, place: Repository, found: FoundArtifact) -> _Part:
        """Read an artifact; of an optimized one what it was made from, where hot files are flat."""
        found = plain_artifact(place, found)
        index = load_index(place, found)
        return cls(place, found, index, read_tree(index.metadata))


def find_base(
    wish: BaseWish,
    destination: WritableRepository,
    image: SourceImage,
    platform: Platform,
    *,
    sector_size: int,
    tag: str | None,
) -> Base:
    """Return what the conversion of ``image`` may build on.

    ``tag`` is the name that the artifact will get: what has it now is the version before. Raises
    UsageError or NotFoundError for a named base that cannot be one; a previous version that cannot
    be found or read is none.
    """
    if isinstance(wish, PreviousBase):
        search = _previous(destination, image, platform, near=wish.near, tag=tag)
        fitting = (part for part in search if part.index.sector_size == sector_size)
        parts = list(islice(fitting, 1))
    else:
        parts = [_named(base, platform, sector_size) for base in wish]
    own = len(image.manifest.layers) + 2  # packs, the index, and the pack of a hot region
    limit = max(0, min(MAX_BASE_PACKS, MAX_LAYERS - own))
    return _join(parts, destination, limit)


def _named(base: NamedBase, platform: Platform, sector_size: int) -> _Part:
    found = resolve(base.repository, base.reference, platform).artifact
    what = f"base {base.reference} in {base.repository.name}"
    if found is None:
        raise NotFoundError(
            f"{what} has not been converted", hint="convert it first, or --base none"
        )
    part = _Part.load(base.repository, found)
    if part.index.sector_size != sector_size:
        raise UsageError(
            f"{what} has sectors of {part.index.sector_size} bytes, not {sector_size}",
            hint=f"--sector-size {part.index.sector_size}, or --base none",
        )
    return part


def _previous(
    destination: WritableRepository,
    image: SourceImage,
    platform: Platform,
    *,
    near: str | None,
    tag: str | None,
) -> Iterator[_Part]:
    """Yield artifacts that may be the version before, the likeliest first."""
    tags: list[str] = []
    with suppress(NotFoundError, RemoteError, FormatError):
        tags += islice(destination.tags(), _MAX_TAGS)
    own = [tag] if tag is not None and tag in tags else []
    names = [*own, *(name for name in nearest_tags(tags, near) if name != tag)]
    seen: list[Resolved] = []
    for name in names[: len(own) + _LOOK_AT]:
        with suppress(NotFoundError, RemoteError, FormatError):
            seen.append(resolve(destination, name, platform, want_artifact=False))
    layers = {layer.digest: layer.size for layer in image.manifest.layers}
    others = [one for one in seen if _subject(one) not in (None, image.blob.digest)]
    others.sort(key=lambda one: _likeness(one, layers), reverse=True)
    for one in others:
        with suppress(NotFoundError, RemoteError, FormatError):
            found = one.artifact or (one.source and find_artifact(destination, one.source))
            if found:
                yield _Part.load(destination, found)


def _subject(one: Resolved) -> Digest | None:
    if one.source is not None:
        return one.source.blob.digest
    subject = one.artifact.artifact.subject if one.artifact else None
    return subject.digest if subject else None


def _likeness(one: Resolved, layers: Mapping[Digest, int]) -> int:
    """Return the stored bytes of layers that both images have; an artifact's own name wins."""
    if one.source is None:
        return sum(layers.values()) + 1
    return sum(layers.get(layer.digest, 0) for layer in one.source.manifest.layers)


def _join(parts: Sequence[_Part], destination: WritableRepository, limit: int) -> Base:
    rows: dict[Digest, SectorRef] = {}
    packs: dict[Digest, Descriptor] = {}
    places: dict[Digest, Repository] = {}
    for part in parts:
        for pack in part.found.artifact.packs:
            packs.setdefault(pack.digest, pack)
            places.setdefault(pack.digest, part.place)
        for ref in part.index.sectors[part.index.hot_sectors :]:
            if ref.pack is not None:
                rows.setdefault(ref.digest, ref)
    used: Counter[Digest] = Counter()
    for ref in rows.values():
        assert ref.pack is not None
        used[ref.pack] += ref.stored
    chosen = sorted(used, key=lambda pack: (-used[pack], pack))[:limit]
    held = {pack for pack in chosen if _is_there(pack, destination, places[pack])}
    rows = {digest: ref for digest, ref in rows.items() if ref.pack in held}
    sectors: dict[Digest, dict[int, int]] = {digest: {} for digest in rows}
    homes: dict[bytes, Home] = {}
    for part in parts:
        _note_small_files(part, sectors, homes)
    sources = {pack: RetryingSource(PackSource(places[pack])) for pack in held}

    def read(ref: SectorRef) -> Sector:
        assert ref.pack is not None
        return sources[ref.pack].get(ref)

    return Base(
        rows,
        {pack: packs[pack] for pack in packs if pack in held},
        {digest: extents for digest, extents in sectors.items() if extents},
        homes,
        read,
    )


def _note_small_files(
    part: _Part, sectors: dict[Digest, dict[int, int]], homes: dict[bytes, Home]
) -> None:
    """Add the files of an artifact that lie in one of ``sectors``, and take less than all of it."""
    size = part.index.sector_size
    for path, node in walk(part.tree):
        if not isinstance(node.layout, Flat) or not 0 < node.size < size:
            continue
        row, offset = divmod(node.layout.block * BLOCK_SIZE, size)
        sector = part.index.sectors[row].digest if row < len(part.index.sectors) else None
        if sector in sectors and offset + node.size <= size:
            sectors[sector].setdefault(offset, node.size)
            homes.setdefault(path.replace(b"/", b"\0"), Home(sector, node.size))


def _is_there(pack: Digest, destination: WritableRepository, home: Repository) -> bool:
    if destination.has_blob(pack):
        return True
    if not isinstance(destination, BlobTaker):
        return False
    with suppress(NotFoundError, RemoteError):
        return destination.take_blob(pack, home)
    return False
