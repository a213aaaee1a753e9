"""Snapshots for a test: made with names of their own, mounted, filled, and removed at the end."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import grpc
import pytest

from pagein.snapshotter.values import Mount
from pagein.testing.snapshotter_client import SnapshotterClient, mounted

Fill = Callable[[Path], None]


@contextlib.contextmanager
def refused(*codes: grpc.StatusCode) -> Iterator[None]:
    """Expect a call to fail with one of these status codes."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert caught.value.code() in codes, caught.value


class Stack:
    """Snapshots of one test. `close` removes what is left, leaf by leaf."""

    def __init__(self, client: SnapshotterClient, folder: Path) -> None:
        self.client = client
        self._folder = folder
        self._prefix = secrets.token_hex(4)
        self._made: list[str] = []

    def name(self, word: str) -> str:
        """Return a name that no other test uses, and remember it for the end."""
        full = f"{self._prefix}-{word}"
        if full not in self._made:
            self._made.append(full)
        return full

    def layer(
        self,
        word: str,
        fill: Fill,
        parent: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> str:
        """Prepare, mount, fill and commit; return the name."""
        key, name = self.name(f"{word}-active"), self.name(word)
        mounts = self.client.prepare(key, parent)
        if fill is not nothing:
            with self.mounted(mounts) as root:
                fill(root)
        self.client.commit(name, key, labels)
        return name

    @contextlib.contextmanager
    def mounted(self, mounts: list[Mount]) -> Iterator[Path]:
        """Make mounts somewhere."""
        target = self._folder / secrets.token_hex(4)
        with mounted(mounts, target) as root:
            yield root
        target.rmdir()

    @contextlib.contextmanager
    def viewed(self, parent: str) -> Iterator[Path]:
        """Look at a committed snapshot."""
        key = self.name(f"view-{secrets.token_hex(3)}")
        with self.mounted(self.client.view(key, parent)) as root:
            yield root
        self.client.remove(key)

    def close(self) -> None:
        """Remove what is left; AssertionError where something cannot be."""
        left = list(self._made)
        while left:
            before = len(left)
            for name in reversed(list(left)):
                try:
                    self.client.remove(name)
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.NOT_FOUND:
                        continue
                left.remove(name)
            assert len(left) < before, f"cannot remove {left}"


def nothing(_: Path) -> None:
    """Leave a layer empty."""


def writes(path: str, text: str) -> Fill:
    """Make a layer with one file."""

    def fill(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)

    return fill


def writes_all(*paths: str) -> Fill:
    """Make a layer with several small files."""

    def fill(root: Path) -> None:
        for path in paths:
            writes(path, "x")(root)

    return fill
