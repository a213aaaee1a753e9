"""Values that every layer shares: frozen, and valid from the moment they are made."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from pagein.errors import FormatError, SectorCorruptError, UsageError

BLOCK_SIZE: Final = 4096
"""EROFS block size of every device, in bytes."""

DEFAULT_SECTOR_SIZE: Final = 4 << 20
MIN_SECTOR_SIZE: Final = 256 << 10
MAX_SECTOR_SIZE: Final = 16 << 20

Buffer = bytes | bytearray | memoryview

_HEX_64 = re.compile(r"[0-9a-f]{64}")


def is_sector_size(size: int) -> bool:
    """Say whether ``size`` (bytes) is a power of two from 256 KiB to 16 MiB."""
    return MIN_SECTOR_SIZE <= size <= MAX_SECTOR_SIZE and size & (size - 1) == 0


class Digest:
    """A SHA-256 digest, written ``sha256:<64 lower-case hex digits>``. Immutable.

    Not a dataclass, so that msgspec asks us how to read one: from its text form, checked.
    """

    __slots__ = ("hex",)
    hex: str

    def __init__(self, hex: str) -> None:  # noqa: A002 - the name that everybody knows
        if not _HEX_64.fullmatch(hex):
            raise FormatError(f"not a sha256 digest: {hex[:80]!r}", field="digest")
        object.__setattr__(self, "hex", hex)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Digest cannot be changed: {name}")

    def __reduce__(self) -> tuple[type[Digest], tuple[str]]:
        return Digest, (self.hex,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Digest) and self.hex == other.hex

    def __lt__(self, other: Digest) -> bool:
        return self.hex < other.hex

    def __hash__(self) -> int:
        return hash(self.hex)

    def __repr__(self) -> str:
        return f"Digest({self.hex!r})"

    @classmethod
    def of(cls, data: Buffer) -> Digest:
        """Hash ``data``."""
        return cls(hashlib.sha256(data).hexdigest())

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read ``sha256:<hex>``; any other algorithm or form is a FormatError."""
        algorithm, colon, value = text.partition(":")
        if not colon or algorithm != "sha256":
            raise FormatError(f"not a sha256 digest: {text[:80]!r}", field="digest")
        return cls(value)

    @classmethod
    def from_raw(cls, raw: bytes) -> Digest:
        """Wrap the 32 bytes of a SHA-256 value."""
        return cls(raw.hex())

    @property
    def raw(self) -> bytes:
        """The 32 bytes."""
        return bytes.fromhex(self.hex)

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


@dataclass(frozen=True, slots=True)
class ByteRange:
    """``length`` bytes from ``start``; both in bytes, never empty."""

    start: int
    length: int

    def __post_init__(self) -> None:
        if self.start < 0 or self.length <= 0:
            raise FormatError(f"not a byte range: {self.start}+{self.length}", field="range")

    @property
    def stop(self) -> int:
        """First byte after the range."""
        return self.start + self.length

    def header(self) -> str:
        """Value of an HTTP ``Range`` header (RFC 9110 section 14.2)."""
        return f"bytes={self.start}-{self.stop - 1}"


class Encoding(IntEnum):
    """How a sector is stored in its pack."""

    ZERO = 0
    RAW = 1
    ZSTD = 2


@dataclass(frozen=True, slots=True)
class SectorRef:
    """One row of the sector table: which bytes a sector is, and where they are stored.

    ``digest`` is of the ``size`` uncompressed bytes. A zero sector is all zeros, has no
    pack, and is never asked of a source.
    """

    digest: Digest
    size: int
    encoding: Encoding
    pack: Digest | None = field(default=None, compare=False)
    offset: int = field(default=0, compare=False)
    stored: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if (self.encoding is Encoding.ZERO) != (self.pack is None):
            raise FormatError("a sector has a pack unless it is zero", field="pack")
        if self.offset < 0 or self.stored < 0 or self.stored > self.size:
            raise FormatError("stored sector out of bounds", field="stored")
        if self.encoding is Encoding.RAW and self.stored != self.size:
            raise FormatError("a raw sector is stored whole", field="stored")


