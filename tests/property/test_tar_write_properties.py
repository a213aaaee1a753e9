"""Every entry that a tree can give comes back from its header: to our reader, and to tarfile."""

from __future__ import annotations

import io
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from pagein.format.tar import HARDLINK, TarEntry, read_entries
from pagein.format.tar_write import END, padding, tar_header
from pagein.format.tree import NodeKind

names = st.binary(min_size=1, max_size=300).filter(
    lambda name: b"\0" not in name and b"/" not in name
)
paths = st.lists(names, min_size=1, max_size=3).map(b"/".join)
ids = st.integers(0, 2**32 - 2)
times = st.integers(-(2**40), 2**50) | st.integers(-(2**62), 2**62)


@st.composite
def entries(draw: st.DrawFn) -> tuple[TarEntry, bytes]:
    kind = draw(
        st.sampled_from(
            [NodeKind.FILE, NodeKind.DIRECTORY, NodeKind.SYMLINK, HARDLINK, NodeKind.CHAR_DEVICE]
        )
    )
    data = draw(st.binary(max_size=1100)) if kind is NodeKind.FILE else b""
    entry = TarEntry(
        draw(paths),
        kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(ids),
        gid=draw(ids),
        mtime_ns=draw(times),
        size=len(data),
        link_target=draw(paths) if kind in (NodeKind.SYMLINK, HARDLINK) else b"",
        device=(259, 300_000) if kind is NodeKind.CHAR_DEVICE else (0, 0),
        xattrs=draw(
            st.dictionaries(
                # An empty value cannot be told in a PAX archive: there it means "no record".
                st.sampled_from([b"user.a", b"security.b"]),
                st.binary(min_size=1, max_size=600),
            )
        ),
    )
    return entry, data


def archive_of(items: list[tuple[TarEntry, bytes]]) -> bytes:
    return b"".join(tar_header(e) + data + padding(len(data)) for e, data in items) + END


def facts(entry: TarEntry) -> tuple[object, ...]:
    return (
        *(entry.path, entry.kind, entry.mode, entry.uid, entry.gid, entry.mtime_ns),
        *(entry.size, entry.link_target, entry.device, entry.xattrs),
    )


@given(st.lists(entries(), max_size=4))
def test_our_reader_finds_what_was_written(items: list[tuple[TarEntry, bytes]]) -> None:
    found = [
        (facts(entry), b"".join(piece for _, piece in entry.chunks()))
        for entry in read_entries(io.BytesIO(archive_of(items)))
    ]
    assert found == [(facts(entry), data) for entry, data in items]


@given(st.lists(entries(), max_size=4))
def test_tarfile_finds_what_was_written(items: list[tuple[TarEntry, bytes]]) -> None:
    with tarfile.open(
        fileobj=io.BytesIO(archive_of(items)), encoding="utf-8", errors="surrogateescape"
    ) as archive:
        found = archive.getmembers()
        for info, (entry, data) in zip(found, items, strict=True):
            assert info.name.encode("utf-8", "surrogateescape") == entry.path
            assert info.linkname.encode("utf-8", "surrogateescape") == entry.link_target
            assert (info.mode, info.uid, info.gid) == (entry.mode, entry.uid, entry.gid)
            assert info.size == len(data)
            if entry.kind is NodeKind.FILE:
                opened = archive.extractfile(info)
                assert opened is not None
                assert opened.read() == data
