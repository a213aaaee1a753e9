"""Reads a stream on a thread of its own, some MiB ahead of who uses its bytes.

The thread inflates and hashes a layer, which release the interpreter lock, while the converting
thread reads tar headers and copies. `bench/convert.py` of a large image measures what that gains.
"""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable
from typing import Final

from pagein.build.report import Stage, StageClock

_PIECE: Final = 1 << 20
_PIECES: Final = 8

_Item = memoryview | BaseException
"""Bytes, none of them at the end; or what the thread died of."""


class Ahead(io.RawIOBase):
    """``with Ahead(read_into, clock) as stream``: the bytes that ``read_into`` gives.

    ``read_into`` fills the front of a buffer and says how much, 0 at the end. It is called on the
    thread only; what it raises is raised by the reader, after the bytes before.
    """

    def __init__(self, read_into: Callable[[memoryview], int], clock: StageClock) -> None:
        super().__init__()
        self._read_into = read_into
        self._clock = clock
        self._stopped = threading.Event()
        self._free: queue.SimpleQueue[bytearray | None] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        for _ in range(_PIECES):
            self._free.put(bytearray(_PIECE))
        self._taken = memoryview(b"")
        self._left = self._taken
        self._thread = threading.Thread(target=self._run, name="pagein-inflate", daemon=True)
        self._thread.start()

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Fill the front of ``buffer``; 0 at the end."""
        if not self._left and not self._next():
            return 0
        view = memoryview(buffer)
        count = min(len(view), len(self._left))
        view[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def close(self) -> None:
        """End the thread; one that waits for the network is left to find its stream closed."""
        self._stopped.set()
        self._free.put(None)
        self._thread.join(1.0)
        super().close()

    def _next(self) -> bool:
        """Wait for more bytes; False at the end."""
        if isinstance(self._taken.obj, bytearray):
            self._free.put(self._taken.obj)
        with self._clock.stage(Stage.SOURCE_WAIT):
            item = self._full.get()
        if isinstance(item, BaseException):
            self._full.put(item)  # who reads on gets it again
            raise item
        self._taken = self._left = item
        if not item:
            self._full.put(item)
        return bool(item)

    def _run(self) -> None:
        try:
            while not self._stopped.is_set() and (buffer := self._free.get()) is not None:
                view = memoryview(buffer)
                count = self._read_into(view)
                self._full.put(view[:count])
                if not count:
                    return
        except BaseException as error:
            self._full.put(error)