@dataclass(frozen=True, slots=True)
class Sector:
    """Verified bytes. ``Sector.verify`` is the only way to make one from outside bytes."""

    digest: Digest
    data: Buffer

    @classmethod
    def verify(cls, ref: SectorRef, data: Buffer) -> Sector:
        """Accept ``data`` as the sector ``ref`` names, or raise SectorCorruptError."""
        if len(data) != ref.size:
            raise SectorCorruptError(
                f"sector {ref.digest} has {len(data)} bytes instead of {ref.size}"
            )
        found = hashlib.sha256(data).hexdigest()
        if found != ref.digest.hex:
            raise SectorCorruptError(f"sector {ref.digest} has digest sha256:{found}")
        return cls(ref.digest, data)


_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::\d{1,5})?")


class Transport(IntEnum):
    """Kind of place an image lies in; ``prefix`` is how a reference spells it."""

    DOCKER = 0
    OCI = 1
    OCI_ARCHIVE = 2
    DOCKER_ARCHIVE = 3
    DIR = 4

    @property
    def prefix(self) -> str:
        """``docker://``, ``oci:``, ``oci-archive:``, ``docker-archive:`` or ``dir:``."""
        return (
            "docker://" if self is Transport.DOCKER else self.name.lower().replace("_", "-") + ":"
        )


@dataclass(frozen=True, slots=True)
class ImageName:
    """A reference, spelled as skopeo spells it.

    For ``docker://``: ``host`` and ``repository`` (normalised as Docker does:
    ``python`` is ``docker.io/library/python``), with a tag (default ``latest``), a digest, or
    both. For the others: ``path`` and, but for ``dir:``, an optional tag; of a docker archive
    the tag may be a whole ``NAME:TAG``.
    """

    transport: Transport
    host: str = ""
    repository: str = ""
    path: str = ""
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """Read a reference; raises UsageError with one line that says what is wrong."""
        for transport in Transport:
            if text.startswith(transport.prefix):
                rest = text[len(transport.prefix) :]
                break
        else:
            transport, rest = Transport.DOCKER, text
        if not rest:
            raise UsageError(f"not an image reference: {text!r}")
        return (
            cls._remote(rest, text)
            if transport is Transport.DOCKER
            else cls._local(transport, rest)
        )

    @classmethod
    def _remote(cls, rest: str, text: str) -> ImageName:
        rest, at, digest_text = rest.partition("@")
        try:
            digest = Digest.parse(digest_text) if at else None
        except FormatError as error:
            raise UsageError(f"not an image reference: {text!r}: {error}") from None
        slash, colon = rest.rfind("/"), rest.rfind(":")
        tag: str | None = None
        if colon > slash:
            rest, tag = rest[:colon], rest[colon + 1 :]
            if not _TAG.fullmatch(tag):
                raise UsageError(f"not an image reference: {text!r}: bad tag {tag!r}")
        first, slash_text, remainder = rest.partition("/")
        if slash_text and (first == "localhost" or "." in first or ":" in first):
            host, repository = first, remainder
        else:
            host, repository = "docker.io", rest if slash_text else f"library/{rest}"
        if not _HOST.fullmatch(host) or not _REPOSITORY.fullmatch(repository):
            raise UsageError(f"not an image reference: {text!r}", hint="HOST/REPOSITORY:TAG")
        if tag is None and digest is None:
            tag = "latest"
        return cls(Transport.DOCKER, host=host, repository=repository, tag=tag, digest=digest)

    @classmethod
    def _local(cls, transport: Transport, rest: str) -> ImageName:
        if transport is Transport.DIR:
            return cls(transport, path=rest)
        rest, at, digest_text = rest.partition("@")
        if at:
            return cls(transport, path=rest, digest=Digest.parse(digest_text))
        if transport is Transport.DOCKER_ARCHIVE:
            # An archive names its images as Docker does, with colons and slashes: as in skopeo,
            # the name begins after the first colon.
            path, _, name = rest.partition(":")
            return cls(transport, path=path, tag=name or None)
        path, colon, tag = rest.rpartition(":")
        if not colon or "/" in tag:
            return cls(transport, path=rest)
        return cls(transport, path=path, tag=tag)

    def __str__(self) -> str:
        place = (
            f"{self.host}/{self.repository}" if self.transport is Transport.DOCKER else self.path
        )
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.transport.prefix}{place}{tag}{digest}"
