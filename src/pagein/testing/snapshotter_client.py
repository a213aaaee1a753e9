"""A client of containerd's Snapshots service, and mount(8) for its answers.

Plain values in and out; an error is a `grpc.RpcError` with its status code.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from pagein.device.mount import unmount
from pagein.snapshotter.proto import mount_pb2
from pagein.snapshotter.proto import snapshots_pb2 as pb
from pagein.snapshotter.values import Info, Kind, Mount, Usage

_SERVICE = "/containerd.services.snapshots.v1.Snapshots"
_TIMEOUT_S = 60.0


class SnapshotterClient:
    """Calls the snapshotter ``name`` at a unix socket.

    ``metadata`` goes with each call: containerd itself wants ``containerd-namespace``, and a lease,
    or its garbage collector takes what is not labelled. Close it when done.
    """

    def __init__(self, socket: Path, name: str, metadata: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._metadata = tuple((metadata or {}).items())
        self._channel = grpc.insecure_channel(f"unix:{socket}")

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def prepare(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """Call Prepare."""
        request = pb.PrepareSnapshotRequest(
            snapshotter=self.name, key=key, parent=parent, labels=dict(labels or {})
        )
        return _mounts(self._call("Prepare", request, pb.PrepareSnapshotResponse).mounts)

    def view(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """Call View."""
        request = pb.ViewSnapshotRequest(
            snapshotter=self.name, key=key, parent=parent, labels=dict(labels or {})
        )
        return _mounts(self._call("View", request, pb.ViewSnapshotResponse).mounts)

    def mounts(self, key: str) -> list[Mount]:
        """Call Mounts."""
        request = pb.MountsRequest(snapshotter=self.name, key=key)
        return _mounts(self._call("Mounts", request, pb.MountsResponse).mounts)

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = ""
    ) -> None:
        """Call Commit."""
        request = pb.CommitSnapshotRequest(
            snapshotter=self.name, name=name, key=key, labels=dict(labels or {}), parent=parent
        )
        self._call("Commit", request, Empty)

    def remove(self, key: str) -> None:
        """Call Remove."""
        self._call("Remove", pb.RemoveSnapshotRequest(snapshotter=self.name, key=key), Empty)

    def stat(self, key: str) -> Info:
        """Call Stat."""
        request = pb.StatSnapshotRequest(snapshotter=self.name, key=key)
        return _info(self._call("Stat", request, pb.StatSnapshotResponse).info)

    def update(self, name: str, labels: Mapping[str, str], *mask: str) -> Info:
        """Call Update."""
        request = pb.UpdateSnapshotRequest(
            snapshotter=self.name,
            info=pb.Info(name=name, labels=dict(labels)),
            update_mask=FieldMask(paths=mask) if mask else None,
        )
        return _info(self._call("Update", request, pb.UpdateSnapshotResponse).info)

    def list(self, *filters: str) -> list[Info]:
        """Call List, and gather its stream."""
        request = pb.ListSnapshotsRequest(snapshotter=self.name, filters=filters)
        call: Callable[..., Any] = self._channel.unary_stream(
            f"{_SERVICE}/List",
            request_serializer=type(request).SerializeToString,
            response_deserializer=pb.ListSnapshotsResponse.FromString,
        )
        stream = call(request, timeout=_TIMEOUT_S, metadata=self._metadata)
        return [_info(info) for answer in stream for info in answer.info]

    def usage(self, key: str) -> Usage:
        """Call Usage."""
        request = pb.UsageRequest(snapshotter=self.name, key=key)
        answer = self._call("Usage", request, pb.UsageResponse)
        return Usage(answer.size, answer.inodes)

    def cleanup(self) -> None:
        """Call Cleanup."""
        self._call("Cleanup", pb.CleanupRequest(snapshotter=self.name), Empty)

    def _call(self, name: str, request: Message, answer: type[Any]) -> Any:
        call: Callable[..., Any] = self._channel.unary_unary(
            f"{_SERVICE}/{name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=_TIMEOUT_S, metadata=self._metadata)


@contextlib.contextmanager
def mounted(mounts: Sequence[Mount], target: Path) -> Iterator[Path]:
    """Make the mounts at ``target``, as containerd does, and undo them. Needs root.

    Overlay options that fill a page are made relative to the directories' common parent.
    """
    target.mkdir(exist_ok=True)
    made = 0
    try:
        for mount in mounts:
            options, folder = ",".join(mount.options), Path("/")
            if len(options) > 4000:
                options, folder = _shortened(mount.options)
            kind = ["-t", mount.type] if mount.type != "bind" else []
            command = ["mount", *kind, "-o", options, mount.source, str(target)]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            made += 1
        yield target
    finally:
        for _ in range(made):
            unmount(target)


def _shortened(options: Sequence[str]) -> tuple[str, Path]:
    (lowers,) = (text for text in options if text.startswith("lowerdir="))
    paths = lowers.removeprefix("lowerdir=").split(":")
    common = os.path.commonpath(paths)
    short = "lowerdir=" + ":".join(os.path.relpath(path, common) for path in paths)
    return ",".join([*(text for text in options if text != lowers), short]), Path(common)


def _mounts(messages: Sequence[mount_pb2.Mount]) -> list[Mount]:
    return [Mount(one.type, one.source, tuple(one.options)) for one in messages]


def _info(message: pb.Info) -> Info:
    return Info(
        message.name,
        message.parent,
        Kind(message.kind),
        message.created_at.ToNanoseconds(),
        message.updated_at.ToNanoseconds(),
        dict(message.labels),
    )
