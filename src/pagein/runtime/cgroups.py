"""What the control groups of this machine let a runtime do, and how to start it accordingly.

=========  ================================  ==================================================
hierarchy  /sys/fs/cgroup                    what a runtime is told
=========  ================================  ==================================================
V2         cgroup2                           nothing special
V1         tmpfs, a mount per controller     nothing special
HYBRID     as V1, and a cgroup2 ``unified``  crun refuses it (``drop all controllers from
           that has controllers of its own   cgroupv2``), so it gets a mount namespace without
                                             ``unified``
NONE       nothing there, or read-only       a mount namespace with a hierarchy of its own, no
                                             limits, and errors are ignored
=========  ================================  ==================================================
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from pagein.runtime.resolve import Runtime

_ROOT = "/sys/fs/cgroup"


class Hierarchy(Enum):
    """How control groups are mounted; see the table of this module."""

    V1 = "v1"
    HYBRID = "hybrid"
    V2 = "v2"
    NONE = "none"


def read_hierarchy(mountinfo: str, unified_controllers: str = "") -> Hierarchy:
    """Judge by ``/proc/self/mountinfo`` and ``/sys/fs/cgroup/unified/cgroup.controllers``."""
    usable: dict[str, str] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        before, after = left.split(), right.split()
        if len(before) < 6 or len(after) < 3 or not before[4].startswith(_ROOT):
            continue
        writable = "rw" in before[5].split(",") and "rw" in after[2].split(",")
        # A later line is a later mount, which covers an earlier one at the same place.
        usable[before[4]] = after[0] if writable or after[0] == "tmpfs" else ""
    if usable.get(_ROOT) == "cgroup2":
        return Hierarchy.V2
    if usable.get(_ROOT) != "tmpfs" or usable.get(f"{_ROOT}/devices") != "cgroup":
        return Hierarchy.NONE
    if usable.get(f"{_ROOT}/unified") == "cgroup2" and unified_controllers.strip():
        return Hierarchy.HYBRID
    return Hierarchy.V1


def detect_hierarchy() -> Hierarchy:
    """Look at this machine."""
    try:
        controllers = Path(_ROOT, "unified/cgroup.controllers").read_text()
    except OSError:
        controllers = ""
    return read_hierarchy(Path("/proc/self/mountinfo").read_text(), controllers)


def cgroup_path(hierarchy: Hierarchy, name: str) -> str | None:
    """Return the ``cgroupsPath`` of a container; None where there are no control groups.

    One level: runc and crun remove the group of the container, but not its parents.
    """
    return None if hierarchy is Hierarchy.NONE else f"/pagein-{name}"


def runtime_command(runtime: Runtime, hierarchy: Hierarchy, state: Path) -> list[str]:
    """Return the start of every command line of ``runtime``: global options, no subcommand."""
    program = [str(runtime.program), "--root", str(state)]
    if hierarchy is Hierarchy.NONE:
        if runtime.name == "crun":
            mount = f"mount -t tmpfs pagein {_ROOT}"
            return [*_with_mounts(mount), *program, "--cgroup-manager=disabled"]
        mount = f"mount -t cgroup2 pagein {_ROOT}"
        return [*_with_mounts(mount), *program, "--rootless=true"]
    if hierarchy is Hierarchy.HYBRID and runtime.name == "crun":
        return [*_with_mounts(f"umount -l {_ROOT}/unified"), *program]
    return program


def _with_mounts(change: str) -> list[str]:
    """Return a prefix that changes mounts for the runtime alone, and then becomes the runtime.

    The process keeps its id through both exec calls, so signals reach the runtime itself.
    """
    script = f'{change} && exec "$@"'
    return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh"]
