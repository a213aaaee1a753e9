"""A registry in this process, for tests and demonstrations: records, misbehaves, slows down.

Rule 1. It listens on 127.0.0.1, on a port that the kernel picks.
Rule 2. Every request is recorded before it is answered; a test asserts on the record.
"""

from __future__ import annotations

import base64
import secrets
import threading
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from types import TracebackType
from typing import Any

from pagein.store.repository import Repository
from pagein.testing.faults import Fault, Faults
from pagein.testing.link import Link
from pagein.testing.memory_repository import MemoryContent


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request as it came in. ``path`` has no query. ``range`` is the header's value."""

    method: str
    path: str
    query: str
    range: str | None
    authorization: str | None


@dataclass(slots=True)
class BasicLogin:
    """Every request needs this user."""

    username: str
    password: str = field(repr=False)

    @property
    def header(self) -> str:
        """The value of ``Authorization`` that is accepted."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(slots=True)
class BearerLogin:
    """Every request needs a token of this registry's own ``/token``.

    With a ``username`` a token needs Basic with it, or ``refresh_token`` by OAuth2. `expire`
    makes all tokens given so far useless.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    refresh_token: str = field(default="", repr=False)
    lifetime_s: int = 300
    valid: set[str] = field(default_factory=set, repr=False)
    scopes: list[str] = field(default_factory=list)

    def issue(self) -> str:
        """Make a token."""
        token = secrets.token_hex(16)
        self.valid.add(token)
        return token

    def expire(self) -> None:
        """Forget every token."""
        self.valid.clear()


@dataclass(slots=True)
class Upload:
    """An upload that is open: the bytes it holds."""

    repository: str
    data: bytearray = field(default_factory=bytearray)


class FakeRegistry:
    """``with FakeRegistry() as registry: registry.host``.

    ``serving`` names read-only repositories (an OCI layout, say); all others are in memory:
    ``registry.content("name")``. ``link`` slows answers down; ``referrers_api=False`` answers as
    distribution 2.8 does.
    """

    def __init__(
        self,
        *,
        serving: dict[str, Repository] | None = None,
        login: BasicLogin | BearerLogin | None = None,
        link: Link | None = None,
        referrers_api: bool = True,
        page_size: int = 0,
        mounts: bool = True,
    ) -> None:
        self.serving = dict(serving or {})
        self.login = login
        self.link = link or Link()
        self.referrers_api = referrers_api
        self.page_size = page_size
        self.mounts = mounts
        self.faults = Faults()
        self.uploads: dict[str, Upload] = {}
        self.blob_storage: FakeRegistry | None = None
        self.storage_owner: FakeRegistry | None = None
        self.signature = secrets.token_hex(8)
        self.host = ""
        self._contents: dict[str, MemoryContent] = {}
        self._requests: list[Recorded] = []
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return f"http://{self.host}"

    def content(self, repository: str) -> MemoryContent:
        """Return what is in memory under a repository's name; made when first asked for."""
        with self._lock:
            return self._contents.setdefault(repository, MemoryContent())

    def fault(
        self, fault: Fault, *, method: str = "GET", path: str = "", times: int = 1, skip: int = 0
    ) -> None:
        """Let answers go wrong; see `Faults.add`."""
        self.faults.add(fault, method=method, path=path, times=times, skip=skip)

    def redirect_blobs_to(self, storage: FakeRegistry) -> None:
        """Answer blob reads with 307 to ``storage``, with a signature that it checks.

        The blobs stay in this registry's memory; ``storage`` reads them there. `resign` makes
        old addresses useless (403).
        """
        self.blob_storage = storage
        storage.storage_owner = self

    def resign(self) -> None:
        """Refuse every storage address given so far."""
        self.signature = secrets.token_hex(8)

    def record(self, request: Recorded) -> None:
        """Remember a request."""
        with self._lock:
            self._requests.append(request)

    def requests(self, method: str = "", path: str = "") -> list[Recorded]:
        """Return the requests so far, or those with this method and this part in their path."""
        with self._lock:
            return [r for r in self._requests if method in {"", r.method} and path in r.path]

    def forget_requests(self) -> None:
        """Start counting anew."""
        with self._lock:
            self._requests.clear()

    def __enter__(self) -> FakeRegistry:
        from pagein.testing.registry_handler import RegistryHandler

        self._server = _Server(("127.0.0.1", 0), RegistryHandler)
        self._server.registry = self
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.close_connections()
            self._server.server_close()
            self._server = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    registry: FakeRegistry

    def __init__(self, *arguments: Any) -> None:
        self._open: set[Any] = set()
        self._open_lock = threading.Lock()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._open_lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """Wake the threads that wait on idle connections, so that none outlives the server."""
        import socket

        with self._open_lock:
            connections = list(self._open)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""
