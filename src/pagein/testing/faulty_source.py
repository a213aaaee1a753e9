"""Sector sources for tests: plain bytes, and scripted misbehaviour."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pagein.errors import NotFoundError, PageinError
from pagein.events import Kind
from pagein.store.source import SectorSource
from pagein.types import Buffer, ByteRange, Digest, Encoding, Sector, SectorRef

Step = PageinError | Callable[[], None] | None
"""What one call does first: raise, run something, or nothing."""


def raw_ref(data: Buffer, pack: bytes = b"a pack", offset: int = 0) -> SectorRef:
    """Describe bytes as a sector stored raw."""
    return SectorRef(Digest.of(data), len(data), Encoding.RAW, Digest.of(pack), offset, len(data))


@dataclass(slots=True)
class BytesSource:
    """Serves sectors from a list of byte strings, and notes who asked for what."""

    sectors: Iterable[Buffer] = ()
    asked: list[tuple[str, Kind]] = field(default_factory=list)
    _held: dict[str, Buffer] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._held = {Digest.of(data).hex: data for data in self.sectors}

    def get(self, ref: SectorRef, /, *, kind: Kind = Kind.DEMAND) -> Sector:
        """Return the sector; NotFoundError when it is not in the list."""
        with self._lock:
            self.asked.append((ref.digest.hex, kind))
        if ref.digest.hex not in self._held:
            raise NotFoundError(f"no sector {ref.digest}")
        return Sector.verify(ref, self._held[ref.digest.hex])

    def get_run(self, refs: Sequence[SectorRef], /, *, kind: Kind) -> Iterator[Sector]:
        """Yield each in turn."""
        for ref in refs:
            yield self.get(ref, kind=kind)


class FaultySource:
    """Plays a script, one step a call; after its end it only passes on."""

    def __init__(self, upstream: SectorSource, script: Iterable[Step] = ()) -> None:
        self._upstream = upstream
        self._script = list(script)
        self._lock = threading.Lock()
        self.calls = 0

    def get(self, ref: SectorRef, /, *, kind: Kind = Kind.DEMAND) -> Sector:
        """Play the next step, then ask upstream."""
        with self._lock:
            self.calls += 1
            step = self._script.pop(0) if self._script else None
        if isinstance(step, PageinError):
            raise step
        if step is not None:
            step()
        return self._upstream.get(ref, kind=kind)

    def get_run(self, refs: Sequence[SectorRef], /, *, kind: Kind) -> Iterator[Sector]:
        """Play a step for each."""
        for ref in refs:
            yield self.get(ref, kind=kind)


class PackFile:
    """The part of a `Repository` that sectors are read through: packs as byte strings.

    ``damage`` may return other bytes, or raise.
    """

    def __init__(
        self,
        packs: Iterable[bytes],
        *,
        name: str = "packs",
        damage: Callable[[ByteRange, bytes], bytes] | None = None,
    ) -> None:
        self.name = name
        self._packs = {Digest.of(pack): pack for pack in packs}
        self._damage = damage
        self._lock = threading.Lock()
        self.reads: list[tuple[Digest, ByteRange]] = []

    def read_range(self, digest: Digest, span: ByteRange, /) -> Buffer:
        """Return a part of a pack."""
        with self._lock:
            self.reads.append((digest, span))
        if digest not in self._packs:
            raise NotFoundError(f"no pack {digest}")
        data = self._packs[digest][span.start : span.stop]
        return data if self._damage is None else self._damage(span, data)
