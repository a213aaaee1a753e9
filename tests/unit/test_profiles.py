"""Profiles as values: from reads, to JSON and back, merged, and held against each other."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest

from pagein.errors import FormatError, UsageError
from pagein.format.erofs.read import ErofsReader
from pagein.format.erofs.write import write_metadata
from pagein.format.profile import (
    Profile,
    ProfiledFile,
    Touch,
    decode_profile,
    encode_profile,
)
from pagein.format.profile_from_reads import touched_files
from pagein.format.profile_merge import merge_profiles
from pagein.format.profile_ranges import FileDifference, compare_profiles
from pagein.format.reads import Read, pack_read, parse_reads
from pagein.format.tree import HOLE, Chunked, Flat, Node, NodeKind
from pagein.types import Digest

BLOCK = 4096
SECTOR = 256 << 10


def profile(
    touches: list[tuple[str, int, int]],
    *,
    sizes: dict[str, int] | None = None,
    recorded: str = "2026-01-31T12:00:00Z",
    **more: Any,
) -> Profile:
    """A profile of touches given as path, first block, blocks; every file has 100 blocks."""
    names = list(dict.fromkeys(path for path, _, _ in touches))
    return Profile(
        recorded=recorded,
        reference="docker://registry:5000/app:v1",
        source=Digest.of(b"image"),
        read_ahead_kb=more.pop("read_ahead_kb", 0),
        seconds=more.pop("seconds", 2.5),
        files=tuple(
            ProfiledFile.of(name.encode(), (sizes or {}).get(name, 100 * BLOCK)) for name in names
        ),
        touches=tuple(
            Touch(names.index(path), block * BLOCK, count * BLOCK, number)
            for number, (path, block, count) in enumerate(touches)
        ),
        **more,
    )


def ranges(found: Profile) -> list[tuple[str, int, int]]:
    return [
        (found.files[one.file].name, one.offset // BLOCK, one.length // BLOCK)
        for one in found.touches
    ]


def tree(files: dict[bytes, tuple[int, Flat | Chunked]], *, hot: int = 0) -> ErofsReader:
    root = Node(NodeKind.DIRECTORY)
    for name, (size, layout) in files.items():
        root.children[name] = Node(NodeKind.FILE, size=size, layout=layout)
    data = 4 * SECTOR // BLOCK
    return ErofsReader(write_metadata(root, sector_size=SECTOR, hot_blocks=hot, data_blocks=data))


def at(second: float, block: int, blocks: int = 1) -> Read:
    return Read(second, block * BLOCK, blocks * BLOCK)


def test_reads_are_handed_on_as_they_were():
    reads = [Read(1.5, 0, 4096), Read(2.25, 1 << 40, 1 << 20)]
    assert parse_reads(b"".join(pack_read(*read) for read in reads)) == reads
    with pytest.raises(FormatError, match="no whole number of reads"):
        parse_reads(pack_read(0.0, 0, 4096)[:-1])


def test_reads_become_ranges_of_files_in_order_of_first_touch():
    image = tree({b"a": (10 * BLOCK, Flat(0)), b"b": (2 * BLOCK + 5, Flat(20))})
    files, touches = touched_files(
        [at(7.0, 4, 2), at(7.5, 20, 3), at(8.0, 5, 2), at(8.25, 0), at(9.0, 4, 6)], image
    )
    assert files == (ProfiledFile("a", 10 * BLOCK), ProfiledFile("b", 2 * BLOCK + 5))
    assert touches == (
        Touch(0, 4 * BLOCK, 2 * BLOCK, 0),
        Touch(1, 0, 2 * BLOCK + 5, 500),
        Touch(0, 6 * BLOCK, BLOCK, 1000),
        Touch(0, 0, BLOCK, 1250),
        Touch(0, 7 * BLOCK, 3 * BLOCK, 2000),
    )


def test_what_belongs_to_no_file_is_left_out():
    image = tree({b"a": (BLOCK + 1, Flat(10))})
    files, touches = touched_files([at(0, 0, 200)], image)
    assert [file.path for file in files] == [b"a"]
    assert touches == (Touch(0, 0, BLOCK + 1, 0),)
    assert touched_files([at(0, 30)], image) == ((), ())
    assert touched_files([], image) == ((), ())


def test_a_block_that_files_share_is_the_first_paths_and_a_file_has_its_first_name():
    image_root = Node(NodeKind.DIRECTORY)
    linked = Node(NodeKind.FILE, size=BLOCK, layout=Flat(5))
    image_root.children = {
        b"z": Node(NodeKind.FILE, size=2 * BLOCK, layout=Flat(0)),
        b"m": Node(NodeKind.FILE, size=2 * BLOCK, layout=Flat(0)),
        b"link2": linked,
        b"link1": linked,
    }
    image = ErofsReader(
        write_metadata(image_root, sector_size=SECTOR, hot_blocks=0, data_blocks=64)
    )
    files, touches = touched_files([at(0, 5), at(1, 1), at(2, 0)], image)
    assert [file.path for file in files] == [b"link1", b"m"]
    assert [(one.file, one.offset) for one in touches] == [(0, 0), (1, BLOCK), (1, 0)]


def test_copies_in_a_hot_region_are_the_blocks_of_their_file():
    hot = SECTOR // BLOCK
    # Blocks 1 and 4 of the file have copies in the hot region: body blocks 9 and 3.
    blocks = (hot, 9, hot + 2, HOLE, 3)
    image = tree({b"f": (5 * BLOCK, Chunked(0, blocks)), b"g": (BLOCK, Flat(hot + 1))}, hot=hot)
    files, touches = touched_files([at(0, 9), at(1, 3), at(2, hot, 3)], image)
    assert [file.path for file in files] == [b"f", b"g"]
    # Body block hot + 1, whose copy is the one that f uses, is g's.
    assert [(one.file, one.offset // BLOCK) for one in touches] == [
        (0, 1), (0, 4), (0, 0), (1, 0), (0, 2),
    ]  # fmt: skip


def test_two_threads_may_note_reads_out_of_order():
    image = tree({b"a": (10 * BLOCK, Flat(0))})
    _, touches = touched_files([at(2.0, 3), at(1.0, 5)], image)
    assert touches == (Touch(0, 5 * BLOCK, BLOCK, 0), Touch(0, 3 * BLOCK, BLOCK, 1000))


def test_a_large_start_takes_little_time():
    """The start of a 6 GB image: 55,000 reads of 45,000 files; a hot one is in pieces."""
    root = Node(NodeKind.DIRECTORY)
    for number in range(45_000):
        folder = root.children.setdefault(b"%03d" % (number % 300), Node(NodeKind.DIRECTORY))
        folder.children[b"%05d" % number] = Node(
            NodeKind.FILE, size=20 * BLOCK, layout=Flat(number * 20)
        )
    scattered = tuple(900_000 + (number * 7919) % 100_000 for number in range(100_000))
    big = Node(NodeKind.FILE, size=len(scattered) * BLOCK, layout=Chunked(0, scattered))
    root.children[b"big"] = big
    metadata = write_metadata(root, sector_size=SECTOR, hot_blocks=0, data_blocks=1_000_000)
    reads = [at(number / 1000, (number * 7919) % 1_000_000) for number in range(55_000)]
    began = time.process_time()
    files, touches = touched_files(reads, ErofsReader(metadata))
    seconds = time.process_time() - began
    assert sum(touch.length for touch in touches) == len({read.offset for read in reads}) * BLOCK
    assert len(files) > 10_000
    assert seconds < 4, "0.6 s where it was written"


def test_a_profile_survives_json():
    said = profile([("etc/passwd", 0, 1), ("usr/lib/n\xe4me %", 3, 2)], command=("sh", "-c", "x"))
    data = encode_profile(said)
    assert decode_profile(data) == said
    assert json.loads(data)["files"][1]["name"] == "usr/lib/n%C3%A4me %25"
    assert json.loads(data)["touches"] == [[0, 0, 4096, 0], [1, 12288, 8192, 1]]


GOOD = json.loads(encode_profile(profile([("a", 0, 1), ("b", 4, 2)])))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": 2}, "version 2; this pagein reads version 1"),
        ({"more": 1}, "unknown field"),
        ({"source": "sha256:zz"}, "not a sha256 digest"),
        ({"recorded": "yesterday"}, "time of recording"),
        ({"recorded": "2026-01-31T12:00:00+01:00"}, "time of recording"),
        ({"seconds": -1}, "a recording of -1"),
        ({"seconds": 1e30}, r"a recording of 1e\+30"),
        ({"read_ahead_kb": -4}, "a read-ahead of -4"),
        ({"read_ahead_kb": 1 << 40}, "a read-ahead of"),
        ({"files": [{"name": "a", "size": 409600}] * 2}, "listed twice"),
        ({"files": [{"name": "a", "size": 0}, {"name": "b", "size": 409600}]}, "without content"),
        ({"files": [{"name": "", "size": 409600}]}, "not encoded"),
        ({"files": [{"name": "%61", "size": 409600}]}, "not encoded"),
        ({"files": [{"name": "\u202e", "size": 409600}]}, "not encoded"),
        ({"files": [{"name": "a\x1b[2J", "size": 409600}]}, "not encoded"),
        ({"files": [{"name": "a", "size": 1 << 63}]}, "not a profile|without content"),
        ({"touches": [[2, 0, 4096, 0]]}, "a touch of file 2 of 2"),
        ({"touches": [[-1, 0, 4096, 0]]}, "a touch of file -1"),
        ({"touches": [[0, -4096, 4096, 0]]}, "4096 bytes at -4096"),
        ({"touches": [[0, 0, 0, 0]]}, "0 bytes at 0"),
        ({"touches": [[0, 409600, 4096, 0]]}, "4096 bytes at 409600 of a file of 409600"),
        ({"touches": [[0, 0, 1 << 62, 0]]}, "of a file of"),
        ({"touches": [[0, 0, 1 << 70, 0]]}, "not a profile|of a file of"),
        ({"touches": [[0, 100, 4096, 0]]}, "no whole blocks"),
        ({"touches": [[0, 0, 100, 0]]}, "no whole blocks"),
        ({"touches": [[0, 0, 4096, -1]]}, "a touch after -1 ms"),
        ({"touches": [[0, 0, 8192, 0], [0, 4096, 4096, 1]]}, "byte 4096 of file 0 is touched"),
        ({"touches": [[0, 0, 4096]]}, "not a profile"),
        ({"touches": [[0, 0.5, 4096, 0]]}, "not a profile"),
    ],
)  # fmt: skip
def test_a_hostile_profile_is_refused(change: dict[str, Any], why: str):
    with pytest.raises(FormatError, match=why):
        decode_profile(json.dumps(GOOD | change).encode())


def test_what_is_no_json_or_too_large_is_refused():
    for data in (b"", b"[" * 100_000, b"\xff\xfe{}", b"null", b'{"version": 1}'):
        with pytest.raises(FormatError, match="not a profile"):
            decode_profile(data)
    with pytest.raises(FormatError, match="too large"):
        decode_profile(b" " * ((64 << 20) + 1))


def test_merging_is_the_union_in_order_of_the_earliest_place():
    a = profile([("x", 0, 4), ("y", 0, 2), ("late", 0, 1)])
    b = profile([("late", 0, 1), ("x", 2, 4)])
    merged = merge_profiles([a, b])
    # By blocks before it: x 0-3 and late at 0, x 4-5 at 1 in b, y at 4 in a.
    assert ranges(merged) == [("late", 0, 1), ("x", 0, 6), ("y", 0, 2)]
    assert merge_profiles([b, a]) == merged
    assert merged.seconds == 2.5


def test_a_range_comes_where_the_start_that_needs_it_first_has_it():
    a = profile([("first", 0, 10), ("rare", 0, 1)])
    b = profile([("other", 0, 1), ("rare", 0, 3)])
    assert ranges(merge_profiles([a, b])) == [("first", 0, 10), ("other", 0, 1), ("rare", 0, 3)]


def test_the_newest_profile_says_what_a_file_is():
    old = profile([("a", 0, 2), ("lib", 5, 5)], recorded="2026-01-01T00:00:00Z", command=("old",))
    new = profile(
        [("lib", 0, 1), ("a", 1, 2)], sizes={"lib": 50 * BLOCK}, recorded="2026-01-02T00:00:00Z",
        command=("new",),
    )  # fmt: skip
    merged = merge_profiles([new, old])
    assert ranges(merged) == [("a", 0, 2), ("lib", 0, 1), ("a", 2, 1)]
    assert {file.name: file.size for file in merged.files} == {"lib": 50 * BLOCK, "a": 100 * BLOCK}
    assert (merged.command, merged.recorded) == (("new",), "2026-01-02T00:00:00Z")


def test_profiles_with_other_read_aheads_do_not_merge():
    with pytest.raises(UsageError, match="read-aheads of 0 and 128 KiB"):
        merge_profiles([profile([("a", 0, 1)]), profile([("a", 0, 1)], read_ahead_kb=128)])
    with pytest.raises(UsageError, match="no profile"):
        merge_profiles([])


def test_files_of_any_size_cost_no_memory():
    sizes = {"a": (1 << 63) - BLOCK}
    huge = profile([("a", 0, (1 << 51) - 1)], sizes=sizes)
    part = profile([("a", 1 << 40, 1)], sizes=sizes)
    assert merge_profiles([huge, part]).touched == huge.touched
    assert compare_profiles(huge, part)[0].both == BLOCK


def test_profiles_are_compared_by_file():
    a = profile([("x", 0, 4), ("y", 0, 1), ("same", 1, 1)], sizes={"y": 10 * BLOCK})
    b = profile([("x", 3, 3), ("y", 0, 1), ("same", 1, 1), ("x", 10, 1)])
    found = [
        (one[0], one[1] // BLOCK, *(n // BLOCK for n in one[2:])) for one in compare_profiles(a, b)
    ]
    assert found == [
        (b"same", 100, 0, 0, 1), (b"x", 100, 3, 3, 1), (b"y", 10, 1, 0, 0), (b"y", 100, 0, 1, 0),
    ]  # fmt: skip
    assert isinstance(compare_profiles(a, b)[0], FileDifference)


def test_a_touch_is_four_numbers():
    assert msgspec.json.encode(Touch(1, 4096, 8192, 3)) == b"[1,4096,8192,3]"
