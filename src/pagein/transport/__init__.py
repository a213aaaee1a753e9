"""HTTP: one request, one response, plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. ``url`` is absolute. ``body`` is sent as it is; ``length`` is its size
    in bytes. ``total_s`` bounds the time from the answer's headers to its last byte: a peer that
    sends a byte now and then never runs into a limit on waits."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | BinaryIO | None = None
    length: int | None = None
    total_s: float | None = None


class Response(Protocol):
    """Status, headers with lower-case names, and a body that is read as it arrives."""

    @property
    def status(self) -> int:
        """The status code."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Header values by lower-case name."""
        ...

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the front of ``buffer``; 0 at the end of the body."""
        ...

    def chunks(self, size: int, /) -> Iterator[bytes]:
        """Yield the rest of the body in pieces of at most ``size`` bytes."""
        ...


class Transport(Protocol):
    """One request, one response, plain values. No retry, no auth, no redirect here.

    Safe to call from any thread. Raises RemoteUnavailableError where the peer could not be
    reached, also from the
    body's methods when it breaks off.
    """

    def send(self, request: Request, /) -> AbstractContextManager[Response]:
        """Send and return the response once its headers are there."""
        ...
