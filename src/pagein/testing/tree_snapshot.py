"""What a tree looks like to a user, from a disk or from nodes, in one comparable form.

A snapshot maps each path (root ``b""``) to a `Seen`. Hard links show as ``names``: all paths of
the inode, which says more than its link count.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pagein.format.tree import Node, NodeKind, walk


@dataclass(frozen=True, slots=True)
class Seen:
    """One path. ``content`` is a file's SHA-256 or a symlink's target."""

    type: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    device: tuple[int, int]
    names: tuple[bytes, ...]
    xattrs: tuple[tuple[bytes, bytes], ...]
    content: bytes


_TYPES: Final = {
    NodeKind.FILE: stat.S_IFREG,
    NodeKind.DIRECTORY: stat.S_IFDIR,
    NodeKind.CHAR_DEVICE: stat.S_IFCHR,
    NodeKind.BLOCK_DEVICE: stat.S_IFBLK,
    NodeKind.FIFO: stat.S_IFIFO,
    NodeKind.SOCKET: stat.S_IFSOCK,
    NodeKind.SYMLINK: stat.S_IFLNK,
}


def of_disk(root: str | bytes) -> dict[bytes, Seen]:
    """Look at every path below ``root``, which stays as it is."""
    top = os.fsencode(root)
    paths = [top]
    for folder, directories, files in os.walk(top):
        paths += [folder + b"/" + name for name in directories + files]
    found = {path: os.lstat(path) for path in paths}
    names: dict[tuple[int, int], list[bytes]] = {}
    for path, status in found.items():
        names.setdefault((status.st_dev, status.st_ino), []).append(_below(path, top))
    return {
        _below(path, top): _seen(path, status, tuple(sorted(names[status.st_dev, status.st_ino])))
        for path, status in found.items()
    }


def _below(path: bytes, top: bytes) -> bytes:
    return path[len(top) :].lstrip(b"/")


def _seen(path: bytes, status: os.stat_result, names: tuple[bytes, ...]) -> Seen:
    kind = stat.S_IFMT(status.st_mode)
    is_device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    content = b""
    if kind == stat.S_IFREG:
        with open(path, "rb") as opened:
            content = hashlib.file_digest(opened, "sha256").digest()
    elif kind == stat.S_IFLNK:
        content = os.readlink(path)  # noqa: PTH115 bytes stay bytes
    xattrs = [
        (os.fsencode(name), os.getxattr(path, name, follow_symlinks=False))
        for name in os.listxattr(path, follow_symlinks=False)
    ]
    return Seen(
        type=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=status.st_size if kind == stat.S_IFREG else 0,
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else (0, 0),
        names=names,
        xattrs=tuple(sorted(xattrs)),
        content=content,
    )


def of_nodes(root: Node, contents: Mapping[Node, bytes]) -> dict[bytes, Seen]:
    """Look at every path of a tree; ``contents`` has the SHA-256 of each file's bytes."""
    names: dict[Node, list[bytes]] = {}
    paths = list(walk(root))
    for path, node in paths:
        names.setdefault(node, []).append(path)
    return {
        path: Seen(
            type=_TYPES[node.kind],
            mode=node.mode,
            uid=node.uid,
            gid=node.gid,
            mtime_ns=node.mtime_ns,
            size=node.size,
            device=node.device,
            names=tuple(sorted(names[node])),
            xattrs=tuple(sorted(node.xattrs.items())),
            content=contents[node] if node.kind is NodeKind.FILE else node.target,
        )
        for path, node in paths
    }
