"""HTTP through urllib3: pools with keep-alive, bodies read straight into the caller's buffer.

Rule 1. One request, one response: no retry, no redirect, no decoding.
Rule 2. Connections are made when first needed and belong to the process that made them.
Rule 3. No query and no header value is in a message: both carry secrets.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3 import exceptions as failures

from pagein.errors import (
    PageinError,
    RemoteError,
    RemoteProtocolError,
    RemoteUnavailableError,
    UsageError,
)
from pagein.transport import Request, Response

_SEND_BLOCK: Final = 1 << 20
"""Bytes of a file body handed to the socket at once; urllib3's own 16 KiB costs a call each."""

_DRAIN: Final = 64 << 10
"""An unread rest of at most this many bytes is read away to keep the connection."""

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """Whom to trust, and who we are. ``ca_files`` (PEM) add to the system's certificates."""

    ca_files: tuple[Path, ...] = ()
    client_certificate: Path | None = None
    client_key: Path | None = None
    skip_verify: bool = False

    def context(self) -> ssl.SSLContext:
        """Return the TLS context; UsageError where a file cannot be used."""
        context = ssl.create_default_context()
        try:
            for path in self.ca_files:
                context.load_verify_locations(cafile=path)
            if self.client_certificate is not None:
                context.load_cert_chain(self.client_certificate, self.client_key)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"cannot use a TLS certificate file: {error}") from error
        if self.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class HttpTransport:
    """A `Transport` on urllib3. Safe to call from any thread, and in a child after a fork.

    ``timeout_s`` bounds each wait for bytes, not a whole body; ``pool_size`` is the number of
    idle connections kept for each host. Proxies are those of HTTP_PROXY, HTTPS_PROXY and
    NO_PROXY when the first request is sent; loopback is never asked through one. ``proxy`` goes
    before all of these, for every host.
    """

    def __init__(
        self,
        *,
        timeout_s: float = 30.0,
        connect_timeout_s: float = 10.0,
        tls: TlsOptions | None = None,
        pool_size: int = 32,
        user_agent: str = "pagein",
        proxy: str | None = None,
    ) -> None:
        self._timeout = urllib3.Timeout(connect=min(connect_timeout_s, timeout_s), read=timeout_s)
        self._tls = tls or TlsOptions()
        self._pool_size = pool_size
        self._proxy = proxy
        self._headers = {"User-Agent": user_agent, "Accept-Encoding": "identity"}
        self._context: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        self._managers: dict[tuple[str, bool], urllib3.PoolManager] = {}
        self._process = os.getpid()
        if self._tls.skip_verify:  # asked for, so urllib3 need not warn at each connection
            urllib3.disable_warnings(failures.InsecureRequestWarning)

    @contextmanager
    def send(self, request: Request, /) -> Iterator[Response]:
        """Send and return the response once its headers are there."""
        _check_address(request.url)
        headers = {**self._headers, **request.headers}
        if request.length is not None:
            headers["Content-Length"] = str(request.length)
        try:
            raw = self._manager(request.url).urlopen(
                request.method,
                request.url,
                body=request.body,
                headers=headers,
                redirect=False,
                retries=False,
                timeout=self._timeout,
                preload_content=False,
                decode_content=False,
            )
        except (failures.HTTPError, HTTPException, OSError, ValueError) as error:
            raise _translate(error, request) from error
        body = _Body(raw, request)
        try:
            yield body
        finally:
            body.finish()

    def close(self) -> None:
        """Drop every idle connection; the next request makes new ones."""
        with self._lock:
            managers, self._managers = self._managers, {}
        for manager in managers.values():
            manager.clear()

    def _manager(self, url: str) -> urllib3.PoolManager:
        named = _proxy_for(url) if self._proxy is None else self._proxy
        key = proxy, encrypted = named, not url.startswith("http:")
        with self._lock:
            if self._process != os.getpid():
                # A forked child must not talk on its parent's sockets.
                self._process, self._managers = os.getpid(), {}
            manager = self._managers.get(key)
            if manager is None:
                manager = self._managers[key] = self._make_manager(proxy, encrypted=encrypted)
            return manager

    def _make_manager(self, proxy: str, *, encrypted: bool) -> urllib3.PoolManager:
        if self._context is None and (encrypted or proxy.startswith("https:")):
            self._context = self._tls.context()  # reads the system's CAs: 20-60 ms, so not before
        options: dict[str, Any] = {
            "num_pools": 64,
            "maxsize": self._pool_size,
            "block": False,
            "blocksize": _SEND_BLOCK,
        }
        if self._context is not None:
            options["ssl_context"] = self._context
        if not proxy:
            return urllib3.PoolManager(**options)
        try:
            user = urlsplit(proxy)
            secret = f"{user.username}:{user.password or ''}" if user.username else None
            headers = urllib3.make_headers(proxy_basic_auth=secret) if secret else None
            return urllib3.ProxyManager(proxy, proxy_headers=headers, **options)
        except (failures.HTTPError, ValueError) as error:
            raise UsageError("the proxy named for this request is not usable") from error


