"""OCI layers to one tree (image-spec layer.md), as ``umoci unpack`` lays them on a disk.

Rule 1. A whiteout removes what lower layers put there, never what its own layer did, whatever the
        order of entries. `_upper` has the names that this layer put or passed through.
Rule 2. A path is cleaned as text first, then its *parents* are resolved as symlinks inside the
        tree; ``..`` stops at the root. So nothing can leave the root, and the last name is never
        followed. A parent that is missing is made: 0755, root's, mtime 0.
Rule 3. A directory over a directory takes its metadata and keeps what is in it. All else replaces,
        with what was below. A replaced inode lives on under its other names.
Rule 4. Directory times are what entries say; adding a child does not touch them.
Rule 5. ``trusted.overlay.*`` xattrs are dropped: an overlay mounted above would take orders from
        them (redirects, opaque directories). ``user.overlay.*`` mean nothing there and stay.
Rule 6. Entries under ``.wh..wh.*`` (aufs housekeeping) are ignored.
"""

from __future__ import annotations

from typing import Final

from pagein.errors import FormatError
from pagein.format.tar import HARDLINK, TarEntry
from pagein.format.tree import Node, NodeKind

MAX_NAME: Final = 255
"""Bytes of one name (linux/limits.h NAME_MAX, EROFS the same)."""

MAX_TARGET: Final = 4095
"""Bytes of a symlink's target (PATH_MAX with its NUL)."""

MAX_LINKS: Final = 255
"""Symlinks followed on the way to one entry, as filepath-securejoin and containerd do."""

MAX_XATTR: Final = 64 << 10
"""Bytes of one xattr value (linux/limits.h XATTR_SIZE_MAX)."""

_WHITEOUT = b".wh."
_AUFS = b".wh..wh."
_OPAQUE = b".wh..wh..opq"
_DROPPED_XATTRS = b"trusted.overlay."
_SYMLINK_MODE: Final = 0o777
_MAX_MAJOR, _MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1  # linux/kdev_t.h new_encode_dev

Found = list[tuple[bytes, Node | None]]


class LayerMerger:
    """The tree so far. For each layer, lowest first: `begin_layer`, `add` in order, `end_layer`.

    After an error the tree is not to be used.
    """

    def __init__(self) -> None:
        self.root = Node(NodeKind.DIRECTORY)
        self._upper: dict[Node, set[bytes]] = {}
        self._only_upper: set[Node] = set()
        self._parents: dict[bytes, Node] = {}

    def begin_layer(self) -> None:
        """Start a layer: all that is in the tree is lower from now on."""
        self._upper.clear()
        self._only_upper.clear()
        self._parents.clear()

    def end_layer(self) -> None:
        """End a layer and let go of what was known about it."""
        self.begin_layer()

    def add(self, entry: TarEntry) -> Node | None:
        """Put one entry in the tree.

        Returns the node of a regular file, for the caller to place its bytes: ``size`` is set,
        ``content`` and ``layout`` are not. Raises FormatError for what no file system could hold
        and for hard links to nothing.
        """
        path = entry.path
        if b"\0" in path:
            raise FormatError(f"NUL in the name {_shown(path)}", field="path")
        if _AUFS in path and _is_aufs(path):
            return None
        head, _, name = path.rstrip(b"/").rpartition(b"/")
        if name in (b"", b".", b".."):
            parts = _clean(path)
            if not parts:
                self._set_root(entry)
                return None
            head, name = b"/".join(parts[:-1]), parts[-1]
        if name.startswith(_WHITEOUT):
            self._whiteout(head, name, path)
            return None
        if len(name) > MAX_NAME:
            raise FormatError(f"name of {len(name)} bytes in {_shown(path)}", field="path")
        parent = self._parents.get(head)
        if parent is None:
            parent = self._open_parent(head, path)
        return self._put(parent, name, entry)

    def _put(self, parent: Node, name: bytes, entry: TarEntry) -> Node | None:
        old = parent.children.get(name)
        self._mark(parent, name)
        if entry.kind is NodeKind.DIRECTORY and old is not None and old.is_directory:
            _describe(old, entry)
            return None
        if old is not None:
            self._remove(parent, name)
        if entry.kind is HARDLINK:
            parent.children[name] = self._link_target(entry)
            self._parents.clear()  # the link may be one to a symlink
            return None
        node = _new_node(entry)
        parent.children[name] = node
        if node.kind is NodeKind.SYMLINK:
            # A path that once led through a missing name could now lead through this one.
            self._parents.clear()
        return node if node.kind is NodeKind.FILE else None

    def _set_root(self, entry: TarEntry) -> None:
        if entry.kind is not NodeKind.DIRECTORY:
            raise FormatError(f"entry {_shown(entry.path)} would replace the root", field="path")
        _describe(self.root, entry)

    def _mark(self, parent: Node, name: bytes) -> None:
        names = self._upper.get(parent)
        if names is None:
            self._upper[parent] = {name}
        else:
            names.add(name)

    def _remove(self, parent: Node, name: bytes) -> None:
        node = parent.children.pop(name)
        if node.kind in (NodeKind.DIRECTORY, NodeKind.SYMLINK):
            self._parents.clear()

    def _whiteout(self, head: bytes, name: bytes, path: bytes) -> None:
        found = self._resolve(_clean(head), path)
        directory = found[-1][1] if found else self.root
        if directory is None or not directory.is_directory:
            return
        if name == _OPAQUE:
            self._prune(directory)
            return
        target = name[len(_WHITEOUT) :]
        if target in (b"", b".", b".."):
            raise FormatError(f"whiteout of no name: {_shown(path)}", field="path")
        node = directory.children.get(target)
        if node is None:
            return
        if target not in self._upper.get(directory, ()):
            self._remove(directory, target)
        elif node.is_directory:
            self._prune(node)

    def _prune(self, directory: Node) -> None:
        """Remove all that lower layers put below ``directory``."""
        pending = [directory]
        while pending:
            node = pending.pop()
            if node in self._only_upper:
                continue  # else many whiteouts of one large directory cost their product
            self._only_upper.add(node)
            upper = self._upper.get(node, set())
            for name in [name for name in node.children if name not in upper]:
                self._remove(node, name)
            pending.extend(child for child in node.children.values() if child.is_directory)

    def _open_parent(self, head: bytes, path: bytes) -> Node:
        """Find the directory ``head``, made where it is missing, and count it as this layer's."""
        parent = self.root
        for name, found in self._resolve(_clean(head), path):
            node = found
            if node is None:
                if len(name) > MAX_NAME:
                    raise FormatError(f"name of {len(name)} bytes in {_shown(path)}", field="path")
                node = Node(NodeKind.DIRECTORY)
                parent.children[name] = node
            if not node.is_directory:
                raise FormatError(
                    f"cannot put {_shown(path)}: {_shown(name)} on its way is not a directory",
                    field="path",
                )
            self._mark(parent, name)
            parent = node
        self._parents[head] = parent
        return parent

    def _resolve(self, parts: list[bytes], path: bytes) -> Found:
        """Follow ``parts`` from the root, symlinks too; missing names come with None."""
        pending = parts[::-1]
        found: Found = []
        links = 0
        while pending:
            name = pending.pop()
            if name == b"..":
                del found[-1:]
                continue
            parent = found[-1][1] if found else self.root
            node = parent.children.get(name) if parent is not None else None
            if node is None or node.kind is not NodeKind.SYMLINK:
                found.append((name, node))
                continue
            links += 1
            if links > MAX_LINKS:
                raise FormatError(f"too many symlinks on the way to {_shown(path)}", field="path")
            if node.target.startswith(b"/"):
                found.clear()
            pending += [p for p in reversed(node.target.split(b"/")) if p not in (b"", b".")]
        return found

    def _link_target(self, entry: TarEntry) -> Node:
        what = f"hard link {_shown(entry.path)} to {_shown(entry.link_target)}"
        parts = _clean(entry.link_target)
        node: Node | None = self.root
        if parts:
            found = self._resolve(parts[:-1], entry.path)
            parent = found[-1][1] if found else self.root
            node = parent.children.get(parts[-1]) if parent is not None else None
        if node is None:
            raise FormatError(f"{what}: no such file in this layer or below", field="linkname")
        if node.is_directory:
            raise FormatError(f"{what}: that is a directory", field="linkname")
        return node


