"""Between containerd's messages and our values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from pagein.snapshotter.proto import mount_pb2
from pagein.snapshotter.proto import snapshots_pb2 as pb
from pagein.snapshotter.values import Info, Mount

LIST_BATCH: Final = 100
"""Snapshots in one message of a List, as containerd's own service sends them."""


def mount_messages(mounts: Iterable[Mount]) -> list[mount_pb2.Mount]:
    """Write mounts."""
    return [mount_pb2.Mount(type=m.type, source=m.source, options=m.options) for m in mounts]


def info_message(info: Info) -> pb.Info:
    """Write what containerd calls Info."""
    return pb.Info(
        name=info.name,
        parent=info.parent,
        kind=pb.Kind.Name(info.kind),
        created_at=_timestamp(info.created_ns),
        updated_at=_timestamp(info.updated_ns),
        labels=dict(info.labels),
    )


def list_messages(infos: Sequence[Info]) -> Iterator[pb.ListSnapshotsResponse]:
    """Write a list, in batches; nothing is sent for none."""
    for start in range(0, len(infos), LIST_BATCH):
        batch = [info_message(info) for info in infos[start : start + LIST_BATCH]]
        yield pb.ListSnapshotsResponse(info=batch)


def _timestamp(nanoseconds: int) -> Timestamp:
    seconds, nanos = divmod(nanoseconds, 10**9)
    return Timestamp(seconds=seconds, nanos=nanos)
