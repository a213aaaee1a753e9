"""The transport by itself: buffers, connections, proxies, forks, a link that is slow on purpose."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from pagein.errors import RemoteError, RemoteProtocolError, RemoteUnavailableError, UsageError
from pagein.testing.contract_repository import BLOB
from pagein.testing.faults import Fault
from pagein.testing.link import Link
from pagein.testing.registry import FakeRegistry
from pagein.transport import Request
from pagein.transport.http import HttpTransport
from pagein.types import Digest

D = Digest.of(BLOB)
PATH = f"/v2/a/blobs/{D}"


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as made:
        made.content("a").add_blob(BLOB)
        yield made


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpTransport]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    made = HttpTransport(timeout_s=5)
    yield made
    made.close()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [1 << 20, 4 << 20, 77_777])
def test_a_body_is_read_into_buffers(
    registry: FakeRegistry, transport: HttpTransport, chunked: bool, size: int
) -> None:
    registry.fault(Fault(chunked=chunked))
    got = bytearray()
    with transport.send(Request("GET", registry.url + PATH)) as response:
        buffer = memoryview(bytearray(size))
        assert response.readinto(buffer[:0]) == 0
        while count := response.readinto(buffer):
            got += buffer[:count]
        assert response.readinto(buffer) == 0
    assert got == BLOB


def test_header_names_are_lower_case(registry: FakeRegistry, transport: HttpTransport) -> None:
    with transport.send(Request("HEAD", registry.url + PATH)) as response:
        assert response.status == 200
        assert response.headers["content-length"] == str(len(BLOB))
        assert b"".join(response.chunks(10)) == b""


def test_a_body_left_unread_does_not_spoil_the_next(
    registry: FakeRegistry, transport: HttpTransport
) -> None:
    for _ in range(3):
        with transport.send(Request("GET", registry.url + PATH)) as response:
            assert response.readinto(memoryview(bytearray(10))) == 10
        with transport.send(Request("GET", registry.url + "/v2/none/blobs/x")) as response:
            assert response.status == 400


def test_closing_leaves_a_transport_that_works(
    registry: FakeRegistry, transport: HttpTransport
) -> None:
    for _ in range(2):
        with transport.send(Request("GET", registry.url + "/v2/")) as response:
            assert response.status == 200
        transport.close()


def test_a_connection_that_the_server_dropped_is_made_anew(transport: HttpTransport) -> None:
    with FakeRegistry() as registry:
        with transport.send(Request("GET", registry.url + "/v2/")):
            pass
        registry.fault(Fault(status=200, headers={"Connection": "close"}))
        with transport.send(Request("GET", registry.url + "/v2/")):
            pass
        with transport.send(Request("GET", registry.url + "/v2/")) as response:
            assert response.status == 200


def test_a_forked_child_makes_its_own_connections(
    registry: FakeRegistry, transport: HttpTransport
) -> None:
    with transport.send(Request("GET", registry.url + "/v2/")):
        pass
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with transport.send(Request("GET", registry.url + PATH)) as response:
                code = 0 if b"".join(response.chunks(1 << 20)) == BLOB else 2
        finally:
            os._exit(code)
    with transport.send(Request("GET", registry.url + PATH)) as response:
        assert b"".join(response.chunks(1 << 20)) == BLOB
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_proxy_is_asked_unless_the_host_is_excepted(
    registry: FakeRegistry, transport: HttpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://user:secret@{registry.host}")
    with transport.send(Request("GET", "http://registry.example:5000/v2/")) as response:
        assert response.status in {200, 404}
    assert len(registry.requests()) == 1
    with transport.send(Request("GET", registry.url + "/v2/")):
        pass  # loopback goes straight there, and not through itself
    monkeypatch.setenv("no_proxy", "registry.example")
    with (
        pytest.raises(RemoteUnavailableError) as caught,
        transport.send(Request("GET", "http://registry.example:5000/v2/?sig=secret")),
    ):
        pass
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("http_proxy", "ftp://nonsense")
    with (
        pytest.raises(UsageError, match="proxy"),
        transport.send(Request("GET", "http://other.example/")),
    ):
        pass


@pytest.mark.parametrize("url", ["nonsense", "ftp://h/", "http://", "http://[::1/", "http://h:x/"])
def test_an_address_that_is_none_is_an_error_of_ours(transport: HttpTransport, url: str) -> None:
    with pytest.raises(RemoteError) as caught, transport.send(Request("GET", url)):
        pass
    assert isinstance(caught.value, RemoteProtocolError | RemoteUnavailableError)


def test_the_emulated_link_carries_what_it_says() -> None:
    # 40 Mbit/s and 3 MiB on three connections: 0.63 s at least; how much longer is not asserted.
    with FakeRegistry(link=Link(bits_per_s=40e6, latency_s=0.005)) as registry:
        registry.content("a").add_blob(BLOB)
        transport = HttpTransport()
        third = len(BLOB) // 3

        def fetch(start: int) -> None:
            headers = {"Range": f"bytes={start}-{start + third - 1}"}
            with transport.send(Request("GET", registry.url + PATH, headers)) as response:
                assert len(b"".join(response.chunks(1 << 20))) == third

        threads = [threading.Thread(target=fetch, args=(i * third,)) for i in range(3)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began > len(BLOB) * 8 / 40e6 * 0.95
        transport.close()
