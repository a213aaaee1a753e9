"""The tar reader on archives of Python's `tarfile`, on hand-made headers, and on hostile ones."""

import contextlib
import io
import itertools
import tarfile
import tracemalloc

import pytest

from pagein.errors import FormatError
from pagein.format.tar import HARDLINK, MAX_PAX, TarEntry, read_entries
from pagein.format.tar_fields import number, pax_records, pax_time
from pagein.format.tree import NodeKind
from pagein.testing.layer_corpus import Item, directory, file, hard_link, symlink, tar_layer


def entries(archive: bytes) -> list[tuple[TarEntry, bytes]]:
    return [
        (entry, b"".join(bytes(data) for _, data in entry.chunks()))
        for entry in read_entries(io.BytesIO(archive))
    ]


def only(archive: bytes) -> TarEntry:
    ((entry, _),) = entries(archive)
    return entry


def header(name=b"f", size=b"", kind=b"0", magic=b"ustar\x0000", mend=True, **fields) -> bytes:
    """Write one header field by field, with a right checksum."""
    block = bytearray(512)
    at = {"mode": 100, "uid": 108, "gid": 116, "mtime": 136, "link": 157, "devmajor": 329,
          "devminor": 337, "prefix": 345, "sparse": 386, "more": 482, "real": 483}  # fmt: skip
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[257 : 257 + len(magic)] = magic
    for field, value in fields.items():
        block[at[field] : at[field] + len(value)] = value
    block[148:156] = b" " * 8
    if mend:
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    data = b""
    for key, value in records:
        body = b" " + key + b"=" + value + b"\n"
        length = len(body) + len(str(len(body)))
        length += len(str(length)) - len(str(len(body)))
        data += b"%d" % length + body
    return header(b"pax", b"%o" % len(data), kind) + padded(data)


END = bytes(1024)


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_every_kind_of_entry_comes_back_as_it_was_written(tar_format: int) -> None:
    archive = tar_layer(
        directory(b"d/", mode=0o1777),
        file(b"d/f", b"x" * 3000, mode=0o4755, uid=12, gid=34),
        symlink(b"s", b"d/f"),
        hard_link(b"h", b"d/f"),
        Item(b"c", tarfile.CHRTYPE, device=(5, 1)),
        Item(b"b", tarfile.BLKTYPE, device=(8, 17)),
        Item(b"p", tarfile.FIFOTYPE),
        format=tar_format,
    )
    found = [entry for entry, _ in entries(archive)]
    assert [entry.kind for entry in found] == [
        NodeKind.DIRECTORY,
        NodeKind.FILE,
        NodeKind.SYMLINK,
        HARDLINK,
        NodeKind.CHAR_DEVICE,
        NodeKind.BLOCK_DEVICE,
        NodeKind.FIFO,
    ]
    assert (found[1].mode, found[1].uid, found[1].gid, found[1].size) == (0o4755, 12, 34, 3000)
    assert (found[2].link_target, found[3].link_target) == (b"d/f", b"d/f")
    assert (found[4].device, found[5].device) == ((5, 1), (8, 17))


def test_chunks_are_at_most_a_mebibyte_and_in_order() -> None:
    data = bytes(range(256)) * 4096 * 3
    chunks = list(next(read_entries(io.BytesIO(tar_layer(file(b"f", data))))).chunks())
    assert [at for at, _ in chunks] == [0, 1 << 20, 2 << 20]
    assert b"".join(piece for _, piece in chunks) == data


def test_data_that_nobody_reads_is_passed_over() -> None:
    archive = tar_layer(file(b"a", b"1" * 5000), file(b"b", b"2" * 700), file(b"c", b"3"))
    found = []
    for entry in read_entries(io.BytesIO(archive)):
        if entry.path == b"b":
            next(entry.chunks())
        found.append(entry.path)
    assert found == [b"a", b"b", b"c"]


def test_chunks_of_an_entry_that_was_passed_are_a_mistake_and_not_other_data() -> None:
    reader = read_entries(io.BytesIO(tar_layer(file(b"a", b"1" * 5000), file(b"b"))))
    first = next(reader)
    next(reader)
    with pytest.raises(RuntimeError, match="read past"):
        list(first.chunks())


def test_contiguous_files_are_files_and_old_directories_end_in_a_slash() -> None:
    archive = header(kind=b"7", size=b"3") + padded(b"abc")
    archive += header(b"old/", kind=b"\0", magic=b"") + header(b"new/", kind=b"0") + END
    kinds = [(entry.path, entry.kind) for entry, _ in entries(archive)]
    assert kinds == [
        (b"f", NodeKind.FILE),
        (b"old/", NodeKind.DIRECTORY),
        (b"new/", NodeKind.FILE),
    ]


