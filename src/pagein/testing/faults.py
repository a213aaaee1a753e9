"""Scripted misbehaviour of a fake registry."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one answer. Fields combine; what is unset stays as it should be.

    ``status`` (with ``body`` and ``headers``) answers instead of the content. ``headers`` alone
    replace those of the true answer; an empty value leaves the header out. ``truncate_to`` closes
    the connection after so many bytes of the body. ``corrupt`` flips the first byte. ``drop``
    closes the connection without an answer. ``read_at_most`` closes it after so many bytes of
    the request's body, which an upload keeps. ``trickle_s`` sends the body byte by byte, with
    such a pause before each.
    """

    status: int | None = None
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    truncate_to: int | None = None
    corrupt: bool = False
    ignore_range: bool = False
    chunked: bool = False
    drop: bool = False
    read_at_most: int | None = None
    trickle_s: float = 0.0


@dataclass(slots=True)
class _Rule:
    fault: Fault
    method: str
    path: re.Pattern[str]
    left: int
    skip: int


class Faults:
    """Rules, tried in the order they were added. Safe to use from any thread."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def add(
        self, fault: Fault, *, method: str = "GET", path: str = "", times: int = 1, skip: int = 0
    ) -> None:
        """Let ``fault`` hit ``times`` requests whose path contains the pattern, after ``skip``."""
        with self._lock:
            self._rules.append(_Rule(fault, method, re.compile(path), times, skip))

    def take(self, method: str, path: str) -> Fault:
        """Return the fault for this request; a plain ``Fault()`` for none."""
        with self._lock:
            for rule in self._rules:
                if rule.left and rule.method == method and rule.path.search(path):
                    if rule.skip:
                        rule.skip -= 1
                        continue
                    rule.left -= 1
                    return rule.fault
        return Fault()

    def clear(self) -> None:
        """Behave from now on."""
        with self._lock:
            self._rules.clear()
