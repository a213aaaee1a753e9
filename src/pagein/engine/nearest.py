"""Which tags of a repository most likely name the version before: guessed from the names alone.

A registry lists tags in order of their names, and tells no ages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_NUMBER: Final = re.compile(r"([0-9]+)")
_OTHERS: Final = "sha256-"
"""How tags begin that hold what refers to an image: lists of referrers, signatures."""


def nearest_tags(tags: Iterable[str], near: str | None) -> list[str]:
    """Return the tags other than ``near``, the likeliest predecessor first.

    Tags that differ from ``near`` in their numbers only come first: those below it, the greatest
    first, then those above it, the least first; numbers count as numbers, so 1.9 is below 1.10.
    All others follow, the greatest first. Tags of referrers and signatures are left out.
    """
    names = sorted({tag for tag in tags if tag != near and not tag.startswith(_OTHERS)}, key=_key)
    alike = [tag for tag in names if near is not None and _shape(tag) == _shape(near)]
    below = [tag for tag in alike if near is not None and _key(tag) < _key(near)]
    above = alike[len(below) :]
    others = [tag for tag in names if tag not in set(alike)]
    return [*reversed(below), *above, *reversed(others)]


def _shape(tag: str) -> str:
    return _NUMBER.sub("0", tag)


def _key(tag: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort numbers as numbers and before text; ``tag`` itself tells 01 from 1."""
    parts = (part for part in _NUMBER.split(tag) if part)
    return [(0, int(p), "") if p[0] in "0123456789" else (1, 0, p) for p in parts], tag