def test_star_and_ustar_prefixes_are_joined_and_gnu_ones_are_not() -> None:
    assert only(header(prefix=b"some/where") + END).path == b"some/where/f"
    star = bytearray(header(prefix=b"p" * 131 + b"00000000000 00000000000 tar"))
    star[508:512] = b"tar\0"
    star[148:156] = b" " * 8
    star[148:156] = b"%06o\0 " % sum(star)
    assert only(bytes(star) + END).path == b"p" * 131 + b"/f"
    assert only(header(prefix=b"12345", magic=b"ustar  \0") + END).path == b"f"


def test_global_records_hold_until_they_are_overridden() -> None:
    archive = pax((b"uid", b"7"), (b"comment", b"x"), kind=b"g")
    archive += header(b"a") + pax((b"uid", b"8")) + header(b"b") + header(b"c") + END
    assert [entry.uid for entry, _ in entries(archive)] == [7, 8, 7]


def test_pax_records_win_over_the_header_and_empty_ones_do_not() -> None:
    records = pax((b"path", b"new\xff"), (b"size", b"3"), (b"mtime", b""), (b"gid", b"70000"))
    entry = only(records + header(mtime=b"17") + padded(b"abc") + END)
    assert (entry.path, entry.size, entry.mtime_ns, entry.gid) == (b"new\xff", 3, 15 * 10**9, 70000)


def test_a_linkpath_is_taken_where_the_header_has_none() -> None:
    entry = only(pax((b"linkpath", b"there")) + header(kind=b"2") + END)
    assert entry.link_target == b"there"


def test_xattr_values_may_hold_anything() -> None:
    value = b"a=b\n\0\xff=\n12 x=y\n"
    entry = only(pax((b"SCHILY.xattr.user.v", value), (b"SCHILY.xattr.user.e", b"")) + header())
    assert entry.xattrs == {b"user.v": value}  # an empty record is none: pax(1), and Go reads it so


def test_long_names_of_gnu_tar_end_at_their_nul() -> None:
    archive = header(b"././@LongLink", b"1000", b"L") + padded(b"n" * 400 + b"\0junk".ljust(112))
    archive += header(b"././@LongLink", b"3", b"K") + padded(b"to\0") + header(kind=b"2") + END
    entry = only(archive)
    assert (entry.path, entry.link_target) == (b"n" * 400, b"to")


def test_links_and_directories_have_no_data_whatever_their_size_says() -> None:
    archive = header(kind=b"1", size=b"1000", link=b"x") + header(kind=b"5", size=b"7") + END
    assert [entry.size for entry, _ in entries(archive)] == [0, 0]


def test_a_volume_label_is_skipped_and_other_unknown_types_are_refused() -> None:
    assert entries(header(b"label", kind=b"V") + END) == []
    with pytest.raises(FormatError, match=r"tar header at byte 0: .* unknown type b'Z'"):
        entries(header(kind=b"Z") + END)


@pytest.mark.parametrize("end", [b"", bytes(512), END, END + b"anything"])
def test_an_archive_may_end_in_zero_one_or_two_blocks(end: bytes) -> None:
    assert len(entries(header() + end)) == 1


def test_what_follows_the_end_stays_in_the_stream() -> None:
    stream = io.BytesIO(header() + END + b"rest")
    assert len(list(read_entries(stream))) == 1
    assert stream.read() == b"rest"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"   644 \0", 0o644),
        (b"\0" * 8, 0),
        (b"644\0junk", 0o644),
        (b"\x80" + bytes(10) + b"\x05", 5),
        (b"\xff" * 12, -1),
        (b"\x80\0\0\0\0\0\0\x02\0\0\0\0", 8 << 30),
        (b"\xff" * 11 + b"\xf9", -7),
    ],
)
def test_numbers_are_octal_or_base_256(field: bytes, value: int) -> None:
    assert number(field) == value


@pytest.mark.parametrize("field", [b"0_644\0\0\0", b"+644", b"-1", b"0x1", b"8", b"6 4"])
def test_numbers_that_python_would_take_and_tar_does_not_are_refused(field: bytes) -> None:
    with pytest.raises(FormatError, match="not an octal number"):
        number(field)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"1", 10**9),
        (b"1.5", 1_500_000_000),
        (b"-0.000000001", -1),
        (b"-12.25", -12_250_000_000),
        (b"1600000000.123456789", 1_600_000_000_123_456_789),
        (b"1.9999999999", 1_999_999_999),
        (b".5", 500_000_000),
        (b"7.", 7 * 10**9),
    ],
)
def test_times_are_exact(text: bytes, value: int) -> None:
    assert pax_time(text) == value


@pytest.mark.parametrize("text", [b"", b"-", b".", b"1e9", b"1.-5", b"--1", b"9" * 21, b"9" * 20])
def test_times_that_are_none_are_refused(text: bytes) -> None:
    with pytest.raises(FormatError):
        pax_time(text)


