"""A scratch folder is gone when its owner is, however that one ended."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pagein.build.scratch import scratch_folder, sweep
from pagein.errors import CacheError

HOLD = """
import sys, time
from pathlib import Path
from pagein.build.scratch import scratch_folder, unwinding_on_sigterm
with unwinding_on_sigterm(), scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "pack-0").write_bytes(b"half")
    print(folder, flush=True)
    time.sleep(60)
"""


def hold(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(parent)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout as lines:
        return child, Path(lines.readline().strip())


def test_it_is_empty_at_first_and_gone_afterwards(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "deep") as folder:
        assert list(folder.iterdir()) == []
        (folder / "pack-0").write_bytes(b"x")
    assert list((tmp_path / "deep").iterdir()) == []


def test_an_exception_removes_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_sigterm_removes_it_and_says_so_in_the_exit_code(tmp_path: Path) -> None:
    child, folder = hold(tmp_path)
    assert folder.exists()
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_the_next_run_removes_what_a_killed_one_left_and_spares_the_living(tmp_path: Path) -> None:
    dead, left = hold(tmp_path)
    alive, used = hold(tmp_path)
    try:
        dead.kill()
        dead.wait(20)
        assert left.exists()
        with scratch_folder(tmp_path) as ours:
            assert sorted(tmp_path.iterdir()) == sorted([used, ours])
            assert sweep(tmp_path) == []
    finally:
        alive.kill()
        alive.wait(20)
    assert sweep(tmp_path) == [used]


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    (tmp_path / "pagein-convert-note").write_text("x")
    (tmp_path / "pagein-convert-link").symlink_to(tmp_path)
    with scratch_folder(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine",
        "pagein-convert-link",
        "pagein-convert-note",
    ]


def test_a_parent_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CacheError, match="making a scratch folder in"):
        scratch_folder(tmp_path / "file").__enter__()


def test_a_disk_that_fills_up_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="No space left on device") as caught:  # noqa: SIM117
        with scratch_folder(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert "TMPDIR" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []
