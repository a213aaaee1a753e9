"""A plain directory tree as an image of one layer (``dir:ROOTFS``); only read.

The layer is an uncompressed tar archive, made anew each time it is streamed: no copy on disk. Its
digest must be in the manifest before that, so the tree is read twice: once to hash, once to stream.
A tree that changes between the two fails as a damaged blob does.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import stat
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from pagein.errors import FormatError, NotFoundError, UsageError
from pagein.format.media import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from pagein.format.platforms import Platform
from pagein.format.tar import HARDLINK, TarEntry
from pagein.format.tar_write import END, padding, tar_header
from pagein.format.tree import NodeKind
from pagein.store.repository import ManifestBlob
from pagein.store.verified import read_verified, verified_reader
from pagein.types import Buffer, ByteRange, Digest

_PIECE: Final = 1 << 20
_KINDS: Final = {
    stat.S_IFREG: NodeKind.FILE,
    stat.S_IFDIR: NodeKind.DIRECTORY,
    stat.S_IFLNK: NodeKind.SYMLINK,
    stat.S_IFCHR: NodeKind.CHAR_DEVICE,
    stat.S_IFBLK: NodeKind.BLOCK_DEVICE,
    stat.S_IFIFO: NodeKind.FIFO,
}
_HOST_XATTRS: Final = (b"security.selinux", b"security.ima", b"security.evm", b"system.nfs4_acl")
"""Of this machine or its file system, not of the tree; umoci and tar leave them out too."""


class RootfsRepository:
    """One image, whose layer is the tree below ``path``. Sockets are left out, as tar does."""

    def __init__(self, path: Path, platform: Platform | None = None) -> None:
        self._path = path
        self._platform = platform or Platform.local(os.uname().machine)
        self._lock = threading.Lock()
        self._known: tuple[ManifestBlob, bytes, Digest] | None = None

    @property
    def name(self) -> str:
        """``dir:`` and the path."""
        return f"dir:{self._path}"

    def _image(self) -> tuple[ManifestBlob, bytes, Digest]:
        """Return manifest, configuration and layer digest; the first call hashes the tree."""
        with self._lock:
            if self._known is None:
                hasher, size = hashlib.sha256(), 0
                for piece in tar_pieces(self._path):
                    hasher.update(piece)
                    size += len(piece)
                command = ("/bin/sh",) if _has_shell(self._path) else ()
                self._known = _describe(Digest(hasher.hexdigest()), size, self._platform, command)
            return self._known

    def manifest(self, reference: str | Digest, /) -> ManifestBlob:
        """Return the manifest by its digest, or as ``latest``."""
        blob = self._image()[0]
        if reference not in (blob.digest, "latest"):
            raise NotFoundError(f"no image {reference} in {self.name}")
        return blob

    def only_manifest(self) -> ManifestBlob:
        """Return the manifest."""
        return self._image()[0]

    @contextlib.contextmanager
    def _open(self, digest: Digest) -> Iterator[BinaryIO]:
        manifest, config, layer = self._image()
        held = {manifest.digest: manifest.data, Digest.of(config): config}
        if digest in held:
            yield io.BytesIO(held[digest])
            return
        if digest != layer:
            raise NotFoundError(f"no blob {digest} in {self.name}")
        pieces = tar_pieces(self._path)
        with contextlib.closing(pieces):
            yield io.BufferedReader(_PieceStream(pieces), _PIECE)

    def read_blob(self, digest: Digest, /, *, limit: int) -> bytes:
        """Return a whole blob of at most ``limit`` bytes."""
        with self._open(digest) as stream:
            return read_verified(stream, digest, limit=limit, place=self.name)

    @contextlib.contextmanager
    def open_blob(self, digest: Digest, /, *, size: int | None = None) -> Iterator[BinaryIO]:
        """Stream a blob. Raises FormatError at its end if the tree changed since it was hashed."""
        with self._open(digest) as stream:
            yield verified_reader(stream, digest, size)

    def read_range(self, digest: Digest, span: ByteRange, /) -> Buffer:
        """Return exactly ``span.length`` bytes; of the layer, all before them is read too."""
        with self._open(digest) as stream:
            left = span.start
            while left and (piece := stream.read(min(left, _PIECE))):
                left -= len(piece)
            data = stream.read(span.length)
        if len(data) != span.length:
            raise FormatError(f"blob {digest} ends before byte {span.stop}", field="size")
        return data

    def referrers(self, subject: Digest, /, *, artifact_type: str) -> list[Digest]:
        """Return nothing: a directory tree has no place for artifacts."""
        del subject, artifact_type
        return []

    def tags(self) -> Iterator[str]:
        """Yield ``latest``."""
        return iter(("latest",))


class _PieceStream(io.RawIOBase):
    """An iterator of bytes as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        view = memoryview(buffer).cast("B")
        taken = self._left[: len(view)]
        view[: len(taken)] = taken
        self._left = self._left[len(taken) :]
        return len(taken)