@pytest.mark.parametrize(
    "data",
    [
        b"5 a=b\n",
        b"7 a=b\n",
        b"6 a=bx",
        b"6 abc\n",
        b"99999999999999999999999 a=b\n",
        b"-6 a=b\n",
        b"6 =ab\n",
        b"nothing",
        b"0 a=b\n",
        b"7 \0a=b\n",
    ],
)
def test_pax_records_that_do_not_add_up_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        pax_records(data)


def test_an_archive_cut_anywhere_is_an_error_or_ends_between_entries() -> None:
    archive = tar_layer(
        file(b"n" * 200, b"1" * 1000, mtime="1.5"), directory(b"d"), file(b"g", b"2" * 600)
    )
    with tarfile.open(fileobj=io.BytesIO(archive)) as reference:
        starts = {member.offset for member in reference}
        last = max(member.offset_data for member in reference)
        starts.add(last + 1024)
        # Go takes an end inside the padding for the end of the archive (Rule 3), and so do we.
        starts.update(range(last + 600, last + 1024))
    end = last + 1024 + 512
    refused = set()
    for cut in range(0, end, 256):
        with contextlib.suppress(FormatError):
            entries(archive[:cut])
            continue
        refused.add(cut)
    assert refused == set(range(0, end, 256)) - starts


@pytest.mark.parametrize("at", [0, 100, 124, 150, 156, 300])
def test_a_bad_checksum_is_refused_with_its_offset(at: int) -> None:
    archive = bytearray(header() + header(b"g") + END)
    archive[512 + at] ^= 1
    with pytest.raises(FormatError, match="at byte 512") as caught:
        entries(bytes(archive))
    assert caught.value.offset == 512


def test_a_checksum_of_signed_bytes_is_accepted() -> None:
    block = bytearray(header(b"\xe9\xff", mend=False))
    total = sum(byte - 256 if byte > 127 else byte for byte in block)
    block[148:156] = b"%06o\0 " % total
    assert only(bytes(block)).path == b"\xe9\xff"


def test_a_lone_zero_block_is_refused() -> None:
    with pytest.raises(FormatError, match="lone zero block, at byte 512"):
        entries(header() + bytes(512) + header(b"g") + END)


HUGE = b"\x80" + b"\x7f" * 11
SPARSE_1_0 = ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"))


@pytest.mark.parametrize(
    "archive",
    [
        header(size=HUGE),
        header(size=b"\xff" * 12),
        header(size=b"\x80\0\0\0\0\0\x0f" + bytes(5)) + bytes(512),
        header(kind=b"x", size=HUGE),
        header(kind=b"x", size=b"%o" % (MAX_PAX + 1)) + bytes(2 << 20),
        header(kind=b"L", size=b"%o" % ((64 << 10) + 1)) + bytes(1 << 20),
        header(kind=b"g", size=b"\xff" * 12),
        b"".join(pax((b"k%d" % n, b"v" * 100_000), kind=b"g") for n in range(12)),
        pax((b"size", b"9" * 19)) + header(),
        pax((b"uid", b"-1")) + header(),
        pax((b"gid", b"4294967295")) + header(),
        header(uid=b"\xff" * 8),
        pax((b"GNU.sparse.map", b"0,5,3,5"), (b"GNU.sparse.size", b"100")) + header(size=b"12"),
        pax((b"GNU.sparse.map", b"0,5,90,50"), (b"GNU.sparse.size", b"100")) + header(size=b"67"),
        pax((b"GNU.sparse.map", b"0,5,9"), (b"GNU.sparse.size", b"100")) + header(size=b"5"),
        pax((b"GNU.sparse.map", b"0,5"), (b"GNU.sparse.size", b"9" * 18)) + header(size=b"5"),
        pax((b"GNU.sparse.numbytes", b"5")) + header(size=b"5"),
        pax((b"GNU.sparse.major", b"2")) + header(),
        pax(*SPARSE_1_0) + header(size=b"1000") + padded(b"99999999\n"),
        pax(*SPARSE_1_0) + header(size=b"1000") + padded(b"-1\n"),
        pax(*SPARSE_1_0) + header(size=b"7000") + b"1" * 4096,
        pax(*SPARSE_1_0) + header(size=b"3") + padded(b"5\n0\n"),
        header(kind=b"S", size=b"5", sparse=b"0".ljust(12) + b"9".ljust(12), real=b"100"),
        header(kind=b"S", size=b"0", more=b"\1") + b"\1" * 512,
    ],
)
def test_hostile_headers_are_refused_in_little_memory(archive: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            entries(archive + END)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_sparse_map_without_end_is_refused() -> None:
    pair = b"0".ljust(12) * 2
    first = header(kind=b"S", size=b"0", more=b"\1", sparse=pair * 4)
    blocks = itertools.chain([first], itertools.repeat(pair * 21 + b"\1" + bytes(7)))

    class Endless:
        def read(self, size: int) -> bytes:
            assert size == 512
            return next(blocks)

    with pytest.raises(FormatError, match="more than 131072 runs"):
        list(read_entries(Endless()))
