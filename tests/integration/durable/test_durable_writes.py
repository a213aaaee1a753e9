"""A crash after each step of the durable write leaves the old file or the new one, never half."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pagein.store.atomic import replacing, write_all, write_durably

OLD, NEW = b"old content", b"new content, which is longer"


class PowerCut(BaseException):
    """Not an Exception: nothing may recover from it. After it no call reaches the disk."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    return path


class Steps:
    """Counts the calls that change the disk, and cuts the power before or after one of them."""

    def __init__(self, cut: int, *, after: bool) -> None:
        self.seen: list[str] = []
        self.dead = False
        self._cut, self._after = cut, after

    def watch(self, name: str, call: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            if self.dead:
                raise PowerCut(name)
            self.seen.append(name)
            here = len(self.seen) - 1 == self._cut
            if here and not self._after:
                self.dead = True
                raise PowerCut(name)
            result = call(*arguments, **options)
            if here:
                self.dead = True
                if name == "open":
                    os.close(result)  # a power cut closes everything
                raise PowerCut(name)
            return result

        return step


def install(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open", "write", "fsync"):
        monkeypatch.setattr(os, name, steps.watch(name, getattr(os, name)))
    monkeypatch.setattr(Path, "replace", steps.watch("rename", Path.replace))
    monkeypatch.setattr(Path, "unlink", steps.watch("unlink", Path.unlink))


def test_the_steps_are_write_sync_rename_and_sync_the_folder(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(-1, after=False)
    with monkeypatch.context() as patch:
        install(steps, patch)
        write_durably(path, NEW)
    assert steps.seen == ["open", "write", "fsync", "rename", "open", "fsync"]
    assert path.read_bytes() == NEW


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("cut", range(6))
def test_a_power_cut_at_any_step_leaves_the_old_or_the_new_file(
    cut: int, after: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        install(Steps(cut, after=after), patch)
        with pytest.raises(PowerCut):
            write_durably(path, NEW)
    renamed = cut > 3 or (cut == 3 and after)
    assert path.read_bytes() == (NEW if renamed else OLD)
    left = [one for one in path.parent.iterdir() if one != path]
    assert all(one.name.startswith(".file.") and one.name.endswith(".tmp") for one in left)


def test_the_rename_comes_only_after_the_bytes_are_on_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="Input/output"):
            write_durably(path, NEW)
    assert path.read_bytes() == OLD
    assert list(path.parent.iterdir()) == [path]


def test_an_error_while_writing_leaves_no_temporary_file(path: Path) -> None:
    def fail_midway() -> None:
        with replacing(path) as descriptor:
            write_all(descriptor, NEW[:5])
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail_midway()
    assert path.read_bytes() == OLD
    assert list(path.parent.iterdir()) == [path]


def test_a_short_write_is_gone_on_with(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def one_byte(descriptor: int, data: bytes) -> int:
        return real(descriptor, bytes(data)[:1])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", one_byte)
        write_durably(path, NEW)
    assert path.read_bytes() == NEW


def test_a_long_name_still_has_room_for_its_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_durably(path, NEW)
    assert path.read_bytes() == NEW


def test_the_mode_is_what_was_asked_for_whatever_was_there(path: Path) -> None:
    path.chmod(0o777)
    write_durably(path, NEW)
    assert path.stat().st_mode & 0o777 == 0o600
    write_durably(path, NEW, mode=0o644)
    assert path.stat().st_mode & 0o777 == 0o644
