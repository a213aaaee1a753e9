"""The log of a serving process: few lines, and whole ones."""

import io
import re
import sys

import pytest

from pagein.daemon.log import ProblemLog
from pagein.events import CacheWriteFailed, DeviceRead, DeviceReadFailed
from pagein.types import Digest

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


class Pieces(io.StringIO):
    """Keeps what each write brought: another thread's may come between two."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str, /) -> int:
        self.pieces.append(text)
        return len(text)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list that writes go to. No fixture: pytest changes stderr before the test."""
    stream = Pieces()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream.pieces


def test_a_line_is_written_in_one_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = watched(monkeypatch)
    ProblemLog().observe(DeviceReadFailed(0, 4096, 5, "no registry"))
    assert len(written) == 1
    assert re.fullmatch(f"{STAMP} read failed: no registry\n", written[0])


def test_a_problem_that_repeats_is_written_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = watched(monkeypatch)
    log = ProblemLog()
    for number in range(1, 101):
        log.observe(DeviceReadFailed(0, 4096, 5, f"reason {number}"))
    counts = [int(found[1]) if (found := re.search(r"time (\d+)", one)) else 1 for one in written]
    assert counts == [1, 2, 4, 8, 16, 32, 64]


def test_another_problem_counts_for_itself_and_a_read_is_no_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = watched(monkeypatch)
    log = ProblemLog()
    for _ in range(3):
        log.observe(DeviceReadFailed(0, 4096, 5, "away"))
        log.observe(DeviceRead(0, 4096, 0.001, hit=True))
    log.observe(CacheWriteFailed(Digest.of(b""), "no space"))
    assert [line.split(" ", 1)[1] for line in written] == [
        "read failed: away\n",
        "read failed (time 2): away\n",
        "sector not kept: no space\n",
    ]
