"""What containerd's snapshot interface speaks of, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class Kind(IntEnum):
    """What may be done with a snapshot; the numbers are those of the wire."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


class Mode(StrEnum):
    """Where the files of a snapshot are.

    ``classical``: in its own directory. ``lazy``: it is the top layer of an image, and stands for
    the image's mounted tree. ``placeholder``: a lower layer of such an image, without files until
    somebody asks for them.
    """

    CLASSICAL = "classical"
    LAZY = "lazy"
    PLACEHOLDER = "placeholder"


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount(2) for the caller to make. containerd 1.6 knows no ``target``, so we send none."""

    type: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Info:
    """A snapshot as containerd knows it. ``parent`` is empty at the bottom; times are in ns."""

    name: str
    parent: str
    kind: Kind
    created_ns: int
    updated_ns: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes and inodes on the disk, without those of the parents."""

    size: int = 0
    inodes: int = 0
