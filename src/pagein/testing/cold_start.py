"""Measure a start: cold page cache, an emulated link that counts, time to the first output."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pagein.errors import RuntimeFailedError
from pagein.testing.link import Link

_END_S: Final = 10.0
"""How long a command may go on after its first output; one that serves for ever is then ended."""

_STOP_S: Final = 20.0
_PIECE: Final = 8 << 20


class CountingLink(Link):
    """A link that knows how many bytes of answers it carried."""

    def __init__(self, bits_per_s: float | None = None, latency_s: float = 0.0) -> None:
        super().__init__(bits_per_s, latency_s)
        self._carried = 0
        self._counting = threading.Lock()

    def carry(self, count: int) -> None:
        """Count, then wait until ``count`` more bytes have passed."""
        with self._counting:
            self._carried += count
        super().carry(count)

    def take_count(self) -> int:
        """Return the bytes carried since the last call."""
        with self._counting:
            carried, self._carried = self._carried, 0
        return carried


@dataclass(frozen=True, slots=True)
class Started:
    """Seconds from the start of a program to its first byte of output (its end, where there was
    none), and the output, cut at 1 MiB."""

    seconds: float
    output: bytes


def drop_caches(*keep_warm: Path) -> None:
    """Empty the kernel's page cache, then read the files below ``keep_warm`` back. Needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    for folder in keep_warm:
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb", buffering=0) as stream:
                    while stream.read(_PIECE):
                        pass


def time_start(words: Sequence[str], environment: Mapping[str, str] | None = None) -> Started:
    """Run a program until it has said something and ended, or was ended.

    Raises RuntimeFailedError with the last line that it said on stderr where it fails. Whatever
    happens, the program has ended when this returns.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        bufsize=0,
    )
    assert process.stdout is not None
    with process:
        try:
            head = process.stdout.read(1)
            seconds = time.perf_counter() - began
            rest, errors, was_ended = _until_the_end(process)
        except BaseException:
            _stop(process.terminate, process)
            raise
    if process.returncode != 0 and not was_ended:
        lines = errors.decode("utf-8", "replace").splitlines()
        said = [line for line in lines if line[:1].strip()]  # hints and tracebacks are indented
        reason = said[-1] if said else "it said nothing"
        name = " ".join(words[:4])
        raise RuntimeFailedError(f"{name} ended with {process.returncode}: {reason}")
    return Started(seconds, (head + rest)[: 1 << 20])


def _until_the_end(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes, bool]:
    try:
        output, errors = process.communicate(timeout=_END_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            output, errors = process.communicate(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
        return output, errors, True
    return output, errors, False


def _stop(ask: Callable[[], None], process: subprocess.Popen[bytes]) -> None:
    ask()
    try:
        process.communicate(timeout=_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
