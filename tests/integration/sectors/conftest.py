from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pagein.events import Event


class Watcher:
    """An observer that keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in list(self.events) if isinstance(event, kind)]


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    def wait(condition: Callable[[], bool]) -> None:
        until = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < until, "it never came true"
            time.sleep(0.005)

    return wait


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    until = time.monotonic() + 5
    while left := set(threading.enumerate()) - before:
        assert time.monotonic() < until, f"threads left: {left}"
        time.sleep(0.01)
