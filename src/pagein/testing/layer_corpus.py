"""Small images, one an edge case each, written with Python's `tarfile` and not with our own code.

`CORPUS` has them by name; `write_oci_layout` puts one where umoci, skopeo and pagein can read it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zstandard

MTIME: Final = 1_600_000_000
"""The time of entries that do not say, in seconds."""

LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class Item:
    """One tar entry to be written. Names are bytes; ``mtime`` is decimal text, exact."""

    path: bytes
    kind: bytes = tarfile.REGTYPE
    data: bytes = b""
    target: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: str = str(MTIME)
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


def file(path: bytes, data: bytes = b"", **more: object) -> Item:
    """Describe a regular file."""
    return Item(path, data=data or path, **more)  # type: ignore[arg-type]


def directory(path: bytes, **more: object) -> Item:
    """Describe a directory."""
    return Item(path, tarfile.DIRTYPE, **{"mode": 0o755, **more})  # type: ignore[arg-type]


def symlink(path: bytes, target: bytes, **more: object) -> Item:
    """Describe a symlink."""
    return Item(path, tarfile.SYMTYPE, target=target, **more)  # type: ignore[arg-type]


def hard_link(path: bytes, target: bytes) -> Item:
    """Describe a hard link."""
    return Item(path, tarfile.LNKTYPE, target=target)


def whiteout(path: bytes) -> Item:
    """Describe the whiteout of ``path``."""
    head, slash, name = path.rpartition(b"/")
    return Item(head + slash + b".wh." + name)


def opaque(path: bytes) -> Item:
    """Describe the opaque marker of the directory ``path``."""
    return Item((path + b"/" if path else b"") + b".wh..wh..opq")


def tar_layer(*items: Item, format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002 tarfile's word
    """Write a layer with `tarfile`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, encoding="utf-8") as archive:
        for item in items:
            archive.addfile(_tar_info(item, format), io.BytesIO(item.data))
    return out.getvalue()


