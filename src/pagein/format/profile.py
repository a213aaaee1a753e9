"""The profile of a start-up: which file ranges it touched, in order of first touch. JSON.

File ranges and not device offsets, so that a profile outlives a conversion and even, by path and
size, a version of its image (docs/reference/profile.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, NamedTuple, NoReturn
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec

from pagein.errors import FormatError
from pagein.types import BLOCK_SIZE, Digest

VERSION: Final = 1
MAX_PROFILE: Final = 64 << 20
"""Bytes of a profile: a million touches of 60 characters each."""

_PLAIN: Final = "/!#$&'()*+,:;<=>@[]^_`{|}~ "
_MAX_SIZE: Final = (1 << 63) - 1
_MAX_SECONDS: Final = 366 * 86400
_RECORDED: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", re.ASCII)


class Touch(NamedTuple):
    """``length`` bytes from ``offset`` of file number ``file``, first touched ``at_ms``
    milliseconds after the start. Written as an array of four numbers."""

    file: int
    offset: int
    length: int
    at_ms: int


class ProfiledFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that was touched. ``name`` is its path from the root without the leading slash,
    percent-encoded where it is not plain ASCII; ``size`` its length in bytes."""

    name: str
    size: int

    @classmethod
    def of(cls, path: bytes, size: int) -> ProfiledFile:
        """Name a file."""
        return cls(quote_from_bytes(path, safe=_PLAIN), size)

    @property
    def path(self) -> bytes:
        """The path as bytes, as `format.tree.walk` yields it."""
        return unquote_to_bytes(self.name)


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One or more recorded starts.

    ``recorded``: when, RFC 3339 in UTC. ``source``: the digest of the image's manifest.
    ``read_ahead_kb``: of the mount that was recorded; a start must be replayed with the same one.
    ``seconds``: how long was recorded. ``touches`` are in order of first touch, and do not overlap.
    """

    version: int = VERSION
    recorded: str
    reference: str
    source: Digest
    command: tuple[str, ...] = ()
    read_ahead_kb: int
    seconds: float
    files: tuple[ProfiledFile, ...]
    touches: tuple[Touch, ...]

    @property
    def touched(self) -> int:
        """Bytes of all touches."""
        return sum(touch.length for touch in self.touches)


def encode_profile(profile: Profile) -> bytes:
    """Return the JSON text."""
    return msgspec.json.encode(profile, enc_hook=_encode) + b"\n"


def decode_profile(data: bytes) -> Profile:
    """Read a profile. Raises FormatError for one that is not sound."""
    if len(data) > MAX_PROFILE:
        raise FormatError(f"a profile of {len(data)} bytes is too large", field="profile")
    try:
        profile = msgspec.json.decode(data, type=Profile, dec_hook=_decode)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"not a profile: {error}", field="profile") from None
    _check(profile)
    return profile


def _check(profile: Profile) -> None:
    if profile.version != VERSION:
        _refuse(f"version {profile.version}; this pagein reads version {VERSION}")
    if not 0 <= profile.read_ahead_kb <= 16384:
        _refuse(f"a read-ahead of {profile.read_ahead_kb} KiB")
    if not _RECORDED.fullmatch(profile.recorded):
        _refuse("the time of recording is not written as 2026-01-31T12:00:00Z")
    if not 0 <= profile.seconds <= _MAX_SECONDS:
        _refuse(f"a recording of {profile.seconds} s")
    if len({file.name for file in profile.files}) != len(profile.files):
        _refuse("a file is listed twice")
    for file in profile.files:
        if not 0 < file.size <= _MAX_SIZE:
            _refuse("a file without content")
        if not file.name or file != ProfiledFile.of(file.path, file.size):
            _refuse(f"the name {file.name[:80]!a} is not encoded as it should be")
    for touch in profile.touches:
        _check_touch(profile.files, touch)
    _check_overlap(profile.touches)


def _check_touch(files: tuple[ProfiledFile, ...], touch: Touch) -> None:
    if not 0 <= touch.file < len(files):
        _refuse(f"a touch of file {touch.file} of {len(files)}")
    size, stop = files[touch.file].size, touch.offset + touch.length
    if touch.offset < 0 or touch.length <= 0 or stop > size:
        _refuse(f"{touch.length} bytes at {touch.offset} of a file of {size}")
    if touch.offset % BLOCK_SIZE or (stop % BLOCK_SIZE and stop != size):
        _refuse(f"{touch.length} bytes at {touch.offset} are no whole blocks of {BLOCK_SIZE}")
    if not 0 <= touch.at_ms <= _MAX_SECONDS * 1000:
        _refuse(f"a touch after {touch.at_ms} ms")


def _check_overlap(touches: tuple[Touch, ...]) -> None:
    ordered = sorted(touches)
    for before, after in pairwise(ordered):
        if before.file == after.file and before.offset + before.length > after.offset:
            _refuse(f"byte {after.offset} of file {after.file} is touched twice")


def _refuse(why: str) -> NoReturn:
    raise FormatError(f"not a sound profile: {why}", field="profile")


def _encode(value: Any) -> str:
    return str(value)


def _decode(kind: type, value: Any) -> Any:
    parse: Callable[[str], Digest] = Digest.parse
    if kind is Digest and isinstance(value, str):
        return parse(value)
    raise NotImplementedError