def _clean(path: bytes) -> list[bytes]:
    """Names of ``path`` from the root; ``..`` takes away the name before it, if there is one."""
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part and part != b".":
            parts.append(part)
    return parts


def _is_aufs(path: bytes) -> bool:
    parts = _clean(path)
    housekeeping = [part for part in parts if part.startswith(_AUFS)]
    return bool(housekeeping) and not (len(housekeeping) == 1 and parts[-1] == _OPAQUE)


def _new_node(entry: TarEntry) -> Node:
    kind = entry.kind
    assert isinstance(kind, NodeKind)
    node = Node(kind)
    _describe(node, entry)
    if kind is NodeKind.FILE:
        node.size = entry.size
    elif kind is NodeKind.SYMLINK:
        target = entry.link_target
        if not target or len(target) > MAX_TARGET or b"\0" in target:
            raise FormatError(
                f"symlink {_shown(entry.path)} to {len(target)} bytes: {_shown(target)}",
                field="linkname",
            )
        node.target = target
        node.mode = _SYMLINK_MODE
    elif kind in (NodeKind.CHAR_DEVICE, NodeKind.BLOCK_DEVICE):
        major, minor = entry.device
        if not (0 <= major <= _MAX_MAJOR and 0 <= minor <= _MAX_MINOR):
            raise FormatError(
                f"device {_shown(entry.path)} has number {major}:{minor}", field="device"
            )
        node.device = entry.device
    return node


def _describe(node: Node, entry: TarEntry) -> None:
    """Give ``node`` the entry's metadata, all of it: xattrs of before are gone."""
    node.mode = entry.mode
    node.uid = entry.uid
    node.gid = entry.gid
    node.mtime_ns = entry.mtime_ns
    node.xattrs = _kept_xattrs(entry) if entry.xattrs else {}


def _kept_xattrs(entry: TarEntry) -> dict[bytes, bytes]:
    kept: dict[bytes, bytes] = {}
    for name, value in entry.xattrs.items():
        if not name or len(name) > MAX_NAME or b"\0" in name or len(value) > MAX_XATTR:
            raise FormatError(
                f"xattr {_shown(name)} of {_shown(entry.path)} is out of bounds", field="xattr"
            )
        if not name.startswith(_DROPPED_XATTRS):
            kept[name] = value
    return kept


def _shown(name: bytes) -> str:
    """A name for a message: printable, and short."""
    text = repr(name)[1:]
    return text if len(text) <= 200 else text[:200] + "..."
