"""Stands between kubelet and containerd's CRI socket, and hears which credentials a pull brings.

kubelet is given our socket as ``--image-service-endpoint``. Every method of every service passes
through as bytes, with its metadata, deadline, status and trailers, so that methods which nobody has
thought of yet work. Only the requests of PullImage and RemoveImage are read.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import DecodeError

from pagein.snapshotter.private_socket import bind_privately
from pagein.snapshotter.proto import cri_images_pb2 as pb
from pagein.store.captured_credentials import CapturedCredentials, Login, PullAttempt
from pagein.wire.auth import Credential

THREADS: Final = 64
"""Calls at once. A pull holds its thread for as long as it takes; kubelet makes few at a time."""

_IMAGE_SERVICES: Final = ("/runtime.v1.ImageService/", "/runtime.v1alpha2.ImageService/")
_PULL: Final = tuple(f"{service}PullImage" for service in _IMAGE_SERVICES)
_REMOVE: Final = tuple(f"{service}RemoveImage" for service in _IMAGE_SERVICES)
_STOP_S: Final = 5.0
_LONGEST_S: Final = 10.0 * 365 * 86400
_MAX_MESSAGE: Final = 64 << 20  # containerd and kubelet allow 16 MiB
_NOT_OURS: Final = frozenset({"user-agent", "content-type", "te"})
_SIZES: Final = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
)


class CriProxy:
    """Serves ``listen`` from `start` to `stop`, passing all on to the socket ``upstream``.

    What pulls bring goes to ``credentials``. Root alone may connect. The upstream need not be
    there yet, and may restart: calls fail with UNAVAILABLE while it is away, as they would without
    us.
    """

    def __init__(self, listen: Path, upstream: Path, credentials: CapturedCredentials) -> None:
        self._listen = listen
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="cri-proxy")
        self._server = grpc.server(self._pool, options=_SIZES)
        # A path is no host name: containerd's HTTP/2 refuses what grpc would write for one.
        # Back-off is kept short, as kubelet's own calls wait for containerd to come back.
        self._channel = grpc.insecure_channel(
            f"unix:{upstream}",
            options=(
                *_SIZES,
                ("grpc.default_authority", "localhost"),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ),
        )
        self._server.add_generic_rpc_handlers((_EveryMethod(self._channel, credentials),))

    def start(self) -> None:
        """Listen, and return. Raises UsageError where the socket cannot be made or is served."""
        bind_privately(self._server, self._listen)
        self._server.start()

    def stop(self) -> None:
        """Let calls end, for some seconds; idempotent."""
        self._server.stop(_STOP_S).wait()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._channel.close()
        self._listen.unlink(missing_ok=True)


class _EveryMethod(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # not generic when it runs
    """Answers for any method. On the wire a unary call is a stream of one message each way."""

    def __init__(self, channel: grpc.Channel, credentials: CapturedCredentials) -> None:
        self._channel = channel
        self._credentials = credentials

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        method = handler_call_details.method

        def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            if method in _PULL:
                return self._pull(method, requests, context)
            if method in _REMOVE:
                return self._remove(method, requests, context)
            return self._pass(method, requests, context)

        return grpc.stream_stream_rpc_method_handler(answer)

    def _pull(
        self, method: str, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        message = next(requests, b"")
        reference, login = read_pull(message)
        with self._credentials.pulling(reference, login) as attempt:
            for answer in self._pass(method, iter((message,)), context):
                _note(attempt, answer)
                yield answer

    def _remove(
        self, method: str, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        message = next(requests, b"")
        yield from self._pass(method, iter((message,)), context)
        with contextlib.suppress(DecodeError):
            self._credentials.forget(pb.RemoveImageRequest.FromString(message).image.image)

    def _pass(
        self, method: str, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Yield the upstream's answers; its status and trailers become ours."""
        passing = self._channel.stream_stream(
            method, request_serializer=None, response_deserializer=None
        )
        call: Any = passing(
            requests,
            timeout=_deadline(context),
            metadata=_passed_on(context.invocation_metadata()),
        )
        if not context.add_callback(call.cancel):
            call.cancel()
        try:
            if headers := _passed_on(call.initial_metadata()):
                context.send_initial_metadata(headers)
            yield from call
        except grpc.RpcError:
            context.set_trailing_metadata(_passed_on(call.trailing_metadata()))
            context.abort(call.code(), call.details() or "")
        context.set_trailing_metadata(_passed_on(call.trailing_metadata()))


def read_pull(message: bytes) -> tuple[str, Login | None]:
    """Return the reference of a PullImageRequest, and its login if it has one that can be read."""
    try:
        request = pb.PullImageRequest.FromString(message)
    except DecodeError:
        return "", None  # the upstream will say what is wrong with it
    auth = request.auth
    username, password = auth.username, auth.password
    if not username and auth.auth:
        try:
            text = base64.b64decode(auth.auth, validate=True).decode()
        except (binascii.Error, ValueError):
            text = ""
        username, _, password = text.partition(":")
        password = password.rstrip("\0")
    credential = Credential(username, password, auth.identity_token, auth.registry_token)
    if not (username or auth.identity_token or auth.registry_token):
        return request.image.image, None
    return request.image.image, Login(credential, _host_of(auth.server_address))


def _host_of(address: str) -> str:
    """Reduce ``https://index.docker.io/v1/`` and ``registry:5000`` to a host; empty: any."""
    text = address if "://" in address else f"https://{address}"
    try:
        return urlsplit(text).netloc.rpartition("@")[2]
    except ValueError:
        return address


def _note(attempt: PullAttempt, answer: bytes) -> None:
    with contextlib.suppress(DecodeError):
        attempt.succeeded(pb.PullImageResponse.FromString(answer).image_ref)


def _deadline(context: grpc.ServicerContext) -> float | None:
    """Return the seconds that are left; grpc says centuries where the caller named no deadline."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None or remaining > _LONGEST_S else remaining


def _passed_on(metadata: Any) -> tuple[tuple[str, str | bytes], ...]:
    """Drop what each hop says for itself (gRPC over HTTP/2, "Requests" and "Responses")."""
    return tuple(
        (key, value)
        for key, value in metadata or ()
        if key not in _NOT_OURS
        and not key.startswith(":")
        and (not key.startswith("grpc-") or key == "grpc-status-details-bin")
    )
