"""Whatever bytes a request has, the codec answers it, or raises FormatError and nothing else."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from pagein.errors import FormatError
from pagein.wire import fuse


def feed(data: bytes, size: int) -> None:
    view = memoryview(data)
    try:
        header = fuse.parse_header(view)
        if header.opcode == fuse.Opcode.READ:
            fuse.parse_read(view)
            return
        reply = fuse.answer(header, view, size=size)
    except FormatError:
        return
    if reply is not None:
        length, error, unique = struct.unpack_from("<IiQ", reply)
        assert length == len(reply)
        assert -512 < error <= 0
        assert unique == header.unique


@given(st.binary(max_size=300), st.integers(0, 1 << 50))
def test_random_bytes_never_crash_the_parser(data: bytes, size: int):
    feed(data, size)


@given(
    st.integers(0, 60) | st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=200),
    st.integers(0, 1 << 50),
)
def test_random_bodies_are_answered_or_refused(opcode: int, unique: int, body: bytes, size: int):
    header = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, 1, 0, 0, 0, 0, 0)
    feed(header + body, size)
