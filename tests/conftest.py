"""The whole suite's rules: nobody leaves anything behind, and no tool is missing unnoticed.

Rule 1. What a module's tests have begun is over when its last test is: threads, processes, mounts,
open files. What a fixture of the session owns is the session's.
Rule 2. With PAGEIN_REQUIRE_TOOLS set, a test that skips because it "needs" something fails.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

_GRACE_S = 10.0
"""A thread or process that was told to end may take a moment."""

_OTHERS_THREADS = ("pytest_timeout", "asyncio", "hypothesis")
_OTHERS_PROCESSES = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")


class Left:
    """What there is now of all that must not stay."""

    def __init__(self, below: Path) -> None:
        self._below = str(below)

    def __call__(self) -> Counter[str]:
        found = Counter(self._threads())
        found.update(self._processes())
        found.update(self._mounts())
        found.update(_open_files())
        return found

    def _threads(self) -> Iterator[str]:
        for thread in threading.enumerate():
            name = thread.name
            others = thread is threading.main_thread() or name.startswith(_OTHERS_THREADS)
            if not others and (name.startswith("pagein") or not thread.daemon):
                yield f"thread {name}"

    def _processes(self) -> Iterator[str]:
        """Our children, and whoever was started with our folder in its environment."""
        wanted, own = self._below.encode(), os.getpid()
        for folder in os.scandir("/proc"):
            if not folder.name.isdigit() or folder.name == str(own):
                continue
            try:
                stat = Path(folder.path, "stat").read_bytes()
                parent = int(stat.rpartition(b")")[2].split()[1])
                if parent != own and wanted not in Path(folder.path, "environ").read_bytes():
                    continue
                command = Path(folder.path, "cmdline").read_bytes().replace(b"\0", b" ")
            except (OSError, ValueError):
                continue
            if not any(other in command for other in _OTHERS_PROCESSES):
                yield f"process {folder.name} ({command.decode(errors='replace')[:120].strip()})"

    def _mounts(self) -> Iterator[str]:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            for line in table:
                target = line.split(" ")[4]
                if target.startswith(f"{self._below}/"):
                    yield f"mount at {target}"


def _open_files() -> Iterator[str]:
    """Descriptors; not those that a library keeps for the life of the process."""
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    kept = getattr(getattr(tracker, "_resource_tracker", None), "_fd", None)
    for name in os.listdir("/proc/self/fd"):
        if name == str(kept):
            continue
        try:
            target = str(Path("/proc/self/fd", name).readlink())
        except OSError:
            continue
        if not target.startswith("anon_inode:"):
            yield f"descriptor of {re.sub(r'[0-9]+', 'N', target)}"


def _over(left: Callable[[], Counter[str]], allowed: Counter[str]) -> Counter[str]:
    """Wait until nothing more is left than what is allowed; return what is."""
    more = left() - allowed
    if not more:
        return more
    gc.collect()
    deadline = time.monotonic() + _GRACE_S
    while (more := left() - allowed) and time.monotonic() < deadline:
        time.sleep(0.02)
    return more


class _Suite:
    """Set when the session begins: how to look, and what fixtures of the session own by now."""

    left: Left
    owned: ClassVar[Counter[str]] = Counter()


@pytest.fixture(scope="session", autouse=True)
def _suite(tmp_path_factory: pytest.TempPathFactory) -> None:
    _Suite.left = Left(tmp_path_factory.getbasetemp())


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]):
    """Note what a fixture of the session begins: it may stay after the module that asked first."""
    if fixturedef.scope != "session" or not hasattr(_Suite, "left"):
        return (yield)
    before = _Suite.left()
    try:
        return (yield)
    finally:
        _Suite.owned += _Suite.left() - before


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left_behind(_suite: None) -> Iterator[None]:
    """Fail at the end of a module that leaves something."""
    before, owned = _Suite.left(), Counter(_Suite.owned)
    yield
    more = _over(_Suite.left, before + (_Suite.owned - owned))
    if more:
        pytest.fail("left behind: " + "; ".join(sorted(more.elements())), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Fail what skips for want of a tool, where tools are required."""
    report = yield
    _require_tools(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """The same for a module that skips as a whole."""
    report = yield
    _require_tools(report)
    return report


def _require_tools(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not os.environ.get("PAGEIN_REQUIRE_TOOLS") or not report.skipped:
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    wanted = reason.removeprefix("Skipped: ")
    if wanted.startswith("needs "):
        report.outcome = "failed"
        report.longrepr = f"{wanted}, and PAGEIN_REQUIRE_TOOLS is set"
