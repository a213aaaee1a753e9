"""Start a program, and note when it says something and when it is ready."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import select
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workloads import Answers, Workload

POLL_S = 0.01
LONGEST_S = 1800.0
STOP_S = 20.0


@dataclass(frozen=True)
class Launched:
    """Seconds from the start of the program; ``first_output`` is None where it said nothing."""

    first_output: float | None
    ready: float


class FailedStartError(RuntimeError):
    """The program ended, or took too long, before it was ready."""


def launch(
    words: Sequence[str | Path],
    workload: Workload,
    *,
    env: Mapping[str, str] | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> Launched:
    """Start a program and wait until it is ready, and then for its end, which a server is told.

    ``on_ready`` is called in between, while it still runs. Raises FailedStartError.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(env or {})},
        bufsize=0,
    )
    with process:
        try:
            launched = _until_ready(process, workload, began)
            on_ready()
            if workload.server:
                process.terminate()
            process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        except BaseException:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=STOP_S)
            process.kill()
            raise
    return launched


def _until_ready(process: subprocess.Popen[bytes], workload: Workload, began: float) -> Launched:
    assert process.stdout is not None
    first, said, ready = None, b"", workload.ready
    while (now := time.perf_counter() - began) < LONGEST_S:
        if select.select([process.stdout], [], [], POLL_S)[0]:
            piece = os.read(process.stdout.fileno(), 1 << 16)
            now = time.perf_counter() - began
            said += piece
            first = now if first is None else first
            if not piece:
                break
        if isinstance(ready, Answers):
            if answers(ready.url):
                return Launched(first, time.perf_counter() - began)
        elif re.search(ready.pattern.encode(), said):
            return Launched(first, now)
    raise FailedStartError(f"{workload.name}: not ready after {now:.1f} s: {said[-400:]!r}")


def answers(url: str) -> bool:
    """Whether an address answers 200 right now."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):
        return False
