"""The classical way: every layer fetched, unpacked and laid on the disk, before anything starts.

It is what the lazy way is compared with, so nothing in it is slow on purpose: layers are unpacked
while they arrive. An image of 468 MB in 10,760 files took 3.1 s from a warm local layout, `umoci`
9.0 s, on the same two cores.

Rule 1. What a path means is decided by `LayerMerger`, in memory. File bytes go to numbered files in
        a staging folder at once; the tree is made at the end, and they are renamed into it. So
        nothing that an archive says can lead out of the target.
Rule 2. The target is new, and the tree is made with descriptors of folders that we made: no path of
        more than one name is ever given to the kernel.
Rule 3. Owners, then modes, then xattrs, then times: chown(2) clears setuid bits and capabilities,
        and all but utimensat(2) change times.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pagein.build.layer import layer_entries
from pagein.build.report import StageClock
from pagein.errors import CacheError, FormatError
from pagein.format.manifest import Descriptor, ImageManifest, parse_config
from pagein.format.merge import LayerMerger
from pagein.format.tar import TarEntry
from pagein.format.tree import Node, NodeKind, walk
from pagein.store.repository import Progress, Repository, no_progress
from pagein.types import Buffer, Digest

_CONFIG_LIMIT: Final = 4 << 20
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TYPES: Final = {
    NodeKind.CHAR_DEVICE: stat.S_IFCHR,
    NodeKind.BLOCK_DEVICE: stat.S_IFBLK,
    NodeKind.FIFO: stat.S_IFIFO,
    NodeKind.SOCKET: stat.S_IFSOCK,
}


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What lies on the disk now: regular files (hard links once) and their bytes."""

    files: int
    size: int


def unpack(
    source: Repository,
    manifest: ImageManifest,
    target: Path,
    progress: Progress = no_progress,
    *,
    layers: int | None = None,
) -> Unpacked:
    """Fetch all layers and lay their merged tree out in ``target``, which must not exist.

    With ``layers`` only that many, the lowest. Needs root: owners and devices are made as the image
    says. ``progress`` gets stored bytes. Blob digests and diff IDs are checked. Raises FormatError,
    what the repository raises, and CacheError where the disk refuses; nothing is left behind then.
    """
    config = source.read_blob(manifest.config.digest, limit=_CONFIG_LIMIT)
    diff_ids = parse_config(config).diff_ids
    if len(diff_ids) != len(manifest.layers):
        raise FormatError(
            f"the image has {len(manifest.layers)} layers, but its config names {len(diff_ids)}",
            field="diff_ids",
        )
    staging = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        staging.mkdir(0o700)
        target.mkdir(0o700)
        try:
            with _opened(staging) as folder:
                staged = _Staged(folder)
                wanted = list(zip(manifest.layers, diff_ids, strict=True))[:layers]
                for layer, diff_id in wanted:
                    staged.add_layer(source, layer, diff_id, progress)
                with _opened(target) as root:
                    return staged.lay_out(root)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
    except OSError as error:
        raise CacheError(
            f"unpacking to {target}: {error.strerror}", hint="unpacking needs root and disk space"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, _FOLDER)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class _Staged:
    """The tree so far, and the files of the staging folder that hold its bytes."""

    folder: int
    merger: LayerMerger = field(default_factory=LayerMerger)
    names: dict[Node, str] = field(default_factory=dict)

    def add_layer(
        self, source: Repository, layer: Descriptor, diff_id: Digest, progress: Progress
    ) -> None:
        """Merge one layer and write its files."""
        self.merger.begin_layer()
        with (
            source.open_blob(layer.digest, size=layer.size) as blob,
            layer_entries(blob, layer.media_type, diff_id, StageClock(), progress) as entries,
        ):
            for entry in entries:
                node = self.merger.add(entry)
                if node is not None:
                    self._stage(node, entry)
        self.merger.end_layer()

    def _stage(self, node: Node, entry: TarEntry) -> None:
        name = self.names[node] = str(len(self.names))
        descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=self.folder)
        try:
            reached = 0
            for offset, data in entry.chunks():
                if offset < reached:
                    raise FormatError(f"sparse map of {entry.path[:200]!r} goes back")
                reached = offset + len(data)
                _write_at(descriptor, data, offset)
            if reached != node.size:
                os.ftruncate(descriptor, node.size)
            _describe(descriptor, node)
        finally:
            os.close(descriptor)

    def lay_out(self, root: int) -> Unpacked:
        """Make the tree below the open folder ``root``."""
        uses = Counter(node for _, node in walk(self.merger.root))
        _Layout(self.folder, self.names, uses).fill(root, self.merger.root)
        sizes = [node.size for node in self.names if node in uses]
        return Unpacked(len(sizes), sum(sizes))


