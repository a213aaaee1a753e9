"""Directory blocks: ``struct erofs_dirent`` entries first, then their names.

Rule 1. Names are in strict bytewise order over the whole directory, "." and ".." included at
their sorted place ("!a" and "+x" go before "."): the kernel looks names up by binary search.
Rule 2. Every block but the last is 4096 bytes, padded with NUL; the last ends with its last name.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate
from operator import lt
from typing import Final, NamedTuple

from pagein.errors import FormatError
from pagein.types import BLOCK_SIZE

ENTRY_SIZE: Final = 12
MAX_NAME: Final = 255
DOTS: Final = (b".", b"..")

_KINDS: Final = frozenset(range(1, 8))
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
    """Return the first name of a block without reading the others, for a binary search.

    Only its own bounds are checked: a search that it misleads ends in a block that does not have
    the name, and `parse_block` checks that one whole.
    """
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
    # Whole columns and not entry by entry: a lookup parses a block, a walk all of them (3 times
    # as fast).
    nids, starts, kinds, reserved = zip(*_ENTRY.iter_unpack(block[:first]), strict=True)
    data = bytes(block)
    # The last name ends at the first NUL or with the block; what follows is padding.
    end = data.find(b"\0", starts[-1])
    end = size if end < 0 else end
    stops = (*starts[1:], end)
    if not all(map(lt, starts, stops)) or any(reserved) or not _KINDS.issuperset(kinds):
        raise _broken("an entry is out of bounds or of no type", offset)
    names = [data[start:stop] for start, stop in zip(starts, stops, strict=True)]
    if not all(map(lt, names, names[1:])):
        raise _broken("names are out of order", offset)
    if data.find(b"/", first) >= 0 or data.count(0, first) != size - end:
        raise _broken("a name has a slash or a NUL, or padding is not zero", offset)
    if max(map(len, names)) > MAX_NAME:
        raise _broken("a name is too long", offset)
    return list(map(Entry, names, nids, kinds))


def _broken(why: str, offset: int) -> FormatError:
    return FormatError(
        f"erofs directory block at {offset}: {why}", field="directory", offset=offset
    )
