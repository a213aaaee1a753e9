"""Reads of a device's body, one after another, as a recording hands them on: 20 bytes each."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from pagein.errors import FormatError

_READ: Final = struct.Struct("<dQI")

pack_read = _READ.pack
"""Called with time, offset and length for each read of a recorded mount: no function in between."""


class Read(NamedTuple):
    """``length`` bytes of the body from ``offset``, asked for at ``seconds`` of some clock."""

    seconds: float
    offset: int
    length: int


def parse_reads(data: bytes) -> list[Read]:
    """Read what ``pack_read`` wrote, one after another. Raises FormatError for half a read."""
    if len(data) % _READ.size:
        raise FormatError(f"{len(data)} bytes are no whole number of reads", field="reads")
    return [Read(*fields) for fields in _READ.iter_unpack(data)]
