"""The generated messages are those of the ``.proto`` files, and have containerd's numbers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from pagein.snapshotter.proto import generate, mount_pb2
from pagein.snapshotter.proto import snapshots_pb2 as pb

FOLDER = Path(generate.__file__).parent


def test_the_generated_code_is_up_to_date(tmp_path: Path) -> None:
    """Compares descriptors, which do not change with the version of protoc."""
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools")
    names = [f"pagein/snapshotter/proto/{name}" for name in generate.PROTOS]
    target = tmp_path / "set"
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{FOLDER.parents[2]}",
         f"--descriptor_set_out={target}", *names],
        check=True,
    )  # fmt: skip
    expected = {file.name: file for file in FileDescriptorSet.FromString(target.read_bytes()).file}
    for module in (mount_pb2, pb):
        found = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(found)
        wanted = expected[found.name]
        for file in (found, wanted):  # protoc alone writes these
            for message in _messages(file.message_type):
                for field in message.field:
                    field.ClearField("json_name")
        assert found == wanted


def _messages(messages: Iterable[DescriptorProto]) -> Iterator[DescriptorProto]:
    for message in messages:
        yield message
        yield from _messages(message.nested_type)


def test_the_bytes_are_those_that_containerd_sends() -> None:
    """Written by hand from the field numbers of the service's definition."""
    request = pb.PrepareSnapshotRequest.FromString(
        b"\x0a\x06pagein\x12\x01k\x1a\x01p\x22\x06\x0a\x01a\x12\x01b"
    )
    assert (request.snapshotter, request.key, request.parent) == ("pagein", "k", "p")
    assert dict(request.labels) == {"a": "b"}
    commit = pb.CommitSnapshotRequest.FromString(b"\x12\x01n\x1a\x01k\x2a\x01p")
    assert (commit.name, commit.key, commit.parent) == ("n", "k", "p")
    info = pb.Info(name="n", parent="p", kind=pb.COMMITTED)
    assert info.SerializeToString() == b"\x0a\x01n\x12\x01p\x18\x03"
    mount = mount_pb2.Mount(type="t", source="s", options=["o"])
    assert mount.SerializeToString() == b"\x0a\x01t\x12\x01s\x22\x01o"
    assert pb.UsageResponse(size=1, inodes=2).SerializeToString() == b"\x08\x01\x10\x02"
