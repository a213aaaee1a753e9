"""What happened, as frozen values, and who watches. Logs and metrics are observers of this stream.

An observer is called from any thread, must not block, and must not raise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pagein.types import Digest


class Kind(StrEnum):
    """Why a sector was asked for."""

    DEMAND = "demand"
    READ_AHEAD = "read-ahead"
    PREFETCH = "prefetch"
    HYDRATE = "hydrate"


@dataclass(frozen=True, slots=True)
class DeviceRead:
    """The kernel read ``length`` bytes; ``hit``: without a wait for a source."""

    offset: int
    length: int
    seconds: float
    hit: bool


@dataclass(frozen=True, slots=True)
class DeviceReadFailed:
    """A read was answered with an error number."""

    offset: int
    length: int
    errno: int
    reason: str


@dataclass(frozen=True, slots=True)
class SectorFetched:
    """A sector came from ``source``: ``stored`` bytes on the wire, verified."""

    digest: Digest
    stored: int
    size: int
    seconds: float
    kind: Kind
    source: str


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """One try at a source failed; ``transient`` says whether it is tried again."""

    digest: Digest
    source: str
    reason: str
    transient: bool


@dataclass(frozen=True, slots=True)
class SectorCorrupt:
    """Bytes with a wrong digest were dropped."""

    digest: Digest
    source: str


@dataclass(frozen=True, slots=True)
class CacheWriteFailed:
    """A sector was served, and not kept."""

    digest: Digest
    reason: str


@dataclass(frozen=True, slots=True)
class SectorEvicted:
    """The cache gave up a sector to stay within its size."""

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class PulledClassically:
    """An image is fetched layer by layer, though it might have been mounted. Once an image."""

    reference: str
    manifest_digest: Digest | None
    reason: str


@dataclass(frozen=True, slots=True)
class PulledLazily:
    """The top layer of an image was committed without a fetch."""

    reference: str
    manifest_digest: Digest


@dataclass(frozen=True, slots=True)
class LayerMaterialised:
    """The lowest ``layers`` layers of an image were unpacked, because something stands on them."""

    reference: str
    layers: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SnapshotterProblem:
    """Something went wrong beside a call, and will be tried again; ``what`` was being done."""

    what: str
    reason: str


Event = (
    DeviceRead
    | DeviceReadFailed
    | SectorFetched
    | FetchFailed
    | SectorCorrupt
    | CacheWriteFailed
    | SectorEvicted
    | PulledClassically
    | PulledLazily
    | LayerMaterialised
    | SnapshotterProblem
)
Observer = Callable[[Event], None]


def ignore(event: Event, /) -> None:
    """Watch nothing."""
    del event
