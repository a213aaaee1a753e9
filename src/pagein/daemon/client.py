"""Mounting, unmounting and status for the command line: by the daemon where there is one.

Where there is none, each mount has a process of its own (`pagein.daemon.serve`). So does one that
the daemon refuses, because it has another configuration than the command was given.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from pagein import __version__
from pagein.daemon import mounts
from pagein.daemon.control import ask
from pagein.daemon.images import FoundImage, Images
from pagein.daemon.journal import Journal
from pagein.daemon.mount_request import MountRequest, fingerprint
from pagein.daemon.mount_server import MountOptions
from pagein.daemon.mounts import MountRecord
from pagein.daemon.paths import Paths
from pagein.daemon.serve import check_root, check_target, serve_mount
from pagein.device.mount import is_mount_point, unmount
from pagein.errors import NotFoundError, RemoteUnavailableError, UsageError

_MOUNT_S: Final = 60.0
_RESTART_S: Final = 15.0
_PAUSE_S: Final = 0.05


def mount_image(
    images: Images,
    found: FoundImage,
    options: MountOptions,
    *,
    passing: bool = False,
    keep_from_server: Sequence[int] = (),
) -> MountRecord:
    """Mount an image; returns once the tree is usable. Raises PageinError.

    ``passing``: it is for a container, and need not come back when the machine does.
    """
    if options.target is not None:
        check_target(options.target)
        options = dataclasses.replace(options, target=options.target.resolve())
    check_root()
    record = _by_daemon(images, found, options, passing=passing)
    return record or serve_mount(images, found, options, keep_from_server=keep_from_server)


def _by_daemon(
    images: Images, found: FoundImage, options: MountOptions, *, passing: bool
) -> MountRecord | None:
    node = images.node
    if not node.paths.control.exists():
        return None
    request = MountRequest(
        id=secrets.token_hex(6),
        version=__version__,
        config=fingerprint(node.config),
        reference=str(found.name),
        artifact=found.artifact.data.decode(),
        target=None if options.target is None else str(options.target),
        backend=options.backend,
        writable=options.writable,
        upper=None if options.upper_parent is None else str(options.upper_parent),
        passing=passing,
    )
    reply = _ask_until_answered(node.paths.control, {"op": "mount"} | msgspec.to_builtins(request))
    return msgspec.convert(reply["record"], MountRecord) if "record" in reply else None


def _ask_until_answered(control: Path, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Ask again where the daemon dies over it: the next one takes the same id for the same mount.

    Where nobody listens from the first, there is no daemon: the answer is empty.
    """
    until = time.monotonic() + _RESTART_S
    asked = False
    while True:
        try:
            return ask(control, request, timeout_s=_MOUNT_S)
        except NotFoundError:
            if not asked:
                return {}
            if time.monotonic() > until:
                raise
        except RemoteUnavailableError:
            asked = True
            if time.monotonic() > until:
                raise
        time.sleep(_PAUSE_S)


def umount(paths: Paths, target: Path, *, force: bool = False) -> None:
    """Unmount what was mounted by either. Raises UsageError or DeviceError."""
    if _umounted_by_daemon(paths, target, force=force):
        return
    if _waits_for_daemon(paths, target):
        unmount(target, lazy=force)  # the next daemon sees that it is gone
        return
    mounts.umount(paths, target, force=force)


def _waits_for_daemon(paths: Paths, target: Path) -> bool:
    """Whether a daemon that does not run now has left a mount."""
    journal = Journal(paths)
    wanted = os.path.realpath(target)
    known = any(one.target == wanted for one in (*journal.mounts, *journal.passing))
    return known and is_mount_point(Path(wanted))


def _umounted_by_daemon(paths: Paths, target: Path, *, force: bool) -> bool:
    if not paths.control.exists():
        return False
    request: dict[str, Any] = {
        "op": "umount",
        "target": os.path.realpath(target),
        "force": force,
    }
    try:
        return bool(ask(paths.control, request)["done"])
    except NotFoundError:
        return False
    except RemoteUnavailableError:  # it died over it, or after it
        return not is_mount_point(Path(request["target"]))


def status(paths: Paths) -> dict[str, Any]:
    """Return every live mount with its figures; and, from a daemon, itself and its images."""
    found: dict[str, Any] = {"mounts": []}
    if paths.control.exists():
        try:
            found = ask(paths.control, {"op": "status"})
        except NotFoundError:
            pass  # it has ended
        except UsageError as error:
            raise RemoteUnavailableError(str(error)) from None
    for folder, record in mounts.live(paths):
        figures = mounts.status(folder)
        if figures is not None:
            found["mounts"].append(msgspec.to_builtins(record) | figures)
    return found
