"""When a recording ends before its command does: an address answers, a line is said, time is up."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from dataclasses import dataclass
from typing import Final

from pagein.errors import PageinError
from pagein.runtime.container import Output
from pagein.transport import Request
from pagein.transport.http import HttpTransport, TlsOptions

_POLL_S: Final = 0.1
_ANSWER_S: Final = 10.0
"""A server may take its time over the first request; it ends with the container at the latest."""

_LONGEST_LINE: Final = 1 << 20
_PIECE: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Until:
    """What ends a recording: whichever comes first. ``log`` is searched in each line."""

    url: str | None = None
    log: re.Pattern[bytes] | None = None
    seconds: float | None = None

    def __bool__(self) -> bool:
        return self.url is not None or self.log is not None or self.seconds is not None

    def __str__(self) -> str:
        """Say what is waited for, after "before"."""
        said = [] if self.url is None else [f"{self.url} answered"]
        if self.log is not None:
            said.append(f"a line matched {self.log.pattern.decode(errors='replace')!r}")
        if self.seconds is not None:
            said.append(f"{self.seconds:g} s had passed")
        return " or ".join(said)


def answers(url: str) -> bool:
    """Whether an address answers a GET with 2xx. Its certificate may be anybody's: this only asks
    whether somebody serves."""
    transport = HttpTransport(timeout_s=_ANSWER_S, tls=TlsOptions(skip_verify=True))
    try:
        with transport.send(Request("GET", url)) as response:
            return 200 <= response.status < 300
    except PageinError:
        return False
    finally:
        transport.close()


class Conditions:
    """Waits for what `Until` says, with threads of its own. ``with`` ends them."""

    def __init__(self, until: Until) -> None:
        self._until = until
        self._changed = threading.Condition()
        self._met = False
        self._over = False
        self._pumps: list[threading.Thread] = []
        self._asker: threading.Thread | None = None
        self._pipes: list[int] = []

    def __enter__(self) -> Conditions:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def output(self) -> Output:
        """Return what the container is to write to: pipes where its lines are looked at, and
        passed on; else nothing in particular."""
        if self._until.log is None:
            return Output()
        return Output(self._passed_on(1), self._passed_on(2))

    def started(self) -> None:
        """Begin to ask and to look: the container has our pipes now."""
        self._close_pipes()
        if self._until.url is not None:
            self._asker = threading.Thread(target=self._ask, args=(self._until.url,), daemon=True)
            self._asker.start()

    def wait(self) -> bool:
        """Wait until one is met, and return True; or until `end`, and return False."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._met or self._over, self._until.seconds):
                self._met = True  # time was up
            return self._met

    def end(self) -> None:
        """Give up waiting once the output that has come is passed on: the last line of a command
        counts, though it has ended by then. Idempotent."""
        self._close_pipes()
        for thread in self._pumps:
            thread.join(_ANSWER_S)
        with self._changed:
            self._over = True
            self._changed.notify_all()
        if self._asker is not None:
            self._asker.join(_ANSWER_S)

    def _close_pipes(self) -> None:
        pipes, self._pipes = self._pipes, []
        for pipe in pipes:
            os.close(pipe)

    def _meet(self) -> None:
        with self._changed:
            self._met = True
            self._changed.notify_all()

    def _ask(self, url: str) -> None:
        while not self._over:
            if answers(url):
                self._meet()
                return
            time.sleep(_POLL_S)

    def _passed_on(self, to: int) -> int:
        """Return a descriptor; what is written to it goes on to ``to``, line by line looked at."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._pipes.append(writer)
        pump = threading.Thread(target=self._pass_on, args=(reader, to), daemon=True)
        pump.start()
        self._pumps.append(pump)
        return writer

    def _pass_on(self, reader: int, to: int) -> None:
        line = b""
        listens = True
        with open(reader, "rb", buffering=0) as stream:
            while piece := stream.read(_PIECE):
                *whole, line = (line + piece).split(b"\n")
                self._look(*whole)
                line = line[-_LONGEST_LINE:]
                with contextlib.suppress(OSError):  # who listened may have gone; we go on looking
                    while listens and piece:
                        piece = piece[os.write(to, piece) :]
                listens = listens and not piece
        self._look(line)

    def _look(self, *lines: bytes) -> None:
        assert self._until.log is not None
        if any(self._until.log.search(line) for line in lines):
            self._meet()
