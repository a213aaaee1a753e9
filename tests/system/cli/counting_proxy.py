"""A reverse proxy before a registry: it counts requests, and can go away and come back.

Each request goes to the registry on a connection of its own; the answer is passed on as it is.
Plain sockets and ``http.client``, nothing of ours.
"""

from __future__ import annotations

import http.client
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

_HOP = {"connection", "keep-alive", "transfer-encoding"}


@dataclass(frozen=True, slots=True)
class Asked:
    """One request; ``span`` is the range asked for, last byte included."""

    method: str
    path: str
    span: tuple[int, int] | None


class CountingProxy:
    """``with CountingProxy(registry.host) as proxy: proxy.host``."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.host = ""
        self.before_answer: Callable[[Asked], None] = lambda _: None
        self._asked: list[Asked] = []
        self._lock = threading.Lock()
        self._port = 0
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def asked(self, pattern: str = "") -> list[Asked]:
        """The requests so far whose path has ``pattern`` in it."""
        with self._lock:
            return [one for one in self._asked if re.search(pattern, one.path)]

    def forget(self) -> None:
        """Count anew."""
        with self._lock:
            self._asked.clear()

    def record(self, asked: Asked) -> None:
        with self._lock:
            self._asked.append(asked)

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = _Server(("127.0.0.1", self._port), _Handler)
        self._server.proxy = self
        self._port = self._server.server_address[1]
        self.host = f"127.0.0.1:{self._port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections, and cut those that are open; idempotent."""
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        server.shutdown()
        self._thread.join()
        server.cut()
        server.server_close()

    def __enter__(self) -> CountingProxy:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class Gate:
    """Holds up the data of images at a proxy until it is opened."""

    def __init__(self, proxy: CountingProxy) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        proxy.before_answer = self._hold

    def _hold(self, asked: Asked) -> None:
        if asked.span is not None:
            self.reached.set()
            self.opened.wait(30)


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 128
    proxy: CountingProxy

    def __init__(self, *arguments) -> None:
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__(*arguments)

    def process_request(self, request, client_address) -> None:
        with self._open_lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        with self._open_lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:  # the client broke off: the registry need not wait for the rest
            self.close_connection = True
            return
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        span = (int(found[1]), int(found[2])) if found else None
        asked = Asked(self.command, self.path.partition("?")[0], span)
        self.server.proxy.record(asked)
        self.server.proxy.before_answer(asked)
        registry = http.client.HTTPConnection(self.server.proxy.upstream, timeout=30)
        try:
            registry.request(self.command, self.path, body, dict(self.headers.items()))
            with registry.getresponse() as answer:
                data = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in _HOP:
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
        finally:
            registry.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815

    def log_message(self, *arguments) -> None:
        pass