class _Body:
    """A response whose body is read from the socket without a copy of urllib3's."""

    __slots__ = ("_left", "_raw", "_request", "_stream", "headers", "status")

    def __init__(self, raw: urllib3.BaseHTTPResponse, request: Request) -> None:
        self.status = raw.status
        self.headers: Mapping[str, str] = {k.lower(): v for k, v in raw.headers.items()}
        self._raw = raw
        self._request = request
        # urllib3's own readinto reads bytes and copies them; http.client's, one attribute
        # below, fills the buffer from the socket (960 MB/s with four threads).
        self._stream: Any = getattr(raw, "_fp", raw)
        self._left = self._expected()
        if request.total_s is not None:
            self._give_up_after(request.total_s)

    def _give_up_after(self, seconds: float) -> None:
        """Let no wait for bytes begin later than that.

        One `readinto` of the buffered reader waits for the socket again and again, so a check
        between calls would come too late: it is put below, where the socket is read.
        """
        socket_reader = getattr(getattr(self._stream, "fp", None), "raw", None)
        if socket_reader is None:
            return
        receive, deadline = socket_reader.readinto, time.monotonic() + seconds

        def receive_in_time(buffer: memoryview) -> int | None:
            if time.monotonic() >= deadline:
                raise TimeoutError
            received: int | None = receive(buffer)
            return received

        socket_reader.readinto = receive_in_time

    def _expected(self) -> int | None:
        length = self.headers.get("content-length")
        if self._request.method == "HEAD" or self.status in {204, 304}:
            return 0
        if length is None or "transfer-encoding" in self.headers:
            return None
        if not length.isascii() or not length.isdigit():
            self._raw.close()
            raise RemoteProtocolError(
                f"the answer of {_place(self._request)} has no usable Content-Length"
            )
        return int(length)

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the front of ``buffer``; 0 at the end of the body."""
        if not buffer:
            return 0
        try:
            count: int = self._stream.readinto(buffer)
        except (failures.HTTPError, HTTPException, OSError, ValueError) as error:
            raise _translate(error, self._request) from error
        self._account(count)
        return count

    def chunks(self, size: int, /) -> Iterator[bytes]:
        """Yield the rest of the body in pieces of at most ``size`` bytes."""
        while True:
            try:
                piece: bytes = self._stream.read(size)
            except (failures.HTTPError, HTTPException, OSError, ValueError) as error:
                raise _translate(error, self._request) from error
            self._account(len(piece))
            if not piece:
                return
            yield piece

    def _account(self, count: int) -> None:
        if self._left is None:
            return
        self._left -= count
        if count == 0 and self._left > 0:
            raise RemoteUnavailableError(
                f"{_place(self._request)} broke off {self._left} bytes before its end"
            )

    def finish(self) -> None:
        """Give the connection back if the body is used up, or nearly; else close it."""
        try:
            if self._left is not None and self._left <= _DRAIN and not self._stream.isclosed():
                self._stream.read()  # also of an empty body: http.client frees it only then
            if self._stream.isclosed():
                self._raw.release_conn()
            else:
                self._raw.close()
        except (failures.HTTPError, HTTPException, OSError, ValueError):
            self._raw.close()


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise RemoteProtocolError("not an http or https address")


def _proxy_for(url: str) -> str:
    proxies = getproxies()
    if not proxies:
        return ""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in _LOOPBACK or proxy_bypass(parts.netloc, proxies):
        return ""
    proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def _place(request: Request) -> str:
    parts = urlsplit(request.url)
    return f"{request.method} {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    stack: list[BaseException] = [error]
    while stack and len(seen) < 16:
        one = stack.pop()
        seen.append(one)
        yield one
        stack += [
            other
            for other in (one.__cause__, getattr(one, "reason", None), *one.args)
            if isinstance(other, BaseException) and other not in seen
        ]


def _translate(error: Exception, request: Request) -> PageinError:
    """Say in our words why a request failed."""
    causes = list(_causes(error))
    place, host = _place(request), urlsplit(request.url).netloc.rpartition("@")[2]
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RemoteError(
                f"{place}: the certificate is not trusted: {cause.verify_message}",
                hint=f"name its CA in the hosts.toml of {host}, or add it to the system's",
            )
    if any("WRONG_VERSION_NUMBER" in str(c) or "HTTP_REQUEST" in str(c) for c in causes):
        return RemoteProtocolError(
            f"{place}: the answer is not TLS",
            hint="if this registry speaks plain http, pass --registry-http",
        )
    if isinstance(error, failures.LocationValueError | failures.InvalidHeader):
        return RemoteProtocolError(f"{place}: not a usable address or header")
    if isinstance(error, ValueError) and not isinstance(error, failures.HTTPError | OSError):
        return RemoteProtocolError(f"{place}: {type(error).__name__}")
    if any(isinstance(c, TimeoutError | failures.TimeoutError) for c in causes) and not any(
        isinstance(c, failures.NewConnectionError) for c in causes
    ):
        return RemoteUnavailableError(f"{place}: no answer in time")
    inner = next((c for c in reversed(causes) if isinstance(c, OSError) and c.strerror), None)
    reason = (inner.strerror or "") if inner is not None else type(error).__name__
    return RemoteUnavailableError(f"{place}: {reason.lower()}")
