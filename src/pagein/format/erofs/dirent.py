"""Directory blocks: ``struct erofs_dirent`` entries first, then their names.

Rule 1. Names are in strict bytewise order over the whole directory, "." and ".." included at
their sorted place ("!a" and "+x" go before "."): the kernel looks names up by binary search.
Rule 2. Every block but the last is 4096 bytes, padded with NUL; the last ends with its last name.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from pagein.errors import FormatError
from pagein.types import BLOCK_SIZE

ENTRY_SIZE: Final = 12
MAX_NAME: Final = 255
DOTS: Final = (b".", b"..")

_KINDS: Final = range(1, 8)
_ENTRY = struct.Struct("<QHBB")


class Entry(NamedTuple):
    """One name: the inode number and file type (`NodeKind` as a number) it stands for.

    A tuple and not a dataclass: reading 100,000 of them is half as slow.
    """

    name: bytes
    nid: int
    kind: int


def check_name(name: bytes) -> None:
    """Raise FormatError unless ``name`` may stand in a directory beside "." and ".."."""
    if not 0 < len(name) <= MAX_NAME:
        raise FormatError(
            f"a name of {len(name)} bytes ({name[:64]!r}): linux allows 1 to 255", field="name"
        )
    if b"/" in name or b"\0" in name or name in DOTS:
        raise FormatError(f"not a file name: {name!r}", field="name")


def split_blocks(names: Sequence[bytes]) -> list[slice]:
    """Cut sorted names into runs that fit a block each."""
    runs: list[slice] = []
    start = used = 0
    for index, name in enumerate(names):
        need = ENTRY_SIZE + len(name)
        if used + need > BLOCK_SIZE:
            runs.append(slice(start, index))
            start, used = index, 0
        used += need
    runs.append(slice(start, len(names)))
    return runs


def encode_block(names: Sequence[bytes], nids: Sequence[int], kinds: Sequence[int]) -> bytes:
    """Return one block, without padding."""
    count = len(names)
    offsets = accumulate(map(len, names[:-1]), initial=count * ENTRY_SIZE)
    fields = [field for row in zip(nids, offsets, kinds, strict=True) for field in row]
    return struct.pack("<" + "QHBx" * count, *fields) + b"".join(names)


def first_name(block: memoryview, offset: int) -> bytes:
    """Return the first name of a block without reading the others, for a binary search; whatever
    the bytes, it is one that `parse_block` of the right block makes up for."""
    size = len(block)
    start = _ENTRY.unpack_from(block)[1] if size >= ENTRY_SIZE else 0
    stop = min(start + MAX_NAME, size)
    if start >= 2 * ENTRY_SIZE and size >= 2 * ENTRY_SIZE:
        stop = min(stop, _ENTRY.unpack_from(block, ENTRY_SIZE)[1])
    if not ENTRY_SIZE <= start < stop:
        raise _broken(f"its names start at {start}", offset)
    return bytes(block[start:stop]).split(b"\0", 1)[0]


def parse_block(block: memoryview, offset: int) -> list[Entry]:
    """Read one block (the last one of a directory cut to its used bytes).

    Checks bounds, names and the order inside the block; ``offset`` is for messages.
    """
    size = len(block)
    first = _ENTRY.unpack_from(block)[1] if size >= ENTRY_SIZE else 0
    if first < ENTRY_SIZE or first % ENTRY_SIZE or first > size:
        raise _broken(f"its names start at {first}", offset)
    rows = list(_ENTRY.iter_unpack(block[:first]))
    data = bytes(block)
    entries: list[Entry] = []
    last = b""
    for index, (nid, start, kind, reserved) in enumerate(rows):
        if index + 1 < len(rows):
            stop = rows[index + 1][1]
        else:
            # The last name ends at the first NUL or with the block; what follows is padding.
            stop = data.find(b"\0", start)
            stop = size if stop < 0 else stop
            if data.count(0, stop) != size - stop:
                raise _broken("padding is not zero", offset + stop)
        if not first <= start < stop <= size or reserved or kind not in _KINDS:
            raise _broken(f"entry {index} is out of bounds", offset + index * ENTRY_SIZE)
        name = data[start:stop]
        if name <= last or len(name) > MAX_NAME or b"/" in name or b"\0" in name:
            raise _broken(f"name {name[:300]!r} is not allowed or out of order", offset + start)
        entries.append(Entry(name, nid, kind))
        last = name
    return entries


def _broken(why: str, offset: int) -> FormatError:
    return FormatError(
        f"erofs directory block at {offset}: {why}", field="directory", offset=offset
    )