def _has_shell(root: Path) -> bool:
    """Say whether the tree has a /bin/sh, whatever it is.

    No link is followed out of the tree: where /bin is one, it is the merged /usr's.
    """
    folder = root / ("usr/bin" if (root / "bin").is_symlink() else "bin")
    return os.path.lexists(folder / "sh")


def _describe(
    layer: Digest, size: int, platform: Platform, command: tuple[str, ...]
) -> tuple[ManifestBlob, bytes, Digest]:
    config = _json(
        {
            "architecture": platform.architecture,
            "os": platform.os,
            **({"variant": platform.variant} if platform.variant else {}),
            "config": {
                **({"Cmd": list(command)} if command else {}),
                "Env": [f"PATH={_SEARCH_PATH}"],
            },
            "rootfs": {"type": "layers", "diff_ids": [str(layer)]},
        }
    )
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": OCI_CONFIG,
            "digest": str(Digest.of(config)),
            "size": len(config),
        },
        "layers": [{"mediaType": OCI_LAYER, "digest": str(layer), "size": size}],
    }
    data = _json(document)
    return ManifestBlob(OCI_MANIFEST, Digest.of(data), data), config, layer


_SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def tar_pieces(root: Path) -> Generator[bytes, None, None]:
    """Yield the tree as a tar archive: in path order, no piece above a little more than 1 MiB.

    The same tree gives the same bytes. Raises FormatError where a file changes while it is read,
    UsageError where one cannot be.
    """
    top = os.fsencode(root)
    if not os.path.isdir(top):  # noqa: PTH112 bytes stay bytes
        raise NotFoundError(f"no directory {root}")
    first_names: dict[tuple[int, int], bytes] = {}
    try:
        for path, status in _walk(top):
            entry = _entry(top, path, status, first_names)
            if entry is None:
                continue
            yield tar_header(entry)
            if entry.kind is NodeKind.FILE and entry.size:
                yield from _content(top + b"/" + path, entry.size)
                yield padding(entry.size)
    except OSError as error:
        raise UsageError(f"cannot read {_shown(error.filename)}: {error.strerror}") from error
    yield END


def _shown(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, (bytes, str)) else "the tree"


def _walk(top: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield (path below top, lstat), each directory before what is in it, names in bytewise order.

    Not recursive: a tree may be deeper than the interpreter's stack.
    """
    stack: list[bytes] = [b""]
    while stack:
        path = stack.pop()
        full = top + b"/" + path if path else top
        status = os.lstat(full) if path else os.stat(full)  # noqa: PTH116 bytes stay bytes
        yield path, status
        if stat.S_ISDIR(status.st_mode):
            names = sorted(os.listdir(full), reverse=True)
            stack.extend(path + b"/" + name if path else name for name in names)


def _entry(
    top: bytes, path: bytes, status: os.stat_result, first_names: dict[tuple[int, int], bytes]
) -> TarEntry | None:
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return None
    if path.rpartition(b"/")[2].startswith(b".wh."):
        raise FormatError(
            f"{os.fsdecode(path)!r} cannot be in an image: its name means a deletion in a layer",
            field="path",
        )
    is_folder = kind is NodeKind.DIRECTORY
    name = (path or b".") + (b"/" if is_folder else b"")
    if not is_folder and status.st_nlink > 1:
        first = first_names.setdefault((status.st_dev, status.st_ino), path)
        if first != path:
            return TarEntry(
                name,
                HARDLINK,
                mode=stat.S_IMODE(status.st_mode),
                uid=status.st_uid,
                gid=status.st_gid,
                mtime_ns=status.st_mtime_ns,
                link_target=first,
            )
    full = top + b"/" + path if path else top
    is_device = kind in (NodeKind.CHAR_DEVICE, NodeKind.BLOCK_DEVICE)
    return TarEntry(
        name,
        kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=status.st_size if kind is NodeKind.FILE else 0,
        link_target=os.readlink(full) if kind is NodeKind.SYMLINK else b"",  # noqa: PTH115
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else (0, 0),
        xattrs=_xattrs(full),
    )


def _xattrs(path: bytes) -> dict[bytes, bytes]:
    try:
        names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)]
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENOSYS):
            return {}
        raise
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in names
        if name not in _HOST_XATTRS
    }


def _content(path: bytes, size: int) -> Iterator[bytes]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        left = size
        while left:
            piece = os.read(descriptor, min(left, _PIECE))
            if not piece:
                raise FormatError(f"{os.fsdecode(path)} was cut short while it was read")
            left -= len(piece)
            yield piece
    finally:
        os.close(descriptor)
