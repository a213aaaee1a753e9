"""Tar header fields to values: numbers, PAX records and times (POSIX.1-2017 pax, GNU tar manual).

Strict where Python's ``int`` is lax: ``1_0``, ``+1`` and ``-1`` are not octal numbers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from pagein.errors import FormatError

NANOSECONDS: Final = 1_000_000_000

_MAX_SECONDS: Final = 1 << 63
_MAX_DIGITS = 20


@lru_cache(maxsize=4096)
def number(field: bytes) -> int:
    """Read a number: octal text, empty for 0, or base-256 where the first bit is set.

    Base-256 is big-endian two's complement after that bit, so 0xFF starts a negative one. Cached:
    modes, owners and times repeat from entry to entry.
    """
    if field[0] & 0x80:
        if field[0] & 0x40:
            return int.from_bytes(field, "big", signed=True)
        return int.from_bytes(field, "big") - (0x80 << 8 * (len(field) - 1))
    text = field.strip(b" \0").partition(b"\0")[0]
    if not text:
        return 0
    try:
        if text.isdigit():
            return int(text, 8)
    except ValueError:
        pass
    raise FormatError(f"not an octal number in a tar header: {field!r}")


def decimal(text: bytes, what: str) -> int:
    """Read an unsigned decimal of at most 20 digits, as PAX records hold; ``what`` names it."""
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        raise FormatError(f"not a number in a pax header: {what}={text[:40]!r}", field=what)
    return int(text)


def pax_time(text: bytes) -> int:
    """Read ``-12.3456`` as nanoseconds, exactly; digits past the ninth are cut off."""
    sign = -1 if text.startswith(b"-") else 1
    seconds, point, fraction = text.removeprefix(b"-").partition(b".")
    if not (seconds or fraction) or (point and fraction and not fraction.isdigit()):
        raise FormatError(f"not a time in a pax header: {text[:40]!r}", field="mtime")
    nanoseconds = int(fraction[:9].ljust(9, b"0")) if fraction else 0
    return sign * (header_time(decimal(seconds or b"0", "mtime")) + nanoseconds)


def header_time(seconds: int) -> int:
    """Seconds to nanoseconds, refused beyond 64-bit seconds."""
    if not -_MAX_SECONDS <= seconds < _MAX_SECONDS:
        raise FormatError("time in a tar header is out of range", field="mtime")
    return seconds * NANOSECONDS


def pax_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """Split ``LENGTH KEY=VALUE\\n`` records; values are bytes and may hold anything.

    In order and with repetitions, which GNU sparse format 0.0 needs.
    """
    records: list[tuple[bytes, bytes]] = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + _MAX_DIGITS)
        length = data[position:space]
        if space < 0 or not length.isdigit():
            if not data[position:].strip(b"\0"):
                break  # some writers pad inside the size they declare
            raise FormatError("pax record without a length", field="pax")
        end = position + int(length)
        equals = data.find(b"=", space + 1, end)
        if end > len(data) or equals < 0 or data[end - 1 : end] != b"\n" or equals >= end - 1:
            raise FormatError("pax record does not fit its length", field="pax")
        key = data[space + 1 : equals]
        if not key or b"\0" in key:
            raise FormatError("pax record with a bad key", field="pax")
        records.append((key, data[equals + 1 : end - 1]))
        position = end
    return records
