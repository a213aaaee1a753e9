"""The proxy between kubelet and containerd's CRI socket: everything passes, logins are heard."""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from pagein.errors import UsageError
from pagein.snapshotter.cri_proxy import CriProxy, read_pull
from pagein.snapshotter.proto import cri_images_pb2 as pb
from pagein.store.captured_credentials import CapturedCredentials
from pagein.types import ImageName

_IMAGES = "/runtime.v1.ImageService"
_ID = "sha256:" + "ab" * 32


class Upstream(grpc.GenericRpcHandler):
    """A server of any method, which the test scripts: bytes in, bytes out."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Iterator[bytes], Any], Iterator[bytes]]] = {}
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def service(self, details: Any) -> Any:
        self.seen.append((details.method, dict(details.invocation_metadata)))
        answer = self.answers.get(details.method)
        return grpc.stream_stream_rpc_method_handler(answer) if answer else None


class Stand:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.upstream = Upstream()
        self.credentials = CapturedCredentials(folder / "credentials.json")
        self.socket = folder / "cri.sock"

    def call(self, method: str, *requests: bytes, **options: Any) -> Any:
        return self.channel.stream_stream(method)(iter(requests), **options)

    def login(self, image: str, host: str | None = None) -> Any:
        name = ImageName.parse(image)
        return self.credentials.credential(name, host or name.host)


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    stand = Stand(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((stand.upstream,))
        server.add_insecure_port(f"unix:{tmp_path}/upstream.sock")
        server.start()
        proxy = CriProxy(stand.socket, tmp_path / "upstream.sock", stand.credentials)
        proxy.start()
        with grpc.insecure_channel(f"unix:{stand.socket}") as stand.channel:
            yield stand
        proxy.stop()
        server.stop(None).wait()


def pull_request(image: str, **auth: str) -> bytes:
    login = pb.AuthConfig(**auth) if auth else None
    return (
        pb.PullImageRequest(image=pb.ImageSpec(image=image), auth=login).SerializeToString()
        + b"\x1a\x03abc"
    )  # field 3, which we do not know


def answering(*messages: bytes) -> Callable[[Iterator[bytes], Any], Iterator[bytes]]:
    def answer(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for _ in requests:
            pass
        yield from messages

    return answer


def pulled(image_id: str = _ID) -> Callable[[Iterator[bytes], Any], Iterator[bytes]]:
    return answering(pb.PullImageResponse(image_ref=image_id).SerializeToString())


def test_a_method_that_nobody_knows_passes_with_its_bytes(stand: Stand) -> None:
    def reverse(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        yield from (request[::-1] for request in requests)

    stand.upstream.answers["/runtime.v9.FutureService/Unheard"] = reverse
    answers = list(stand.call("/runtime.v9.FutureService/Unheard", b"\x00\xff\x01", b"", b"abc"))
    assert answers == [b"\x01\xff\x00", b"", b"cba"]


def test_both_ways_of_a_stream_run_at_once(stand: Stand) -> None:
    """Each request is only sent after the answer to the one before has come."""

    def echo(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        yield from requests

    stand.upstream.answers["/a.B/Talk"] = echo
    turns = [threading.Event() for _ in range(4)]
    turns[0].set()

    def speak() -> Iterator[bytes]:
        for number in range(3):
            assert turns[number].wait(10)
            yield bytes([number])

    call = stand.channel.stream_stream("/a.B/Talk")(speak())
    for number in range(3):
        assert next(call) == bytes([number])
        turns[number + 1].set()
    assert list(call) == []


def test_metadata_headers_and_trailers_pass_both_ways(stand: Stand) -> None:
    def answer(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        context.send_initial_metadata((("x-header", "1"), ("x-bytes-bin", b"\x00\xfe")))
        context.set_trailing_metadata((("x-trailer", "2"),))
        yield b"ok"

    stand.upstream.answers["/a.B/C"] = answer
    call = stand.call(
        "/a.B/C", b"", metadata=(("containerd-namespace", "k8s.io"), ("t-bin", b"\0"))
    )
    assert dict(call.initial_metadata())["x-bytes-bin"] == b"\x00\xfe"
    assert list(call) == [b"ok"]
    assert dict(call.trailing_metadata())["x-trailer"] == "2"
    ((_, seen),) = stand.upstream.seen
    assert seen["containerd-namespace"] == "k8s.io"
    assert seen["t-bin"] == b"\0"


def test_status_words_and_details_of_a_refusal_pass(stand: Stand) -> None:
    details = b"\x08\x05\x12\x03why"

    def refuse(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        context.set_trailing_metadata((("grpc-status-details-bin", details),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")
        yield b""

    stand.upstream.answers["/a.B/C"] = refuse
    with pytest.raises(grpc.RpcError) as caught:
        list(stand.call("/a.B/C", b""))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == "not today"
    assert dict(caught.value.trailing_metadata())["grpc-status-details-bin"] == details


def test_a_method_that_upstream_lacks_is_unimplemented(stand: Stand) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stand.call("/a.B/Nothing", b""))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_deadline_of_the_caller_is_the_deadline_upstream(stand: Stand) -> None:
    remaining: list[float | None] = []

    def answer(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        remaining.append(context.time_remaining())
        yield b""

    stand.upstream.answers["/a.B/C"] = answer
    list(stand.call("/a.B/C", b"", timeout=25.0))
    list(stand.call("/a.B/C", b""))
    assert remaining[0] is not None
    assert 1 < remaining[0] < 25.5  # gRPC rounds a timeout up when it writes it down
    assert remaining[1] is None or remaining[1] > 3600


def test_a_caller_that_gives_up_cancels_the_call_upstream(stand: Stand) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    def answer(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        context.add_callback(cancelled.set)
        begun.set()
        cancelled.wait(10)
        yield b""

    stand.upstream.answers["/a.B/C"] = answer
    call = stand.call("/a.B/C", b"")
    assert begun.wait(10)
    call.cancel()
    assert cancelled.wait(10)


def test_upstream_away_is_unavailable_and_its_return_is_noticed(tmp_path: Path) -> None:
    credentials = CapturedCredentials(None)
    proxy = CriProxy(tmp_path / "cri.sock", tmp_path / "upstream.sock", credentials)
    proxy.start()
    with contextlib.ExitStack() as stack:
        stack.callback(proxy.stop)
        channel = stack.enter_context(grpc.insecure_channel(f"unix:{tmp_path}/cri.sock"))
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.stream_stream("/a.B/C")(iter((b"",))))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        upstream = Upstream()
        upstream.answers["/a.B/C"] = answering(b"back")
        pool = stack.enter_context(ThreadPoolExecutor(2))
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((upstream,))
        server.add_insecure_port(f"unix:{tmp_path}/upstream.sock")
        server.start()
        stack.callback(lambda: server.stop(None).wait())
        pause = threading.Event()
        for _ in range(100):
            try:
                answers = list(channel.stream_stream("/a.B/C")(iter((b"",))))
            except grpc.RpcError:
                pause.wait(0.1)
            else:
                assert answers == [b"back"]
                return
        pytest.fail("the proxy never found its upstream again")


def test_only_root_may_connect_and_a_served_socket_is_not_taken(stand: Stand) -> None:
    assert stand.socket.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="another process serves"):
        CriProxy(stand.socket, stand.folder / "x", stand.credentials).start()


def test_a_login_serves_while_the_pull_runs_and_after_it(stand: Stand) -> None:
    during: list[Any] = []

    def answer(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        during.append(stand.login("reg.test/app:v1"))
        during.append([*requests])
        yield pb.PullImageResponse(image_ref=_ID).SerializeToString()

    stand.upstream.answers[f"{_IMAGES}/PullImage"] = answer
    request = pull_request("reg.test/app:v1", username="u", password="p")
    list(stand.call(f"{_IMAGES}/PullImage", request))
    assert during[0].basic == during[0].__class__("u", "p").basic
    assert during[1] == [request], "the request reaches containerd as it was"
    assert stand.login("reg.test/app:v1").password == "p"
    assert stand.login("reg.test/app:v2").password == "p", "another tag, for want of better"
    assert stand.login("reg.test/other:v1") is None
    again = CapturedCredentials(stand.folder / "credentials.json")
    assert again.credential(ImageName.parse("reg.test/app:v1"), "reg.test").password == "p"
    assert (stand.folder / "credentials.json").stat().st_mode & 0o777 == 0o600


def test_a_refused_pull_leaves_the_login_that_works(stand: Stand) -> None:
    stand.upstream.answers[f"{_IMAGES}/PullImage"] = pulled()
    list(
        stand.call(f"{_IMAGES}/PullImage", pull_request("r.test/a", username="u", password="good"))
    )

    def refuse(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        assert stand.login("r.test/a").password == "bad"
        context.abort(grpc.StatusCode.UNKNOWN, "401 Unauthorized")
        yield b""

    stand.upstream.answers[f"{_IMAGES}/PullImage"] = refuse
    with pytest.raises(grpc.RpcError, match="401"):
        list(
            stand.call(
                f"{_IMAGES}/PullImage", pull_request("r.test/a", username="u", password="bad")
            )
        )
    assert stand.login("r.test/a").password == "good"


def test_a_new_pull_renews_the_login_and_an_open_image_needs_none(stand: Stand) -> None:
    stand.upstream.answers[f"{_IMAGES}/PullImage"] = pulled()
    for password in ("one", "two"):
        request = pull_request("r.test/a:v", username="u", password=password)
        list(stand.call(f"{_IMAGES}/PullImage", request))
        assert stand.login("r.test/a:v").password == password
    list(stand.call(f"{_IMAGES}/PullImage", pull_request("r.test/a:v")))
    assert stand.login("r.test/a:v") is None


@pytest.mark.parametrize("removed", ["r.test/a:v1", _ID, _ID.removeprefix("sha256:")])
def test_a_removed_image_is_forgotten_under_all_its_names(stand: Stand, removed: str) -> None:
    stand.upstream.answers[f"{_IMAGES}/PullImage"] = pulled()
    stand.upstream.answers[f"{_IMAGES}/RemoveImage"] = answering(b"")
    for image in ("r.test/a:v1", "r.test/b:v1"):
        list(stand.call(f"{_IMAGES}/PullImage", pull_request(image, username="u", password="p")))
    request = pb.RemoveImageRequest(image=pb.ImageSpec(image=removed)).SerializeToString()
    list(stand.call(f"{_IMAGES}/RemoveImage", request))
    assert stand.login("r.test/a:v1") is None
    assert stand.login("r.test/b:v1") is None
    assert "password" not in (stand.folder / "credentials.json").read_text()


def test_an_image_that_could_not_be_removed_keeps_its_login(stand: Stand) -> None:
    stand.upstream.answers[f"{_IMAGES}/PullImage"] = pulled()
    list(stand.call(f"{_IMAGES}/PullImage", pull_request("r.test/a", username="u", password="p")))
    request = pb.RemoveImageRequest(image=pb.ImageSpec(image="r.test/a")).SerializeToString()
    with pytest.raises(grpc.RpcError):
        list(stand.call(f"{_IMAGES}/RemoveImage", request))
    assert stand.login("r.test/a") is not None


def test_the_alpha_service_is_read_too(stand: Stand) -> None:
    stand.upstream.answers["/runtime.v1alpha2.ImageService/PullImage"] = pulled()
    request = pull_request("r.test/a", username="u", password="p")
    list(stand.call("/runtime.v1alpha2.ImageService/PullImage", request))
    assert stand.login("r.test/a") is not None


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        ({"username": "u", "password": "p"}, ("u", "p", "", "")),
        ({"auth": base64.b64encode(b"u:p:q").decode()}, ("u", "p:q", "", "")),
        ({"identity_token": "t"}, ("", "", "t", "")),
        ({"registry_token": "t"}, ("", "", "", "t")),
        ({"auth": "!!"}, None),
        ({"server_address": "x"}, None),
    ],
)
def test_every_form_of_a_login_is_read(auth: dict[str, str], expected: Any) -> None:
    _, login = read_pull(pull_request("a", **auth))
    found = login and login.credential
    assert (
        found and (found.username, found.password, found.identity_token, found.registry_token)
    ) == expected


def test_a_login_for_a_named_server_goes_to_no_other(stand: Stand) -> None:
    stand.upstream.answers[f"{_IMAGES}/PullImage"] = pulled()
    address = "https://index.docker.io/v1/"
    request = pull_request("python", username="u", password="p", server_address=address)
    list(stand.call(f"{_IMAGES}/PullImage", request))
    assert stand.login("docker.io/library/python:latest").password == "p"
    assert stand.login("python", "registry-1.docker.io") is not None
    assert stand.login("python", "mirror.test") is None


def test_what_is_no_pull_request_is_containerds_to_refuse(stand: Stand) -> None:
    stand.upstream.answers[f"{_IMAGES}/PullImage"] = answering(b"")
    list(stand.call(f"{_IMAGES}/PullImage", b"\xff\xff\xff"))
    assert [method for method, _ in stand.upstream.seen] == [f"{_IMAGES}/PullImage"]
