"""Merged profiles have the bytes of all, once; and reads find their way back to blocks of files."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
from pagein.format.profile_ranges import compare_profiles
from pagein.format.reads import Read
from pagein.format.tree import HOLE, Chunked, Flat, Node, NodeKind, walk
from pagein.testing.trees import BODY_BLOCKS, SECTOR_SIZE, trees
from pagein.types import Digest

BLOCK = 4096
HOT_BLOCKS = SECTOR_SIZE // BLOCK
usual = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

Byte = tuple[bytes, int]
"""A block of a file: path and number."""


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Small files, of which each version has its own size; touches that do not overlap."""
    sizes = {
        name: draw(st.sampled_from([1, BLOCK, 9 * BLOCK, 12 * BLOCK + 7]))
        for name in draw(st.lists(st.sampled_from(["a", "b/c", "d e", "\xe9"]), unique=True))
    }
    blocks = [(name, block) for name, size in sizes.items() for block in range(-(-size // BLOCK))]
    chosen = draw(st.permutations(blocks))[: draw(st.integers(0, 20))]
    names = list(dict.fromkeys(name for name, _ in chosen))
    return Profile(
        recorded=f"2026-01-0{draw(st.integers(1, 3))}T00:00:00Z",
        reference="r",
        source=Digest.of(b""),
        read_ahead_kb=0,
        seconds=draw(st.floats(0, 100)),
        files=tuple(ProfiledFile.of(name.encode(), sizes[name]) for name in names),
        touches=tuple(
            Touch(names.index(name), block * BLOCK, min(BLOCK, sizes[name] - block * BLOCK), number)
            for number, (name, block) in enumerate(chosen)
        ),
    )


def bytes_of(profile: Profile) -> list[tuple[Byte, int]]:
    """Every block that is touched, in order, with the size of its file."""
    return [
        ((file.path, block), file.size)
        for touch in profile.touches
        for file in [profile.files[touch.file]]
        for block in range(touch.offset // BLOCK, -(-(touch.offset + touch.length) // BLOCK))
    ]


@usual
@given(st.lists(profiles(), min_size=1, max_size=4))
def test_a_merged_profile_has_the_bytes_of_all_newest_files_once(some: list[Profile]) -> None:
    merged = merge_profiles(some)
    newest: dict[bytes, tuple[str, int]] = {}
    for profile in some:
        for file in profile.files:
            newest[file.path] = max(newest.get(file.path, ("", 0)), (profile.recorded, file.size))
    wanted = {
        (byte, size)
        for profile in some
        for byte, size in bytes_of(profile)
        if newest[byte[0]][1] == size
    }
    found = bytes_of(merged)
    assert set(found) == wanted
    assert len(found) == len(wanted)
    assert decode_profile(encode_profile(merged)) == merged


@usual
@given(st.lists(profiles(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_arguments_does_not_matter(some: list[Profile], random) -> None:
    merged = merge_profiles(some)
    random.shuffle(some)
    again = merge_profiles([*some, some[0]])
    assert (again.files, again.touches) == (merged.files, merged.touches)


@usual
@given(st.lists(profiles(), min_size=1, max_size=4))
def test_merging_what_is_merged_changes_nothing(some: list[Profile]) -> None:
    merged = merge_profiles(some)
    assert merge_profiles([merged]) == merged
    assert merge_profiles([merged, merged]) == merged


@usual
@given(profiles())
def test_one_profile_keeps_its_order(profile: Profile) -> None:
    assert bytes_of(merge_profiles([profile])) == bytes_of(profile)


@usual
@given(profiles(), profiles())
def test_a_comparison_counts_every_byte(a: Profile, b: Profile) -> None:
    def lengths(profile: Profile) -> dict[tuple[Byte, int], int]:
        return {
            key: min(BLOCK, key[1] - key[0][1] * BLOCK) for key in map(tuple, bytes_of(profile))
        }

    ours, theirs = lengths(a), lengths(b)
    found = compare_profiles(a, b)
    assert sum(one.only_a for one in found) == sum(n for k, n in ours.items() if k not in theirs)
    assert sum(one.only_b for one in found) == sum(n for k, n in theirs.items() if k not in ours)
    assert sum(one.both for one in found) == sum(n for k, n in ours.items() if k in theirs)


def body_blocks(node: Node) -> list[int | None]:
    """Body block of each block of a file, by the definition of `Flat` and `Chunked`."""
    count = -(-node.size // BLOCK)
    match node.layout:
        case Flat(block):
            return [block + index for index in range(count)]
        case Chunked(bits, starts):
            return [
                None if starts[i >> bits] == HOLE else starts[i >> bits] + i % (1 << bits)
                for i in range(count)
            ]
        case None:
            return []


@usual
@given(
    trees(), st.lists(st.tuples(st.integers(0, BODY_BLOCKS - 1), st.integers(1, 40)), max_size=30)
)
def test_every_block_that_was_read_is_found_in_its_first_file(
    root: Node, reads: list[tuple[int, int]]
) -> None:
    owner: dict[int, tuple[bytes, int]] = {}
    for path, node in walk(root):
        if node.kind is NodeKind.FILE:
            for number, block in enumerate(body_blocks(node)):
                if block is not None:
                    owner.setdefault(block, (path, number))
    ordered: dict[int, None] = {}
    for block, count in reads:
        ordered.update(dict.fromkeys(range(block, min(block + count, BODY_BLOCKS))))
    metadata = write_metadata(
        root, sector_size=SECTOR_SIZE, hot_blocks=HOT_BLOCKS, data_blocks=BODY_BLOCKS - HOT_BLOCKS
    )
    files, touches = touched_files(
        [Read(n, block * BLOCK, count * BLOCK) for n, (block, count) in enumerate(reads)],
        ErofsReader(metadata),
    )
    found = [
        (files[touch.file].path, number)
        for touch in touches
        for number in range(touch.offset // BLOCK, -(-(touch.offset + touch.length) // BLOCK))
    ]
    assert found == [owner[block] for block in ordered if block in owner]