class _Layout:
    """Makes the merged tree. What has several names is made in the staging folder, then linked."""

    def __init__(self, staging: int, names: dict[Node, str], uses: Counter[Node]) -> None:
        self._staging = staging
        self._names = dict(names)
        self._uses = uses

    def fill(self, root: int, tree: Node) -> None:
        """Make all that is in ``tree`` below ``root``; a folder gets its times when it is full.

        Not recursive: ``open_folders`` is the way down, with what is left to make in each.
        """
        open_folders = [(root, tree, iter(tree.children.items()))]
        try:
            while open_folders:
                folder, node, left = open_folders[-1]
                for name, child in left:
                    if child.is_directory:
                        os.mkdir(name, 0o700, dir_fd=folder)
                        inner = os.open(name, _FOLDER, dir_fd=folder)
                        open_folders.append((inner, child, iter(child.children.items())))
                        break
                    self._place(folder, name, child)
                else:
                    _describe(folder, node)
                    open_folders.pop()
                    if folder != root:
                        os.close(folder)
        finally:
            for folder, _, _ in open_folders[1:]:
                os.close(folder)

    def _place(self, folder: int, name: bytes, node: Node) -> None:
        if self._uses[node] == 1 and node.kind is not NodeKind.FILE:
            _make(folder, name, node)
            return
        staged = self._names.get(node)
        if staged is None:
            staged = self._names[node] = f"other-{len(self._names)}"
            _make(self._staging, staged.encode(), node)
        if self._uses[node] == 1:
            os.rename(staged, name, src_dir_fd=self._staging, dst_dir_fd=folder)
        else:
            os.link(
                staged,
                name,
                src_dir_fd=self._staging,
                dst_dir_fd=folder,
                follow_symlinks=False,
            )


def _make(folder: int, name: bytes, node: Node) -> None:
    """Make a node that is neither folder nor file."""
    if node.kind is NodeKind.SYMLINK:
        os.symlink(node.target, name, dir_fd=folder)
    else:
        os.mknod(name, _TYPES[node.kind] | 0o600, os.makedev(*node.device), dir_fd=folder)
    os.chown(name, node.uid, node.gid, dir_fd=folder, follow_symlinks=False)
    if node.kind is not NodeKind.SYMLINK:
        os.chmod(name, node.mode, dir_fd=folder)
    if node.xattrs:
        # There is no setxattrat(2) before Linux 6.13; the folder's own entry in /proc stands in.
        path = b"/proc/self/fd/%d/%s" % (folder, name)
        for key, value in node.xattrs.items():
            os.setxattr(path, key, value, follow_symlinks=False)
    os.utime(name, ns=(node.mtime_ns, node.mtime_ns), dir_fd=folder, follow_symlinks=False)


def _describe(descriptor: int, node: Node) -> None:
    """Give an open file or folder its node's metadata."""
    os.fchown(descriptor, node.uid, node.gid)
    os.fchmod(descriptor, node.mode)
    for key, value in node.xattrs.items():
        os.setxattr(descriptor, key, value)
    os.utime(descriptor, ns=(node.mtime_ns, node.mtime_ns))


def _write_at(descriptor: int, data: Buffer, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
