"""Adds a host's own headers to what goes to that host."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from urllib.parse import urlsplit

from pagein.transport import Request, Response, Transport


class HeadersTransport:
    """A `Transport` that sends ``headers`` to one origin, and to no place that it redirects to.

    They may be secrets. A header that a request has of itself stays.
    """

    def __init__(self, inner: Transport, origin: str, headers: Mapping[str, str]) -> None:
        self._inner = inner
        self._origin = _place(origin)
        self._headers = dict(headers)

    def send(self, request: Request, /) -> AbstractContextManager[Response]:
        """Send and return the response once its headers are there."""
        if _place(request.url) == self._origin:
            own = {name.lower() for name in request.headers}
            more = {name: v for name, v in self._headers.items() if name.lower() not in own}
            request = replace(request, headers={**more, **request.headers})
        return self._inner.send(request)


def _place(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    standard = ":443" if parts.scheme == "https" else ":80"
    return parts.scheme, parts.netloc.lower().removesuffix(standard)
