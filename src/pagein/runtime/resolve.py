"""Which container runtime this machine has."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pagein.errors import RuntimeFailedError

RUNTIMES = ("runc", "crun")
"""In the order of preference: runc is what Docker and containerd run by default."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """An installed OCI runtime: ``runc`` or ``crun``, and its program."""

    name: str
    program: Path


def find_runtime(
    preferred: str | None = None, which: Callable[[str], str | None] = shutil.which
) -> Runtime:
    """Find ``preferred``, or else the first of RUNTIMES; RuntimeFailedError where there is none."""
    if preferred is not None and preferred not in RUNTIMES:
        raise RuntimeFailedError(
            f"unknown container runtime {preferred!r}", hint=f"one of: {', '.join(RUNTIMES)}"
        )
    for name in (preferred,) if preferred else RUNTIMES:
        found = which(name)
        if found:
            return Runtime(name, Path(found))
    if preferred:
        raise RuntimeFailedError(
            f"{preferred} is not installed", hint=f"apt-get install {preferred}"
        )
    raise RuntimeFailedError("no container runtime found", hint="apt-get install runc   (or crun)")
