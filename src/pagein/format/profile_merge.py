"""One profile from several: what any of the starts touched."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from pagein.errors import UsageError
from pagein.format.profile import Profile, ProfiledFile, Touch
from pagein.format.profile_ranges import FileKey, Range, ranges_of


def merge_profiles(profiles: Sequence[Profile]) -> Profile:
    """Return the union of profiles; the order of the arguments does not matter.

    Bytes take the earliest place of the touches that they are in, measured in what a start had
    touched before. In bytes, because times of a slow registry and of a fast one do not compare; the
    earliest, because the start that needs them there would wait for them, while the others are held
    up by no more than their length. Where a file has the same path and another size, the newest
    profile counts, and the ranges of older ones are dropped: they are of a file that was replaced.
    When, what and of which image are the newest profile's, too.

    Raises UsageError for none, and for recordings with different read-aheads: kernels with
    another one ask for other ranges.
    """
    if not profiles:
        raise UsageError("no profile to merge")
    ahead = sorted({profile.read_ahead_kb for profile in profiles})
    if len(ahead) > 1:
        raise UsageError(
            f"the profiles were recorded with read-aheads of {' and '.join(map(str, ahead))} KiB",
            hint="record again with one --read-ahead; the mount of a start can only have one",
        )
    newest = max(profiles, key=_age)
    files, touches = _united(profiles)
    return Profile(
        recorded=newest.recorded,
        reference=newest.reference,
        source=newest.source,
        command=newest.command,
        read_ahead_kb=ahead[0],
        seconds=max(profile.seconds for profile in profiles),
        files=files,
        touches=touches,
    )


def _age(profile: Profile) -> tuple[str, str, str, tuple[str, ...]]:
    when = profile.recorded.removesuffix("Z")
    return when, profile.reference, profile.source.hex, profile.command


def _united(
    profiles: Sequence[Profile],
) -> tuple[tuple[ProfiledFile, ...], tuple[Touch, ...]]:
    ranges: dict[FileKey, list[Range]] = defaultdict(list)
    for profile in profiles:
        for key, some in ranges_of(profile).items():
            ranges[key] += some
    sizes = _sizes(profiles)
    pieces = [
        (piece.rank, piece.at_ms, path, piece.start, piece.stop)
        for (path, size), some in ranges.items()
        if sizes[path] == size
        for piece in _pieces(some)
    ]
    numbers: dict[bytes, int] = {}
    touches: list[Touch] = []
    for _, at_ms, path, start, stop in sorted(pieces):
        number = numbers.setdefault(path, len(numbers))
        last = touches[-1] if touches else None
        if last and last.file == number and last.offset + last.length == start:
            touches[-1] = Touch(number, last.offset, stop - last.offset, last.at_ms)
        else:
            touches.append(Touch(number, start, stop - start, at_ms))
    return tuple(ProfiledFile.of(path, sizes[path]) for path in numbers), tuple(touches)


def _sizes(profiles: Sequence[Profile]) -> dict[bytes, int]:
    """Return the size of each path in the newest profile that has it; of equally new ones the
    largest."""
    found: dict[bytes, tuple[str, int]] = {}
    for profile in profiles:
        when = profile.recorded.removesuffix("Z")
        for file in profile.files:
            found[file.path] = max(found.get(file.path, ("", 0)), (when, file.size))
    return {path: size for path, (_, size) in found.items()}


def _pieces(ranges: list[Range]) -> Iterator[Range]:
    """Cut ranges, which may overlap, at each other's ends; yield every byte once, where it comes
    earliest."""
    bounds = sorted({bound for one in ranges for bound in (one.start, one.stop)})
    waiting = sorted(ranges, reverse=True)
    active: list[tuple[int, int, int]] = []  # rank, at_ms, stop: the earliest is first
    for start, stop in pairwise(bounds):
        while waiting and waiting[-1].start == start:
            one = waiting.pop()
            heapq.heappush(active, (one.rank, one.at_ms, one.stop))
        while active and active[0][2] <= start:
            heapq.heappop(active)
        if active:
            yield Range(start, stop, *active[0][:2])
