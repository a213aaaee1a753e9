"""Can this machine mount and run images, and if not, what would mend it."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pagein.daemon.paths import Paths
from pagein.errors import RuntimeFailedError
from pagein.runtime.resolve import find_runtime


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``required``: nothing can be mounted without it."""

    name: str
    ok: bool
    detail: str
    mend: str = ""
    required: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def examine(paths: Paths) -> list[Finding]:
    """Look at everything; changes nothing."""
    return [
        _root(),
        _fuse(),
        _file_system("erofs", required=True),
        _file_backed(),
        _file_system("overlay", required=False),
        _loop(),
        _runtime(),
        _state(paths.state, "state folder"),
        _state(paths.run, "run folder"),
    ]


def _root() -> Finding:
    uid = os.geteuid()
    return Finding("root", uid == 0, f"user id {uid}", "run as root: mounting needs CAP_SYS_ADMIN")


def _fuse() -> Finding:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        mend = "modprobe fuse; in a container, pass --device /dev/fuse"
        return Finding("/dev/fuse", ok=False, detail=str(error.strerror), mend=mend)
    return Finding("/dev/fuse", ok=True, detail="can be opened")


def _file_system(name: str, *, required: bool) -> Finding:
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    folder = Path("/lib/modules") / platform.release() / "kernel/fs" / name
    if name in known:
        detail = "in the kernel"
    elif any(folder.glob("*.ko*")):
        detail = "a module, loaded by the first mount"
    else:
        mend = f"modprobe {name}, or a kernel built with it"
        return Finding(name, ok=False, detail="not in this kernel", mend=mend, required=required)
    return Finding(name, ok=True, detail=detail, required=required)


def _file_backed() -> Finding:
    release = platform.release()
    major, minor = (int(part.split("-")[0]) for part in release.split(".")[:2])
    ok = (major, minor) >= (6, 12)
    detail = f"kernel {release}" + ("" if ok else " is older than 6.12; loop devices are used")
    return Finding("EROFS on a file", ok, detail, required=False)


def _loop() -> Finding:
    ok = Path("/dev/loop-control").exists()
    detail = "can be made" if ok else "no /dev/loop-control"
    return Finding("loop devices", ok, detail, "" if ok else "modprobe loop", required=False)


def _runtime() -> Finding:
    try:
        runtime = find_runtime()
    except RuntimeFailedError as error:
        return Finding(
            "runtime", ok=False, detail=str(error), mend=error.hint or "", required=False
        )
    return Finding("runtime", ok=True, detail=str(runtime.program), required=False)


def _state(path: Path, name: str) -> Finding:
    place = path
    while not os.path.exists(place):  # noqa: PTH110 - a folder we may not look into is an answer
        place = place.parent
    ok = os.access(place, os.W_OK)
    free = shutil.disk_usage(place).free
    detail = f"{path}, {free / (1 << 30):.1f} GiB free"
    return Finding(name, ok, detail, f"make {place} writable, or set PAGEIN_ROOT")
