"""Writes small OCI images by hand: tarfile, json and hashlib, nothing of ours."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterable
from pathlib import Path

Member = tuple[tarfile.TarInfo, bytes]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def file(path: str, data: bytes = b"", **fields: object) -> Member:
    """A regular file."""
    info = tarfile.TarInfo(path)
    info.size, info.mtime, info.mode = len(data), 1_700_000_000, 0o644
    for name, value in fields.items():
        setattr(info, name, value)
    return info, data


def folder(path: str, **fields: object) -> Member:
    """A folder."""
    return file(path, type=tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def hard_link(path: str, target: str) -> Member:
    """A second name."""
    return file(path, type=tarfile.LNKTYPE, linkname=target)


def symlink(path: str, target: str) -> Member:
    """A symbolic link."""
    return file(path, type=tarfile.SYMTYPE, linkname=target, mode=0o777)


def tar(members: Iterable[Member]) -> bytes:
    """A PAX archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def noise(seed: int | str, size: int) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def words(seed: int | str, size: int) -> bytes:
    """Bytes that do."""
    chance = random.Random(seed)
    line = b" ".join(chance.choice((b"import", b"return", b"sector", b"lazy")) for _ in range(400))
    return (line * (size // len(line) + 1))[:size]


class Layout:
    """An OCI image layout that images are added to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: list[dict[str, object]] = []
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self._write_index()

    def blob(self, data: bytes) -> str:
        """Store a blob; returns its digest."""
        digest = hashlib.sha256(data).hexdigest()
        (self.path / "blobs/sha256" / digest).write_bytes(data)
        return f"sha256:{digest}"

    def image(self, tag: str, layers: list[bytes], *, diff_ids: list[str] | None = None) -> str:
        """Add an image of these tar archives, each stored with gzip; returns its digest."""
        descriptors = []
        for layer in layers:
            packed = gzip.compress(layer, 1, mtime=0)
            descriptors.append(
                {"mediaType": f"{LAYER}+gzip", "digest": self.blob(packed), "size": len(packed)}
            )
        names = diff_ids or [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["/bin/true"]},
                "rootfs": {"type": "layers", "diff_ids": names},
            }
        ).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": self.blob(config),
                    "size": len(config),
                },
                "layers": descriptors,
            }
        ).encode()
        digest = self.blob(manifest)
        self._entries.append(
            {
                "mediaType": MANIFEST,
                "digest": digest,
                "size": len(manifest),
                "annotations": {"org.opencontainers.image.ref.name": tag},
            }
        )
        self._write_index()
        return digest

    def _write_index(self) -> None:
        index = {"schemaVersion": 2, "manifests": self._entries}
        (self.path / "index.json").write_text(json.dumps(index))
