"""Which sectors to fetch with one request: neighbours in a pack.

A request costs the server more than its bytes: Debian's docker-registry 2.8 spends as much on a
range of 4 KiB as on one of 2 MiB (it reads 4 MiB ahead, whatever was asked), and registries count
requests before they answer 429.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pagein.types import SectorRef

MOST_SECTORS: Final = 4
MOST_BYTES: Final = 8 << 20
"""Stored bytes of one request: at 200 Mbit/s its last sector comes 0.3 s after its first byte."""


def runs(refs: Iterable[SectorRef], *, most_sectors: int = MOST_SECTORS) -> list[list[SectorRef]]:
    """Split into runs, in the order given, whose stored bytes touch each other in one pack."""
    found: list[list[SectorRef]] = []
    for ref in refs:
        run = found[-1] if found else []
        if (
            run
            and ref.pack is not None
            and ref.pack == run[-1].pack
            and ref.offset == run[-1].offset + run[-1].stored
            and len(run) < most_sectors
            and ref.offset + ref.stored - run[0].offset <= MOST_BYTES
        ):
            run.append(ref)
        else:
            found.append([ref])
    return found
