"""Placement: every file once, aligned, and one change touches about one sector."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.format.sectors import pack_small_files
from pagein.format.tree import HOLE

SECTOR = 256 << 10


@dataclass(frozen=True)
class File:
    size: int
    digest: bytes


def some_file(chance: random.Random, mean_size: int) -> File:
    size = min(SECTOR - 1, 1 + int(chance.expovariate(1 / mean_size)))
    return File(size, chance.randbytes(32))


def sector_names(files: list[File]) -> list[bytes]:
    """What a sector's digest depends on: its files' contents and their places."""
    return [
        hashlib.sha256(
            b"".join(
                offset.to_bytes(4, "little") + file.digest
                for offset, file in zip(packed.offsets, files[packed.first :], strict=False)
            )
        ).digest()
        for packed in pack_small_files(files, SECTOR)
    ]


@given(
    st.lists(
        st.builds(File, st.integers(1, SECTOR - 1), st.binary(min_size=32, max_size=32)),
        max_size=200,
    )
)
def test_every_file_lies_once_aligned_and_inside_its_sector(files: list[File]) -> None:
    following = 0
    for packed in pack_small_files(files, SECTOR):
        assert packed.first == following
        assert packed.offsets[0] == 0
        end = 0
        for file, offset in zip(files[packed.first :], packed.offsets, strict=False):
            assert offset % 4096 == 0
            assert offset >= end
            end = offset + file.size
        assert end <= SECTOR
        following += len(packed.offsets)
    assert following == len(files)


def test_sectors_of_small_files_are_at_least_half_full_on_average() -> None:
    chance = random.Random(7)
    files = [some_file(chance, 9000) for _ in range(5000)]
    used = sum((file.size + 4095) // 4096 * 4096 for file in files)
    assert used / (len(sector_names(files)) * SECTOR) > 0.6


@pytest.mark.parametrize("change", ["insert", "delete", "replace", "grow"])
@pytest.mark.parametrize("mean_size", [3000, 12000, 50000])
def test_one_changed_file_changes_about_one_sector(change: str, mean_size: int) -> None:
    changed = []
    for seed in range(12):
        chance = random.Random(seed)
        files = [some_file(chance, mean_size) for _ in range(1500)]
        at = chance.randrange(len(files))
        after = list(files)
        match change:
            case "insert":
                after.insert(at, some_file(chance, mean_size))
            case "delete":
                del after[at]
            case "replace":
                after[at] = File(files[at].size, chance.randbytes(32))
            case _:
                after[at] = File(min(SECTOR - 1, files[at].size * 2), chance.randbytes(32))
        changed.append(len(set(sector_names(after)) - set(sector_names(files))))
    assert mean(changed) <= 3
    assert sorted(changed)[len(changed) // 2] <= 2
    assert max(changed) <= 16


def test_a_file_of_a_whole_sector_is_not_small() -> None:
    with pytest.raises(ValueError, match="not smaller than a sector"):
        list(pack_small_files([File(SECTOR + 1, b"")], SECTOR))


def test_a_hole_has_no_address_and_takes_no_space() -> None:
    from pagein.format.sectors import holes_as_chunks

    assert holes_as_chunks(b"\1\0\1", 10, SECTOR) == (6, (640, HOLE, 704))
