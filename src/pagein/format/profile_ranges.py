"""The touches of profiles as ranges of files, which can be held against each other.

Everything here works on ranges, never on single blocks: a profile may name files of any size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pagein.format.profile import Profile


class Range(NamedTuple):
    """Bytes ``[start, stop)`` of a file, first touched ``at_ms``; ``rank`` bytes of the same
    profile were touched before."""

    start: int
    stop: int
    rank: int
    at_ms: int


FileKey = tuple[bytes, int]
"""A file of a profile: its path and its size in bytes. Another size is another file."""


def ranges_of(profile: Profile) -> dict[FileKey, list[Range]]:
    """Return the ranges of each file, in ascending order; they do not overlap."""
    keys = [(file.path, file.size) for file in profile.files]
    found: dict[FileKey, list[Range]] = defaultdict(list)
    rank = 0
    for touch in profile.touches:
        stop = touch.offset + touch.length
        found[keys[touch.file]].append(Range(touch.offset, stop, rank, touch.at_ms))
        rank += touch.length
    for ranges in found.values():
        ranges.sort()
    return dict(found)


class FileDifference(NamedTuple):
    """Bytes of one file that only the one, only the other, or both profiles touch."""

    path: bytes
    size: int
    only_a: int
    only_b: int
    both: int


def compare_profiles(a: Profile, b: Profile) -> list[FileDifference]:
    """Hold two profiles against each other; files in the order of their paths."""
    left, right = ranges_of(a), ranges_of(b)
    return list(_differences(left, right))


def _differences(
    left: Mapping[FileKey, list[Range]], right: Mapping[FileKey, list[Range]]
) -> Iterator[FileDifference]:
    for key in sorted({*left, *right}):
        ours, theirs = left.get(key, []), right.get(key, [])
        both = _overlap(ours, theirs)
        yield FileDifference(*key, _total(ours) - both, _total(theirs) - both, both)


def _total(ranges: list[Range]) -> int:
    return sum(one.stop - one.start for one in ranges)


def _overlap(left: list[Range], right: list[Range]) -> int:
    """Count the bytes that are in both of two ascending lists."""
    total = i = j = 0
    while i < len(left) and j < len(right):
        start = max(left[i].start, right[j].start)
        stop = min(left[i].stop, right[j].stop)
        total += max(0, stop - start)
        if left[i].stop < right[j].stop:
            i += 1
        else:
            j += 1
    return total
