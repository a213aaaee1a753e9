"""Who still looks at an image that nobody serves any more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LostImage:
    """An image without a server. ``users``: a process each, and where it sees the image."""

    image: str
    users: tuple[tuple[int, str], ...]


def find_lost(trees: Mapping[str, Path]) -> list[LostImage]:
    """Look through all mount namespaces for overlays on these trees."""
    found: dict[str, list[tuple[int, str]]] = {image: [] for image in trees}
    if found:
        for pid, lines in namespaces():
            for line in lines:
                for image, tree in trees.items():
                    if f"{tree}," in line or f"{tree}:" in line or line.endswith(str(tree)):
                        found[image].append((pid, line.split(" ")[4]))
    return [LostImage(image, tuple(users)) for image, users in found.items()]


def is_used(folder: Path) -> bool:
    """Whether any mount in any namespace has its writable layer below a folder."""
    return any(f"={folder}/" in line for _, lines in namespaces() for line in lines)


def namespaces() -> Iterator[tuple[int, list[str]]]:
    """Yield one process of each mount namespace, and the overlays that it sees (proc(5))."""
    seen = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            namespace = (process / "ns/mnt").stat().st_ino
            if namespace in seen:
                continue
            text = (process / "mountinfo").read_text(errors="surrogateescape")
            seen.add(namespace)
            lines = [line for line in text.splitlines() if " - overlay " in line]
            yield int(process.name), lines
