"""One small image with programs, odd files and data, pushed to a real registry by skopeo."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_rootfs import build_tiny_rootfs

from pagein.testing.layer_corpus import (
    Item,
    directory,
    file,
    hard_link,
    symlink,
    tar_layer,
    whiteout,
)

SECTOR = 256 << 10
BIG = random.Random("big").randbytes(3 << 20)
"""``/data/big``: twelve sectors that do not compress."""
PARTS = {f"part{i}": random.Random(i).randbytes(SECTOR + 100 * i) for i in range(4)}
"""``/data/part0`` and on: files of a sector and a bit."""

CONFIGS: dict[str, dict[str, object]] = {
    "app": {"Cmd": ["sh", "-c", "echo from the image"], "Env": ["PATH=/bin"]},
    "alice": {
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["id -un; pwd; echo $GREETING"],
        "Env": ["PATH=/bin", "GREETING=good day"],
        "WorkingDir": "/home/alice",
        "User": "alice",
    },
}
"""Repositories, and the ``config`` of the image in each; their layers are the same."""


def odd_layer() -> bytes:
    """Every type of entry, and metadata that is easy to lose."""
    return tar_layer(
        directory(b"odd/", mode=0o1777, uid=70_000, gid=80_000),
        file(b"odd/suid", b"s" * 5000, mode=0o6755, uid=7, mtime="-5.25"),
        file(b"odd/xattrs", b"x", xattrs={b"user.colour": b"blue", b"user.empty": b""}),
        file(b"odd/capable", b"c", xattrs={b"security.capability": CAPABILITY}),
        file("odd/n\xe4me ".encode(), b"name", mtime="1234567890.123456789"),
        Item(b"odd/empty"),
        Item(b"odd/fifo", tarfile.FIFOTYPE, mode=0o600),
        Item(b"odd/null", tarfile.CHRTYPE, mode=0o666, device=(1, 3)),
        Item(b"odd/disk", tarfile.BLKTYPE, mode=0o660, gid=6, device=(259, 70_000)),
        symlink(b"odd/link", b"../etc/passwd", uid=3),
        symlink(b"odd/nowhere", b"/" + b"x" * 1000),
        file(b"odd/one", b"linked"),
        hard_link(b"odd/two", b"odd/one"),
        directory(b"odd/deep/"),
        hard_link(b"odd/deep/three", b"odd/one"),
        file(b"odd/removed", b"gone in the next layer"),
    )


CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def data_layer() -> bytes:
    return tar_layer(
        directory(b"data/"),
        file(b"data/big", BIG),
        *(file(f"data/{name}".encode(), data) for name, data in PARTS.items()),
        directory(b"odd/", mode=0o1777, uid=70_000, gid=80_000),
        whiteout(b"odd/removed"),
    )


@dataclass(frozen=True, slots=True)
class NodeImage:
    """Where the image lies: layouts by repository name, and the digest of each."""

    layouts: Path
    digests: dict[str, str]


def write_images(folder: Path) -> NodeImage:
    """Write one OCI layout for each of `CONFIGS` below ``folder``."""
    rootfs = build_tiny_rootfs(folder / "rootfs")
    packed = subprocess.run(
        ["tar", "--format=pax", "--numeric-owner", "--sort=name", "-C", rootfs, "-cf", "-", "."],
        check=True,
        capture_output=True,
    ).stdout
    layers = (packed, odd_layer(), data_layer())
    return NodeImage(
        folder,
        {name: write_layout(folder / name, layers, config) for name, config in CONFIGS.items()},
    )


def write_layout(path: Path, layers: tuple[bytes, ...], config: dict[str, object]) -> str:
    (path / "blobs/sha256").mkdir(parents=True)

    def blob(media_type: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (path / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    image = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {
            "type": "layers",
            "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers],
        },
    }
    oci = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{oci}.manifest.v1+json",
        "config": blob(f"{oci}.config.v1+json", json.dumps(image).encode()),
        "layers": [
            blob(f"{oci}.layer.v1.tar+gzip", gzip.compress(layer, 1, mtime=0)) for layer in layers
        ],
    }
    entry = blob(f"{oci}.manifest.v1+json", json.dumps(manifest).encode())
    entry["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return str(entry["digest"])


def push(image: NodeImage, name: str, target: str) -> None:
    """Copy one of the images to ``HOST/REPOSITORY:TAG`` with skopeo, digest kept."""
    subprocess.run(
        [
            *("skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false"),
            *(f"oci:{image.layouts / name}:v1", f"docker://{target}"),
        ],
        check=True,
        capture_output=True,
    )
