"""The FUSE codec: each message whole, and truncated; sizes as in include/uapi/linux/fuse.h."""

import errno
import struct
import subprocess
from pathlib import Path

import pytest

from pagein.errors import FormatError
from pagein.wire import fuse


def request(opcode: int, body: bytes = b"", *, unique: int = 7, nodeid: int = 1) -> memoryview:
    header = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, nodeid, 0, 0, 99, 0, 0)
    return memoryview(header + body)


def answer(opcode: int, body: bytes = b"", *, size: int = 8192) -> bytes | None:
    data = request(opcode, body)
    return fuse.answer(fuse.parse_header(data), data, size=size)


def init_body(major: int = 7, minor: int = 45, flags: int = 0xFFFF_FFFF, flags2: int = 0xFFFF):
    return struct.pack("<IIIII44x", major, minor, 131072, flags, flags2)


def test_a_header_is_read_as_the_kernel_wrote_it():
    header = fuse.parse_header(request(15, b"x" * 40, unique=1 << 63 | 5))
    assert header == fuse.Header(80, 15, 1 << 63 | 5, 1)


@pytest.mark.parametrize("length", range(40))
def test_a_truncated_header_is_refused(length: int):
    with pytest.raises(FormatError, match="FUSE request"):
        fuse.parse_header(request(3)[:length])


def test_a_header_that_lies_about_its_length_is_refused():
    with pytest.raises(FormatError, match="says 41"):
        fuse.parse_header(memoryview(struct.pack("<IIQQIIIHH", 41, 3, 1, 1, 0, 0, 0, 0, 0)))


def test_a_read_request_names_offset_and_size():
    body = struct.pack("<QQIIQII", 1, 1 << 40, 131072, 0, 0, 0, 0)
    assert fuse.parse_read(request(15, body)) == fuse.ReadRequest(1 << 40, 131072)
    for length in range(40, 80):
        with pytest.raises(FormatError, match="too short"):
            fuse.parse_read(request(15, body)[:length])


def test_init_agrees_on_what_both_sides_have():
    reply = answer(26, init_body())
    assert reply is not None
    assert len(reply) == 16 + 64
    length, error, unique = struct.unpack_from("<IiQ", reply)
    assert (length, error, unique) == (80, 0, 7)
    major, minor, _, flags, background, congestion, _, gran, pages, _, flags2 = struct.unpack_from(
        "<IIIIHHIIHHI", reply, 16
    )
    assert (major, minor, gran, pages) == (7, 40, 1, 256)
    assert congestion < background
    assert flags == 1 << 0 | 1 << 15 | 1 << 22 | 1 << 30
    assert flags2 == 1 << (39 - 32)


def test_init_asks_for_nothing_that_the_kernel_lacks():
    reply = answer(26, init_body(minor=31, flags=1 << 0, flags2=0xFFFF_FFFF))
    assert reply is not None
    _, minor, _, flags = struct.unpack_from("<IIII", reply, 16)
    (flags2,) = struct.unpack_from("<I", reply, 16 + 32)
    assert (minor, flags, flags2) == (31, 1, 0)


def test_a_newer_major_version_is_told_ours():
    reply = answer(26, init_body(major=8, minor=0))
    assert reply is not None
    assert struct.unpack_from("<II", reply, 16) == (7, 40)


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (6, 99), (0, 0)])
def test_an_old_kernel_is_refused(major: int, minor: int):
    with pytest.raises(FormatError, match=f"FUSE protocol {major}.{minor}"):
        answer(26, init_body(major, minor))


@pytest.mark.parametrize("length", range(16))
def test_a_truncated_init_is_refused(length: int):
    with pytest.raises(FormatError, match="too short"):
        answer(26, init_body()[:length])


def test_getattr_says_a_read_only_file_of_that_size():
    reply = answer(3, bytes(16), size=3 << 20)
    assert reply is not None
    assert len(reply) == 16 + 104
    ino, size, blocks = struct.unpack_from("<QQQ", reply, 32)
    mode, nlink = struct.unpack_from("<II", reply, 32 + 60)
    assert (ino, size, blocks, mode, nlink) == (1, 3 << 20, 6144, 0o100400, 1)


