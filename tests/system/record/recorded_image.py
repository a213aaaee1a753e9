"""The image that is recorded, and how a test reads its profile."""

from __future__ import annotations

import json
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node_image import NodeImage, push
from tiny_rootfs import PROGRAMS, build_tiny_rootfs

from pagein.testing.docker_registry import DockerRegistry
from pagein.testing.layer_corpus import directory, file, hard_link, tar_layer

BLOCK = 4096
FILES = {
    "data/big": random.Random("big").randbytes(768 * BLOCK),
    "data/odd": random.Random("odd").randbytes(5 * BLOCK + 100),
    "data/small": b"ten bytes.",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A registry with ``app:v1``, converted, and ``plain:v1``, which is not."""

    registry: DockerRegistry
    image: NodeImage

    @property
    def app(self) -> str:
        return f"{self.registry.host}/app:v1"

    @property
    def plain(self) -> str:
        return f"{self.registry.host}/plain:v1"


def repository(place: Place, name: str) -> str:
    """A repository of its own with the image, so that tests do not see what others pushed."""
    reference = f"{place.registry.host}/{name}:v1"
    push(place.image, "app", reference)
    return reference


def layers(folder: Path) -> tuple[bytes, bytes]:
    """A root with ``dd``, and the files; ``data/twin`` has the bytes of ``data/odd``, and
    ``data/another`` is ``data/small`` under a second name."""
    rootfs = build_tiny_rootfs(folder, (*PROGRAMS, "dd"))
    packed = subprocess.run(
        ["tar", "--format=pax", "--numeric-owner", "--sort=name", "-C", rootfs, "-cf", "-", "."],
        check=True,
        capture_output=True,
    ).stdout
    files = [file(name.encode(), data) for name, data in FILES.items()]
    twin = file(b"data/twin", FILES["data/odd"])
    link = hard_link(b"data/zlink", b"data/small")
    return packed, tar_layer(directory(b"data/"), *files, twin, link)


def dd(name: str, skip: int, count: int) -> str:
    """A command that reads blocks, one at a time."""
    return f"dd if=/{name} of=/dev/null bs={BLOCK} skip={skip} count={count} 2>/dev/null"


def read_json(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text())
    assert isinstance(document, dict)
    return document


def touched_blocks(profile: dict[str, Any], below: str = "data/") -> list[tuple[str, int]]:
    """The blocks of the test's own files, in the order of the profile.

    What the shell and dd themselves are read for comes in between, and is left out.
    """
    names = [one["name"] for one in profile["files"]]
    return [
        (names[number], block)
        for number, offset, length, _ in profile["touches"]
        if names[number].startswith(below)
        for block in range(offset // BLOCK, -(-(offset + length) // BLOCK))
    ]


def touched_length(profile: dict[str, Any], name: str) -> int:
    names = [one["name"] for one in profile["files"]]
    return sum(length for number, _, length, _ in profile["touches"] if names[number] == name)
