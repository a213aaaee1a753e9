"""Put pagein into containerd's configuration file, and take it out again.

Rule 1. containerd itself reads the result (``containerd config dump``) before it replaces the file.
Rule 2. The file as it was is kept beside it, before anything changes. Undoing gives it back, byte
for byte, unless somebody edited the file since: then only what is ours is taken out.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pagein.daemon.containerd_config import Target, Version, check, merge, parse_version, remove
from pagein.errors import PageinError, UsageError
from pagein.store.atomic import temporary_beside, write_durably

DEFAULT_FILE: Final = Path("/etc/containerd/config.toml")
_NO_FILE: Final = b"# pagein: there was no file\n"
_TIMEOUT_S: Final = 30.0
_MAX_FILE: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of a file. ``after`` None: it goes away; equal to ``before``: nothing to do."""

    file: Path
    before: bytes | None
    after: bytes | None

    @property
    def needed(self) -> bool:
        """Whether there is anything to do."""
        return self.before != self.after

    def diff(self) -> str:
        """Return it as ``diff -u`` prints it."""
        old, new = (
            (side or b"").decode(errors="replace").splitlines(keepends=True)
            for side in (self.before, self.after)
        )
        lines = difflib.unified_diff(old, new, str(self.file), f"{self.file} (new)")
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


class Containerd:
    """The program, asked for its version and for its reading of a file."""

    def __init__(self, program: str = "containerd") -> None:
        self._program = program

    def version(self) -> Version:
        """Return it. Raises UsageError where the program is absent or too old."""
        return parse_version(self._run("--version"))

    def dump(self, config: Path) -> str:
        """Return the whole configuration that a file leads to. Raises UsageError."""
        return self._run("--config", str(config), "config", "dump")

    def _run(self, *words: str) -> str:
        try:
            done = subprocess.run(
                [self._program, *words], capture_output=True, timeout=_TIMEOUT_S, check=False
            )
        except FileNotFoundError:
            raise UsageError(
                f"{self._program} is not installed", hint="name the program with --containerd"
            ) from None
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PageinError(f"cannot run {self._program}: {type(error).__name__}") from None
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())[-400:]
            raise UsageError(f"{self._program} {' '.join(words)} refuses: {said}")
        return done.stdout.decode(errors="replace")


def plan_install(file: Path, target: Target, containerd: Containerd) -> Change:
    """Return what installing would change; containerd has read the result. Raises UsageError."""
    file = file.resolve()
    before = _read(file)
    after = merge(_text(before, file), target).encode()
    change = Change(file, before, after)
    _validate(change, target, containerd)
    return change


def plan_undo(file: Path, target: Target) -> Change:
    """Return what undoing would change. Raises UsageError where nothing was installed."""
    file = file.resolve()
    now, kept = _read(file), _read(backup_of(file))
    if kept is None:
        raise UsageError(
            f"there is no {backup_of(file)}: pagein did not change {file}, or it is undone"
        )
    before = None if kept == _NO_FILE else kept
    if now is None or now == merge(_text(before, file), target).encode():
        return Change(file, now, before)
    return Change(file, now, remove(_text(now, file), _text(before, file)).encode())


def install(change: Change) -> None:
    """Make the change; the first one keeps the file as it was. Raises PageinError."""
    backup = backup_of(change.file)
    assert change.after is not None
    with _told(change.file):
        change.file.parent.mkdir(parents=True, exist_ok=True)
        if not backup.exists():
            write_durably(backup, _NO_FILE if change.before is None else change.before)
        _write(change.file, change.after)


def undo(change: Change) -> None:
    """Give the file back, and forget what was kept of it. Raises PageinError."""
    with _told(change.file):
        if change.after is None:
            change.file.unlink(missing_ok=True)
        elif change.needed:
            _write(change.file, change.after)
        backup_of(change.file).unlink(missing_ok=True)


def backup_of(file: Path) -> Path:
    """Return where the file as it was is kept."""
    return file.with_name(f"{file.name}.before-pagein")


def _validate(change: Change, target: Target, containerd: Containerd) -> None:
    """Have containerd read the result, from the same folder: imports may be relative to it."""
    assert change.after is not None
    candidate = temporary_beside(change.file)
    with contextlib.ExitStack() as stack:
        folder = change.file.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            candidate = folder / candidate.name
        stack.callback(candidate.unlink, missing_ok=True)
        with _told(change.file):
            write_durably(candidate, change.after)
        check(containerd.dump(candidate), target)


def _read(file: Path) -> bytes | None:
    with _told(file):
        try:
            with file.open("rb") as opened:
                data = opened.read(_MAX_FILE + 1)
        except FileNotFoundError:
            return None
    if len(data) > _MAX_FILE:
        raise UsageError(f"{file} is over {_MAX_FILE} bytes")
    return data


def _text(data: bytes | None, file: Path) -> str:
    try:
        return (data or b"").decode()
    except UnicodeDecodeError:
        raise UsageError(f"{file} is not UTF-8") from None


def _write(file: Path, data: bytes) -> None:
    mode = stat.S_IMODE(file.stat().st_mode) if file.exists() else 0o644
    write_durably(file, data, mode=mode)
    file.chmod(mode)  # whatever the umask is


@contextlib.contextmanager
def _told(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PageinError(f"cannot change {file}: {error.strerror}") from None
