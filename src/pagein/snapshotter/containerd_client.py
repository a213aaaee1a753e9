"""A client of containerd's services: content, diff, images, leases, snapshots, introspection.

Plain values in and out. Errors are ours: NotFoundError, SnapshotExistsError, RemoteUnavailableError
where nobody listens, RemoteError with containerd's words for the rest.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from pagein.errors import NotFoundError, RemoteError, RemoteUnavailableError, SnapshotExistsError
from pagein.format.manifest import Descriptor
from pagein.snapshotter.proto import containerd_api_pb2 as pb
from pagein.snapshotter.proto import mount_pb2
from pagein.snapshotter.proto import snapshots_pb2 as snapshots
from pagein.types import Digest

_TIMEOUT_S: Final = 60.0
_APPLY_TIMEOUT_S: Final = 3600.0
"""Unpacking one layer of gigabytes takes minutes on a slow disk."""

_LEASE: Final = timedelta(hours=24)  # as containerd's own clients
_PIECE: Final = 1 << 20  # containerd takes messages of 16 MiB


@dataclass(frozen=True, slots=True)
class Plugin:
    """One of containerd's plugins; ``error`` is empty if it works."""

    type: str
    id: str
    error: str


class ContainerdClient:
    """Speaks with containerd in one namespace. Close it when done."""

    def __init__(self, socket: Path, namespace: str) -> None:
        self._socket = socket
        self._metadata: tuple[tuple[str, str], ...] = (("containerd-namespace", namespace),)
        self._channel = grpc.insecure_channel(
            f"unix:{socket}", options=(("grpc.default_authority", "localhost"),)
        )

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def version(self) -> str:
        """Return containerd's version."""
        answer = self._call("version.v1.Version/Version", Empty(), pb.VersionResponse)
        return str(answer.version)

    def plugins(self, *filters: str) -> list[Plugin]:
        """List plugins."""
        request = pb.PluginsRequest(filters=filters)
        answer = self._call("introspection.v1.Introspection/Plugins", request, pb.PluginsResponse)
        return [Plugin(one.type, one.id, one.init_err.message) for one in answer.plugins]

    @contextlib.contextmanager
    def leasing(self) -> Iterator[None]:
        """Keep what is made meanwhile from the garbage collector, until an image holds it."""
        name = f"pagein-{secrets.token_hex(8)}"
        expires = (datetime.now(UTC) + _LEASE).strftime("%Y-%m-%dT%H:%M:%SZ")
        request = pb.CreateLeaseRequest(id=name, labels={"containerd.io/gc.expire": expires})
        self._call("leases.v1.Leases/Create", request, Empty)
        before, self._metadata = self._metadata, (*self._metadata, ("containerd-lease", name))
        try:
            yield
        finally:
            self._metadata = before
            self._call("leases.v1.Leases/Delete", pb.DeleteLeaseRequest(id=name), Empty)

    def write(
        self, digest: Digest, size: int, pieces: Iterable[bytes], labels: Mapping[str, str]
    ) -> None:
        """Store content under its digest, which containerd checks; label it if it is there."""
        call: Callable[..., Any] = self._channel.stream_stream(
            "/containerd.services.content.v1.Content/Write",
            request_serializer=pb.WriteContentRequest.SerializeToString,
            response_deserializer=pb.WriteContentResponse.FromString,
        )
        messages = _write_requests(digest, size, pieces, labels)
        try:
            with self._told(f"store {digest}"):
                for _ in call(messages, timeout=_APPLY_TIMEOUT_S, metadata=self._metadata):
                    pass
        except SnapshotExistsError:
            self.label(digest, labels)

    def label(self, digest: Digest, labels: Mapping[str, str]) -> None:
        """Add labels to content."""
        request = pb.UpdateContentRequest(
            info=pb.ContentInfo(digest=str(digest), labels=dict(labels)),
            update_mask=FieldMask(paths=[f"labels.{key}" for key in labels]),
        )
        self._call("content.v1.Content/Update", request, Empty)

    def has_snapshot(self, snapshotter: str, name: str) -> bool:
        """Say whether there is such a snapshot."""
        request = snapshots.StatSnapshotRequest(snapshotter=snapshotter, key=name)
        try:
            self._call("snapshots.v1.Snapshots/Stat", request, Empty)
        except NotFoundError:
            return False
        return True

    def prepare(
        self, snapshotter: str, key: str, parent: str, labels: Mapping[str, str]
    ) -> Sequence[mount_pb2.Mount]:
        """Prepare a snapshot to unpack into. SnapshotExistsError: it need not be unpacked."""
        request = snapshots.PrepareSnapshotRequest(
            snapshotter=snapshotter, key=key, parent=parent, labels=dict(labels)
        )
        answer = self._call(
            "snapshots.v1.Snapshots/Prepare", request, snapshots.PrepareSnapshotResponse
        )
        return list(answer.mounts)

    def commit(self, snapshotter: str, name: str, key: str, labels: Mapping[str, str]) -> None:
        """Commit a prepared snapshot."""
        request = snapshots.CommitSnapshotRequest(
            snapshotter=snapshotter, name=name, key=key, labels=dict(labels)
        )
        self._call("snapshots.v1.Snapshots/Commit", request, Empty)

    def remove(self, snapshotter: str, key: str) -> None:
        """Remove a snapshot."""
        request = snapshots.RemoveSnapshotRequest(snapshotter=snapshotter, key=key)
        self._call("snapshots.v1.Snapshots/Remove", request, Empty)

    def apply(self, layer: Descriptor, mounts: Sequence[mount_pb2.Mount]) -> Digest:
        """Unpack a stored layer into mounts; return the digest of what it unpacked to."""
        request = pb.ApplyRequest(diff=_descriptor(layer), mounts=mounts)
        answer = self._call("diff.v1.Diff/Apply", request, pb.ApplyResponse, _APPLY_TIMEOUT_S)
        return Digest.parse(answer.applied.digest)

    def set_image(self, name: str, target: Descriptor) -> None:
        """Create an image, or have its name mean this one."""
        image = pb.Image(name=name, target=_descriptor(target))
        try:
            self._call("images.v1.Images/Create", pb.CreateImageRequest(image=image), Empty)
        except SnapshotExistsError:
            update = pb.UpdateImageRequest(image=image, update_mask=FieldMask(paths=["target"]))
            self._call("images.v1.Images/Update", update, Empty)

    def _call(
        self, method: str, request: Message, answer: type[Any], timeout_s: float = _TIMEOUT_S
    ) -> Any:
        call: Callable[..., Any] = self._channel.unary_unary(
            f"/containerd.services.{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        with self._told(method.rpartition("/")[2].lower()):
            return call(request, timeout=timeout_s, metadata=self._metadata)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            if code is grpc.StatusCode.NOT_FOUND:
                raise NotFoundError(f"containerd cannot {what}: {details}") from None
            if code is grpc.StatusCode.ALREADY_EXISTS:
                raise SnapshotExistsError(f"containerd cannot {what}: {details}") from None
            if code is grpc.StatusCode.UNAVAILABLE:
                raise RemoteUnavailableError(
                    f"containerd does not answer at {self._socket}: {details}",
                    hint="is it running, and is this its socket?",
                ) from None
            raise RemoteError(f"containerd cannot {what}: {details}") from None


def _write_requests(
    digest: Digest, size: int, pieces: Iterable[bytes], labels: Mapping[str, str]
) -> Iterator[pb.WriteContentRequest]:
    """Yield the messages of one upload; the last one commits it."""
    ref = f"pagein-{secrets.token_hex(8)}"  # nobody goes on with what another upload left
    offset = 0
    for piece in pieces:
        for start in range(0, len(piece), _PIECE):
            data = piece[start : start + _PIECE]
            yield pb.WriteContentRequest(
                action=pb.WRITE, ref=ref, total=size, expected=str(digest), offset=offset, data=data
            )
            offset += len(data)
    yield pb.WriteContentRequest(
        action=pb.COMMIT,
        ref=ref,
        total=size,
        expected=str(digest),
        offset=offset,
        labels=dict(labels),
    )


def _descriptor(one: Descriptor) -> pb.Descriptor:
    return pb.Descriptor(media_type=one.media_type, digest=str(one.digest), size=one.size)
