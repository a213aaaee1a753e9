"""Bring every sector of an image here: `pull --full`, and hydration in the background."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from pagein.engine.coalesce import runs
from pagein.errors import CacheError
from pagein.events import Kind
from pagein.store.image import LazyImage
from pagein.store.single_flight import Flight
from pagein.types import Encoding, SectorRef

ShowDone = Callable[[int, int], None]
"""Called with the stored bytes done so far, and in all."""

_IN_FLIGHT: Final = 16
"""Four runs of four sectors, one for each of the usual workers; 64 MiB are held at most."""


def hydrate(
    image: LazyImage,
    progress: ShowDone,
    *,
    kind: Kind = Kind.HYDRATE,
    in_flight: int = _IN_FLIGHT,
    go_on: Callable[[int], bool] | None = None,
) -> int:
    """Fetch and keep every sector, in the order of the packs; return the stored bytes of all.

    What is on disk already is verified. ``go_on`` is called with the stored bytes of each run that
    was asked for; it may sleep, and ends all with False. Raises the first error of a source.
    """
    wanted = in_pack_order(image)
    total = sum(ref.stored for ref in wanted)
    flights: deque[Flight] = deque()
    progress(0, total)
    missing = [ref for ref in wanted if image.local.peek(ref) is None]
    done = total - sum(ref.stored for ref in missing)
    for run in runs(missing):
        flights.extend(image.source.begin_run(run, kind=kind))
        if go_on is not None and not go_on(sum(ref.stored for ref in run)):
            return total
        while len(flights) >= in_flight:
            done += _landed(flights.popleft())
            progress(done, total)
    while flights:
        done += _landed(flights.popleft())
        progress(done, total)
    progress(total, total)
    return total


def in_pack_order(image: LazyImage) -> list[SectorRef]:
    """Return the stored sectors, each once, as they lie in their packs."""
    distinct = {ref.digest: ref for ref in image.sectors if ref.encoding is not Encoding.ZERO}
    return sorted(distinct.values(), key=lambda ref: (ref.pack.hex if ref.pack else "", ref.offset))


def require_kept(image: LazyImage, held: set[str]) -> None:
    """Check that the cache holds every sector (``held``: hex digests). Raises CacheError."""
    wanted = in_pack_order(image)
    missing = sum(ref.digest.hex not in held for ref in wanted)
    if missing:
        raise CacheError(
            f"the cache kept {len(wanted) - missing} of {len(wanted)} sectors",
            hint="set a larger cache_size, or make room on its disk",
        )


def _landed(flight: Flight) -> int:
    flight.done.wait()  # every flight lands: the retrying source has a deadline
    if flight.error is not None:
        raise flight.error.with_traceback(None)
    return flight.ref.stored
