"""containerd's Snapshots service on a unix socket: messages in, calls of `Snapshotter`, status out.

The namespace that containerd sends as metadata is not read: keys begin with it. Nor is the name of
the snapshotter in each request: a socket has one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from pagein.errors import (
    PageinError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    SnapshotStateError,
    SnapshotUnavailableError,
    UsageError,
)
from pagein.events import Observer, SnapshotterProblem, ignore
from pagein.snapshotter.grpc_messages import info_message, list_messages, mount_messages
from pagein.snapshotter.private_socket import bind_privately
from pagein.snapshotter.proto import snapshots_pb2 as pb
from pagein.snapshotter.service import Snapshotter

SERVICE: Final = "containerd.services.snapshots.v1.Snapshots"

STATUS: Final[tuple[tuple[type[PageinError], grpc.StatusCode], ...]] = (
    (SnapshotExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (SnapshotNotFoundError, grpc.StatusCode.NOT_FOUND),
    (SnapshotStateError, grpc.StatusCode.FAILED_PRECONDITION),
    (SnapshotUnavailableError, grpc.StatusCode.UNAVAILABLE),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
)
"""How an error is told; any other is UNKNOWN, as containerd's own service tells those."""

THREADS: Final = 64
"""Calls at once. Most take a millisecond, but one that mounts or unpacks holds its thread for
seconds: with this many, the starts of containers on images that are not mounted yet leave room for
the calls that containerd makes every 10 s. A thread is made when none is idle, and waits for free.
"""

_STOP_S: Final = 5.0
_Request = TypeVar("_Request", bound=Message)
_Answer = TypeVar("_Answer")


class SnapshotsServer:
    """Serves a `Snapshotter` at ``path`` from `start` to `stop`; root alone may connect.

    A socket that nobody listens on any more is replaced.
    """

    def __init__(
        self, snapshotter: Snapshotter, path: Path, *, observer: Observer = ignore
    ) -> None:
        self._path = path
        self._observer = observer
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="snapshots")
        self._server = grpc.server(self._pool)
        self._server.add_generic_rpc_handlers((self._handlers(_Calls(snapshotter)),))

    def start(self) -> None:
        """Listen, and return. Raises UsageError where the socket cannot be made or is served."""
        bind_privately(self._server, self._path)
        self._server.start()

    def stop(self) -> None:
        """Answer what was asked, for some seconds, and end; idempotent."""
        self._server.stop(_STOP_S).wait()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._path.unlink(missing_ok=True)

    def _handlers(self, calls: _Calls) -> grpc.GenericRpcHandler[Any, Any]:
        unary: dict[str, tuple[type[Message], Callable[[Any], Message]]] = {
            "Prepare": (pb.PrepareSnapshotRequest, calls.prepare),
            "View": (pb.ViewSnapshotRequest, calls.view),
            "Mounts": (pb.MountsRequest, calls.mounts),
            "Commit": (pb.CommitSnapshotRequest, calls.commit),
            "Remove": (pb.RemoveSnapshotRequest, calls.remove),
            "Stat": (pb.StatSnapshotRequest, calls.stat),
            "Update": (pb.UpdateSnapshotRequest, calls.update),
            "Usage": (pb.UsageRequest, calls.usage),
            "Cleanup": (pb.CleanupRequest, calls.cleanup),
        }
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(
                functools.partial(self._answer, name, call),
                request_deserializer=request.FromString,
                response_serializer=_written,
            )
            for name, (request, call) in unary.items()
        }
        handlers["List"] = grpc.unary_stream_rpc_method_handler(
            functools.partial(self._stream, "List", calls.list),
            request_deserializer=pb.ListSnapshotsRequest.FromString,
            response_serializer=_written,
        )
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _answer(
        self,
        name: str,
        call: Callable[[_Request], _Answer],
        request: _Request,
        context: grpc.ServicerContext,
    ) -> _Answer:
        try:
            return call(request)
        except Exception as error:
            self._refuse(name, error, context)

    def _stream(
        self,
        name: str,
        call: Callable[[_Request], Iterator[_Answer]],
        request: _Request,
        context: grpc.ServicerContext,
    ) -> Iterator[_Answer]:
        yield from self._answer(name, call, request, context)

    def _refuse(self, name: str, error: Exception, context: grpc.ServicerContext) -> NoReturn:
        for kind, code in STATUS:
            if isinstance(error, kind):
                context.abort(code, _words(error))
        what = (
            _words(error) if isinstance(error, PageinError) else f"{type(error).__name__}: {error}"
        )
        self._observer(SnapshotterProblem(f"answer {name}", what))
        context.abort(grpc.StatusCode.UNKNOWN, what)


class _Calls:
    """One method for each of the service's."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    def prepare(self, request: pb.PrepareSnapshotRequest) -> pb.PrepareSnapshotResponse:
        mounts = self._snapshotter.prepare(request.key, request.parent, request.labels)
        return pb.PrepareSnapshotResponse(mounts=mount_messages(mounts))

    def view(self, request: pb.ViewSnapshotRequest) -> pb.ViewSnapshotResponse:
        mounts = self._snapshotter.view(request.key, request.parent, request.labels)
        return pb.ViewSnapshotResponse(mounts=mount_messages(mounts))

    def mounts(self, request: pb.MountsRequest) -> pb.MountsResponse:
        return pb.MountsResponse(mounts=mount_messages(self._snapshotter.mounts(request.key)))

    def commit(self, request: pb.CommitSnapshotRequest) -> Empty:
        self._snapshotter.commit(request.name, request.key, request.labels, parent=request.parent)
        return Empty()

    def remove(self, request: pb.RemoveSnapshotRequest) -> Empty:
        self._snapshotter.remove(request.key)
        return Empty()

    def stat(self, request: pb.StatSnapshotRequest) -> pb.StatSnapshotResponse:
        return pb.StatSnapshotResponse(info=info_message(self._snapshotter.stat(request.key)))

    def update(self, request: pb.UpdateSnapshotRequest) -> pb.UpdateSnapshotResponse:
        info = self._snapshotter.update(
            request.info.name, request.info.labels, request.update_mask.paths
        )
        return pb.UpdateSnapshotResponse(info=info_message(info))

    def usage(self, request: pb.UsageRequest) -> pb.UsageResponse:
        usage = self._snapshotter.usage(request.key)
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    def cleanup(self, request: pb.CleanupRequest) -> Empty:
        del request
        self._snapshotter.cleanup()
        return Empty()

    def list(self, request: pb.ListSnapshotsRequest) -> Iterator[pb.ListSnapshotsResponse]:
        return list_messages(self._snapshotter.walk(request.filters))


def _written(message: Message) -> bytes:
    return message.SerializeToString()  # of its own class: the base class has none that works


def _words(error: PageinError) -> str:
    return f"{error}; {error.hint}" if error.hint else str(error)