def test_open_asks_for_direct_io():
    assert answer(14, bytes(8)) == struct.pack("<IiQQIi", 32, 0, 7, 0, 1, 0)


def test_statfs_says_full():
    reply = answer(17, size=40960)
    assert reply is not None
    assert len(reply) == 16 + 80
    assert struct.unpack_from("<QQQ", reply, 16) == (10, 0, 0)


@pytest.mark.parametrize("opcode", [2, 36, 42])
def test_forget_and_interrupt_get_no_reply(opcode: int):
    assert answer(opcode, bytes(64)) is None


@pytest.mark.parametrize("opcode", [18, 38])
def test_release_and_destroy_are_agreed_to(opcode: int):
    assert answer(opcode, bytes(24)) == struct.pack("<IiQ", 16, 0, 7)


@pytest.mark.parametrize("opcode", [4, 16, 21, 24, 43])
def test_what_would_change_the_file_is_refused_as_read_only(opcode: int):
    assert answer(opcode, bytes(64)) == struct.pack("<IiQ", 16, -errno.EROFS, 7)


@pytest.mark.parametrize("opcode", [0, 1, 20, 22, 23, 25, 34, 37, 39, 40, 46, 52, 4096, 2**32 - 1])
def test_any_other_request_is_not_implemented(opcode: int):
    assert answer(opcode, bytes(64)) == struct.pack("<IiQ", 16, -errno.ENOSYS, 7)


def test_a_reply_keeps_the_mark_of_a_resent_request():
    assert fuse.reply_error(fuse.RESENT | 9, errno.EIO) == struct.pack("<IiQ", 16, -5, 1 << 63 | 9)


def test_a_notification_has_no_unique_number():
    assert fuse.notify_resend() == struct.pack("<IiQ", 16, 7, 0)


def test_bytes_for_the_page_cache_follow_their_place():
    head = fuse.notify_store(1 << 40, 8192)
    assert head == struct.pack("<IiQQQII", 40 + 8192, 4, 0, 1, 1 << 40, 8192, 0)


@pytest.mark.parametrize(("cached", "flags"), [(False, 1), (True, 2)])
def test_a_file_is_read_directly_or_kept_in_the_page_cache(cached: bool, flags: int):
    # linux/fuse.h: FOPEN_DIRECT_IO is bit 0, FOPEN_KEEP_CACHE bit 1.
    assert fuse.reply_open(7, cached=cached) == struct.pack("<IiQQIi", 32, 0, 7, 0, flags, 0)


def test_the_head_of_a_reply_counts_the_bytes_that_follow():
    assert fuse.reply_header(3, 4096) + bytes(4096) == fuse.reply(3, bytes(4096))


def test_structures_are_as_long_as_the_kernel_header_says(tmp_path: Path):
    header = Path("/usr/include/linux/fuse.h")
    if not header.exists():
        pytest.skip("needs linux/fuse.h")
    names = ["in_header", "out_header", "read_in", "init_out", "attr_out", "open_out", "statfs_out"]
    source = tmp_path / "sizes.c"
    sizes = ", ".join(f"sizeof(struct fuse_{name})" for name in names)
    source.write_text(
        "#include <linux/fuse.h>\n#include <stdio.h>\n"
        f"int main(void) {{ unsigned long s[] = {{{sizes}}};\n"
        f'for (int i = 0; i < {len(names)}; i++) printf("%lu ", s[i]); }}\n'
    )
    try:
        subprocess.run(["cc", "-o", tmp_path / "sizes", source], check=True)
    except FileNotFoundError:
        pytest.skip("needs a C compiler")
    printed = subprocess.run([tmp_path / "sizes"], check=True, capture_output=True, text=True)
    ours = [
        fuse.IN_HEADER.size,
        fuse.OUT_HEADER.size,
        len(request(15, bytes(40))) - 40,
        len(answer(26, init_body()) or b"") - 16,
        len(answer(3) or b"") - 16,
        len(answer(14) or b"") - 16,
        len(answer(17) or b"") - 16,
    ]
    assert [int(size) for size in printed.stdout.split()] == ours
