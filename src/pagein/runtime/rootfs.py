"""A writable root over a read-only tree: folders and options of an overlay mount.

The mount itself is made by the caller, who has mount(2).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from pagein.errors import RuntimeFailedError, UsageError


@dataclass(frozen=True, slots=True)
class Overlay:
    """What mount(2) of type ``overlay`` needs. ``volatile``: the upper layer is thrown away, so
    nothing is ever synced to disk for it (kernel >= 5.10)."""

    lower: Path
    upper: Path
    work: Path
    volatile: bool = False

    @property
    def options(self) -> str:
        """The ``data`` argument of mount(2), or ``-o`` of mount(8)."""
        text = f"lowerdir={self.lower},upperdir={self.upper},workdir={self.work}"
        return f"{text},volatile" if self.volatile else text


def prepare_overlay(lower: Path, state: Path, *, volatile: bool = False) -> Overlay:
    """Make ``state/upper`` and ``state/work``, or take them up again with what they hold.

    The root directory of the merged tree is the upper one, so a new upper gets mode, owner and
    times of ``lower``. Raises UsageError for a path that overlay options cannot spell, and
    RuntimeFailedError where the folders cannot be made.
    """
    overlay = Overlay(lower, state / "upper", state / "work", volatile)
    for path in (lower, state):
        if not path.is_absolute() or any(mark in str(path) for mark in ',:\\"\n'):
            raise UsageError(
                f"cannot lay an overlay at {str(path)!r}: ',', ':' and '\\' part its options",
                hint="choose another PAGEIN_ROOT",
            )
    try:
        _make_upper(overlay)
    except OSError as error:
        raise RuntimeFailedError(
            f"cannot prepare the writable layer in {state}: {error.strerror}"
        ) from error
    return overlay


def _make_upper(overlay: Overlay) -> None:
    overlay.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        overlay.upper.mkdir(mode=0o700)
    except FileExistsError:
        return
    root = overlay.lower.stat()
    os.chown(overlay.upper, root.st_uid, root.st_gid)
    overlay.upper.chmod(stat.S_IMODE(root.st_mode))
    os.utime(overlay.upper, ns=(root.st_atime_ns, root.st_mtime_ns))
