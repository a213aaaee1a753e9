"""Which mounts make up a snapshot, as containerd's own overlayfs snapshotter makes them.

Pure: directories in, mounts out. containerd (mount/mount_linux.go) makes them relative to the
directories' common parent where their options would fill a page, so long chains need no care of
ours beyond short paths; the kernel takes 500 lower directories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pagein.errors import UsageError
from pagein.snapshotter.values import Kind, Mount

MAX_LOWERS = 500
"""``OVL_MAX_STACK`` of the kernel's fs/overlayfs/super.c."""


@dataclass(frozen=True, slots=True)
class OverlayChoices:
    """Options for every overlay here.

    ``index_off``: the kernel knows ``index=``, and a shared lower directory must not be indexed
    (two overlays over one upper would be refused with EBUSY after a crash). ``userxattr``: we are
    in a user namespace, which may not set ``trusted.*``.
    """

    index_off: bool = True
    userxattr: bool = False


def snapshot_mounts(
    kind: Kind, own: Path, lowers: Sequence[Path], choices: OverlayChoices
) -> list[Mount]:
    """Return the mounts of an active snapshot or a view.

    ``own`` is the snapshot's directory (``fs`` and ``work`` lie in it), ``lowers`` are the
    directories below it, nearest first. An overlay has at least one lower directory and, to be
    read only, two; with fewer a bind mount shows the same.
    """
    if len(lowers) > MAX_LOWERS:
        raise UsageError(f"a chain of {len(lowers)} layers; overlayfs takes {MAX_LOWERS}")
    if not lowers:
        return [_bind(own / "fs", "ro" if kind is Kind.VIEW else "rw")]
    if kind is Kind.VIEW and len(lowers) == 1:
        return [_bind(lowers[0], "ro")]
    options = []
    if choices.index_off:
        options.append("index=off")
    if choices.userxattr:
        options.append("userxattr")
    if kind is Kind.ACTIVE:
        options += [f"workdir={_plain(own / 'work')}", f"upperdir={_plain(own / 'fs')}"]
    options.append("lowerdir=" + ":".join(_plain(path) for path in lowers))
    return [Mount("overlay", "overlay", tuple(options))]


def _bind(source: Path, access: str) -> Mount:
    return Mount("bind", str(source), (access, "rbind"))


def _plain(path: Path) -> str:
    text = str(path)
    if any(mark in text for mark in ",:\\"):
        raise UsageError(
            f"cannot lay an overlay over {text!r}: ',', ':' and '\\' part its options",
            hint="choose another PAGEIN_ROOT",
        )
    return text
