"""A writable overlay on an image's tree."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pagein.device.mount import mount_overlay


def lay_overlay(tree: Path, parent: Path, target: Path) -> None:
    """Mount an overlay at ``target``; what is written lies in ``parent``. Raises DeviceError."""
    upper, work = parent / "upper", parent / "work"
    work.mkdir(mode=0o700, exist_ok=True)
    if not upper.exists():
        upper.mkdir()
        shutil.copystat(tree, upper)
        root = tree.stat()
        os.chown(upper, root.st_uid, root.st_gid)
    mount_overlay(tree, upper, work, target)