def _tar_info(item: Item, tar_format: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(_text(item.path))
    info.type, info.linkname = item.kind, _text(item.target)
    info.size = len(item.data) if item.kind in tarfile.REGULAR_TYPES else 0
    info.mode, info.uid, info.gid = item.mode, item.uid, item.gid
    info.devmajor, info.devminor = item.device
    seconds = float(item.mtime)
    info.mtime = int(seconds) if seconds == int(seconds) and seconds >= 0 else seconds
    if tar_format == tarfile.PAX_FORMAT:
        headers = {"SCHILY.xattr." + _text(name): _text(v) for name, v in item.xattrs.items()}
        if str(info.mtime) != item.mtime:
            headers["mtime"] = item.mtime
        info.pax_headers = headers
    return info


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def gzip_members(data: bytes, members: int = 3) -> bytes:
    """Compress as several gzip members and some zero padding, as parallel compressors do."""
    size = len(data) // members + 1
    parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    return b"".join(gzip.compress(part, mtime=0) for part in parts) + bytes(100)


def zstd_frames(data: bytes, frames: int = 3) -> bytes:
    """Compress as several zstd frames with skippable ones between, as zstd:chunked does."""
    size = len(data) // frames + 1
    parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    skippable = (0x184D2A53).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"skip!"
    compress = zstandard.ZstdCompressor(level=1, write_checksum=True).compress
    return skippable.join(compress(part) for part in parts) + skippable


COMPRESSIONS: Final[Mapping[str, tuple[str, Callable[[bytes], bytes]]]] = {
    "plain": ("", bytes),
    "gzip": ("+gzip", lambda data: gzip.compress(data, 1, mtime=0)),
    "gzip-members": ("+gzip", gzip_members),
    "zstd": ("+zstd", zstandard.ZstdCompressor(level=1).compress),
    "zstd-frames": ("+zstd", zstd_frames),
}
"""Ways to store a layer: media type suffix and function, by name."""


def write_oci_layout(
    path: Path, layers: tuple[bytes, ...], *, tag: str = "latest", compression: str = "gzip"
) -> str:
    """Write an OCI layout with one image of these tar ``layers``; returns its manifest digest."""
    suffix, compress = COMPRESSIONS[compression]
    (path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    blobs = [_blob(path, LAYER_TYPE + suffix, compress(layer)) for layer in layers]
    diff_ids = ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": "test"} for _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _blob(path, "application/vnd.oci.image.config.v1+json", _json(config)),
        "layers": blobs,
    }
    entry = _blob(path, str(manifest["mediaType"]), _json(manifest))
    entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (path / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [entry]}))
    (path / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    return str(entry["digest"])


def _blob(path: Path, media_type: str, data: bytes) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    (path / "blobs" / "sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


_BASE = tar_layer(
    directory(b"./", mode=0o755),
    directory(b"etc/"),
    file(b"etc/passwd", b"root:x:0:0::/root:/bin/sh\n"),
    file(b"etc/hosts"),
    directory(b"usr/", mtime="1234567890"),
    directory(b"usr/lib/", mode=0o2755, gid=50),
    file(b"usr/lib/one"),
    file(b"usr/lib/two", mode=0o755),
    directory(b"usr/lib/deep/"),
    file(b"usr/lib/deep/three"),
    symlink(b"lib", b"usr/lib"),
)
_ACL = bytes.fromhex("0200000001000600ffffffff020004000100000004000400ffffffff")
_ACL += bytes.fromhex("10000600ffffffff20000400ffffffff")
_CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")

CORPUS: Final[Mapping[str, tuple[bytes, ...]]] = {
    "base": (_BASE,),
    "empty-layer": (_BASE, tar_layer(), tar_layer()),
    "root-metadata": (_BASE, tar_layer(directory(b"./", mode=0o711, uid=7, mtime="99"))),
    "root-as-slash": (_BASE, tar_layer(directory(b"/", mode=0o700, mtime="98"))),
    "whiteout-file": (_BASE, tar_layer(whiteout(b"etc/hosts"))),
    "whiteout-directory": (_BASE, tar_layer(whiteout(b"usr/lib"))),
    "whiteout-of-nothing": (_BASE, tar_layer(whiteout(b"no/such"), whiteout(b"etc/hosts/x"))),
    "whiteout-symlink": (_BASE, tar_layer(whiteout(b"lib"))),
    "whiteout-through-symlink": (_BASE, tar_layer(whiteout(b"lib/one"))),
    "whiteout-before-file": (
        _BASE,
        tar_layer(whiteout(b"etc/hosts"), file(b"etc/hosts", b"new")),
    ),
    "whiteout-after-file": (
        _BASE,
        tar_layer(file(b"etc/hosts", b"new"), whiteout(b"etc/hosts")),
    ),
    "whiteout-after-child": (
        _BASE,
        tar_layer(file(b"usr/lib/deep/four"), whiteout(b"usr/lib"), file(b"usr/lib/five")),
    ),
    "whiteout-removed-then-linked-dir": (
        _BASE,
        tar_layer(file(b"lib/x"), whiteout(b"lib"), directory(b"lib/"), file(b"lib/y")),
    ),
    "whiteout-looks-like-one": (_BASE, tar_layer(file(b".whale"), file(b"a.wh.b"))),
    "opaque-first": (
        _BASE,
        tar_layer(directory(b"usr/lib/"), opaque(b"usr/lib"), file(b"usr/lib/new")),
    ),
    "opaque-last": (
        _BASE,
        tar_layer(directory(b"usr/lib/"), file(b"usr/lib/new"), opaque(b"usr/lib")),
    ),
    "opaque-above-upper": (_BASE, tar_layer(file(b"usr/lib/deep/new"), opaque(b"usr"))),
    "opaque-root": (_BASE, tar_layer(opaque(b""), file(b"only"))),
    "opaque-through-symlink": (_BASE, tar_layer(opaque(b"lib"))),
    "opaque-nowhere": (_BASE, tar_layer(opaque(b"none"), opaque(b"etc/hosts"))),
    "hard-links": (
        tar_layer(file(b"a"), hard_link(b"b", b"a"), hard_link(b"c", b"./b"), file(b"d")),
    ),
    "hard-link-to-lower": (_BASE, tar_layer(hard_link(b"hosts2", b"/etc/hosts"))),
    "hard-link-through-symlink": (_BASE, tar_layer(hard_link(b"new", b"lib/one"))),
    "hard-link-to-symlink": (_BASE, tar_layer(hard_link(b"lib2", b"lib"))),
    "hard-link-dotdot": (_BASE, tar_layer(hard_link(b"new", b"../../etc/hosts"))),
    "hard-link-target-replaced": (
        tar_layer(file(b"a", b"old"), hard_link(b"b", b"a")),
        tar_layer(file(b"a", b"new")),
    ),
    "hard-link-target-whited-out": (
        tar_layer(file(b"a", b"old"), hard_link(b"b", b"a")),
        tar_layer(whiteout(b"a")),
    ),
    "hard-link-over-file": (_BASE, tar_layer(hard_link(b"etc/hosts", b"etc/passwd"))),
    "hard-link-to-fifo": (
        tar_layer(Item(b"pipe", tarfile.FIFOTYPE), hard_link(b"pipe2", b"pipe")),
    ),
    "file-to-directory": (
        _BASE,
        tar_layer(directory(b"etc/hosts/"), file(b"etc/hosts/x")),
        tar_layer(file(b"etc/hosts", b"back")),
    ),
    "directory-to-file": (_BASE, tar_layer(file(b"usr/lib", b"now a file"))),
    "directory-to-symlink": (_BASE, tar_layer(symlink(b"etc", b"usr"), file(b"etc/x"))),
    "symlink-to-directory": (_BASE, tar_layer(directory(b"lib/"), file(b"lib/x"))),
    "parent-symlink": (_BASE, tar_layer(file(b"lib/new"))),
    "parent-symlink-absolute": (
        tar_layer(symlink(b"l", b"/x/y"), directory(b"x/"), directory(b"x/y/")),
        tar_layer(file(b"l/f")),
    ),
    "parent-symlink-escapes": (
        tar_layer(symlink(b"l", b"../../../x"), directory(b"x/"), file(b"l/f")),
    ),
    "parent-symlink-chain": (
        tar_layer(
            directory(b"r/"), symlink(b"a", b"b"), symlink(b"b", b"./r/../r"), file(b"a/f")
        ),
    ),
    "parent-symlink-dotdot": (
        tar_layer(
            directory(b"r/"), directory(b"r/s/"), symlink(b"l", b"r/s"), file(b"l/../by-text")
        ),
    ),
    "dot-dot": (
        tar_layer(directory(b"etc/"), file(b"../../../etc/passwd"), file(b"etc/../up")),
    ),
    "dots-and-slashes": (
        tar_layer(directory(b"./a//"), file(b"/a/./b"), file(b".//a///c"), file(b"a/d/.")),
    ),
    "duplicates": (
        tar_layer(file(b"a", b"one"), file(b"a", b"two", mode=0o600), symlink(b"s", b"a"))
        + tar_layer(),
    ),
    "duplicates-of-kinds": (
        tar_layer(file(b"a"), directory(b"a/"), file(b"a/b"), symlink(b"a", b"x"), file(b"a")),
    ),
    "directory-metadata": (
        tar_layer(directory(b"d/", xattrs={b"user.old": b"1"}), file(b"d/f")),
        tar_layer(directory(b"d/", mode=0o1777, uid=5, mtime="5", xattrs={b"user.new": b"2"})),
    ),
    "xattrs": (
        tar_layer(
            file(
                b"f",
                xattrs={
                    b"user.binary": bytes(range(256)),
                    b"user.text": b"a=b\n\0=c\n",
                    b"security.capability": _CAPABILITY,
                    b"system.posix_acl_access": _ACL,
                    b"trusted.x": b"y",
                    b"user.overlay.opaque": b"y",
                },
                mode=0o664,
            ),
            directory(b"d", xattrs={b"system.posix_acl_default": _ACL, b"user.d": b"d"}),
        ),
    ),
    "modes": (
        tar_layer(
            file(b"suid", mode=0o4755),
            file(b"sgid", mode=0o2711),
            directory(b"sticky/", mode=0o1777),
            file(b"none", mode=0),
            file(b"type-bits", mode=0o100640),
        ),
    ),
    "owners": (
        tar_layer(
            file(b"big", uid=70000, gid=4_000_000_000),
            symlink(b"link", b"big", uid=12, gid=13),
            directory(b"d/", uid=2_097_152, gid=65536),
        ),
    ),
    "times": (
        tar_layer(
            file(b"ns", mtime="1600000000.123456789"),
            file(b"negative", mtime="-5.25"),
            file(b"negative-small", mtime="-0.000000001"),
            file(b"zero", mtime="0"),
            file(b"long", mtime="1600000000.1234567899999"),
            symlink(b"link", b"x", mtime="1600000001.5"),
            directory(b"d/", mtime="42.000000042"),
            file(b"d/in"),
            file(b"late", mtime="8589934593"),
        ),
    ),
    "devices": (
        tar_layer(
            Item(b"null", tarfile.CHRTYPE, mode=0o666, device=(1, 3)),
            Item(b"sda", tarfile.BLKTYPE, mode=0o660, gid=6, device=(8, 0)),
            Item(b"large", tarfile.CHRTYPE, device=(300, 70000)),
            Item(b"pipe", tarfile.FIFOTYPE, mode=0o622),
        ),
    ),
    "long-names": (
        tar_layer(
            file(b"n" * 255),
            file(b"/".join([b"d" * 200] * 8) + b"/f"),
            symlink(b"link", (b"t" * 200 + b"/") * 20 + b"x" * 75),
        ),
    ),
    "long-names-gnu": (
        tar_layer(
            file(b"n" * 255),
            symlink(b"link", b"t/" * 2000),
            file(b"target" * 30),
            hard_link(b"hard" * 30, b"target" * 30),
            format=tarfile.GNU_FORMAT,
        ),
    ),
    "ustar-prefix": (
        tar_layer(file(b"p" * 100 + b"/" + b"q" * 99), format=tarfile.USTAR_FORMAT),
    ),
    "numbers-gnu": (
        tar_layer(
            file(b"f", uid=3_000_000, gid=2_097_153, mtime="-7"), format=tarfile.GNU_FORMAT
        ),
    ),
    "odd-names": (
        tar_layer(
            file(b"\xff\xfe"), file(b"new\nline"), file(b"sp ace"), file("ü/é".encode()),
            symlink(b"bad\x80", b"\xc3\x28"), file(b"="), file(b"\\x"),
        ),
    ),
    "aufs": (_BASE, tar_layer(file(b".wh..wh.aufs"), file(b"etc/.wh..wh.orph"), file(b"f"))),
    "trailing-garbage": (_BASE + b"garbage" * 100,),
}  # fmt: skip
"""Tar layers, lowest first, by the name of what is odd about them."""
