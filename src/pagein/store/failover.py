"""Several places that hold the same sectors, asked in order.

Rule 1. The first that gives the right bytes wins; what was wrong with the others is their event.
Rule 2. A source that fails rests for a while, and is then tried again. Rest is a preference: when
all rest, all are asked.
Rule 3. Wrong bytes from the last source are fetched once more: the bit may have flipped on the way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from pagein.engine.breaker import HEALTHY, Breaker
from pagein.errors import FormatError, NotFoundError, PageinError, RemoteUnavailableError
from pagein.events import Kind
from pagein.store.source import RunSource
from pagein.types import Sector, SectorRef

_Key = tuple[int, str]


class FailoverSource:
    """Mirrors first, the registry itself last. Every answer is verified, so none is trusted."""

    def __init__(
        self,
        sources: Sequence[RunSource],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if not sources:
            raise ValueError("a failover needs a source")
        self._sources = tuple(sources)
        self._monotonic = monotonic
        self._states: dict[_Key, Breaker] = {}
        self._lock = threading.Lock()

    def get(self, ref: SectorRef, /, *, kind: Kind = Kind.DEMAND) -> Sector:
        """Return the sector from the first source that has it.

        When none has, raises a transient error if there was one (trying again may help), else the
        last error.
        """
        errors: list[PageinError] = []
        asked = self._order(ref)
        for position, number in enumerate(asked):
            last = position == len(asked) - 1
            try:
                return self._ask(number, ref, kind)
            except FormatError as error:
                errors.append(error)
                if last:
                    try:
                        return self._ask(number, ref, kind)
                    except PageinError as again:
                        errors.append(again)
            except PageinError as error:
                errors.append(error)
        raise next((error for error in errors if error.transient), errors[-1])

    def get_run(self, refs: Sequence[SectorRef], /, *, kind: Kind) -> Iterator[Sector]:
        """Ask the first source that is well for a run; `get` asks the others."""
        number = self._order(refs[0])[0]
        try:
            yield from self._sources[number].get_run(refs, kind=kind)
        except PageinError as error:
            self._note_failure(number, refs[0], error)
            raise

    def _ask(self, number: int, ref: SectorRef, kind: Kind) -> Sector:
        try:
            sector = self._sources[number].get(ref, kind=kind)
        except PageinError as error:
            self._note_failure(number, ref, error)
            raise
        with self._lock:
            self._states.pop((number, ""), None)
        return sector

    def _order(self, ref: SectorRef) -> list[int]:
        """Return the sources that are well, then those that rest, each in the order given."""
        now = self._monotonic()
        with self._lock:
            resting = [
                number
                for number in range(len(self._sources))
                if not all(
                    self._states.get(key, HEALTHY).allows(now) for key in self._keys(number, ref)
                )
            ]
        return [n for n in range(len(self._sources)) if n not in resting] + resting

    @staticmethod
    def _keys(number: int, ref: SectorRef) -> tuple[_Key, _Key]:
        return (number, ""), (number, ref.pack.hex if ref.pack else "")

    def _note_failure(self, number: int, ref: SectorRef, error: PageinError) -> None:
        """A pack that a mirror does not hold says nothing of the mirror's other packs."""
        of_source, of_pack = self._keys(number, ref)
        key = of_pack if isinstance(error, NotFoundError) else of_source
        asked = error.retry_after if isinstance(error, RemoteUnavailableError) else None
        with self._lock:
            state = self._states.get(key, HEALTHY)
            self._states[key] = state.failed(self._monotonic(), retry_after=asked)
