"""``python -m pagein`` as a user types it, with state folders of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DEADLINE_S = 30.0


def wait_until(what: Callable[[], object]) -> None:
    """Wait until ``what()`` is true; fail after a generous time."""
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < deadline, "this did not come true in time"
        time.sleep(0.01)


def mounts_below(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split(" ")[4] for line in lines if f"{folder}/" in line.split(" ")[4] + "/"]


class NodeUnderTest:
    """A machine's pagein: ``root`` is its PAGEIN_ROOT; call it with words of the command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "node"
        self.config = folder / "config.toml"
        self.config.write_text("")
        self._targets = 0

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PAGEIN_", "XDG_"))}
        return kept | {"PAGEIN_ROOT": str(self.root), "PAGEIN_CONFIG": str(self.config)}

    def configure(self, **settings: object) -> None:
        """Write the configuration file; values as in JSON, which TOML reads as well."""
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in settings.items()]
        self.config.write_text("".join(lines))

    def command(self, *words: object) -> list[str]:
        return [sys.executable, "-m", "pagein", *map(str, words)]

    def __call__(
        self, *words: object, code: int | None = 0, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end; it must end with ``code`` (None: with any)."""
        options = {"env": self.environment, "capture_output": True, "text": True, "timeout": 60}
        done = subprocess.run(self.command(*words), **(options | more))
        assert code is None or done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def complaint(self, *words: object, code: int = 1, **more: Any) -> tuple[str, str]:
        """Run a command that must fail; return its one line and the hint (or an empty text)."""
        done = self(*words, code=code, **more)
        line, _, rest = done.stderr.partition("\n")
        assert line.startswith("pagein: ")
        assert rest == "" or (rest.startswith("  hint: ") and rest.count("\n") == 1), done.stderr
        return line.removeprefix("pagein: "), rest.removeprefix("  hint: ").rstrip("\n")

    def start(self, *words: object, **more: Any) -> subprocess.Popen[str]:
        """Start a command that is waited for elsewhere."""
        options = {"env": self.environment, "text": True}
        return subprocess.Popen(self.command(*words), **(options | more))

    def target(self) -> Path:
        """A new empty folder to mount at."""
        self._targets += 1
        path = self.folder / f"mnt{self._targets}"
        path.mkdir()
        return path

    def mount(self, reference: str, *options: str) -> Path:
        """Mount somewhere; return where."""
        target = self.target()
        self("mount", *options, reference, target)
        return target

    @contextlib.contextmanager
    def mounted(self, reference: str, *options: str) -> Iterator[Path]:
        """Mount somewhere, and unmount at the end."""
        target = self.mount(reference, *options)
        try:
            yield target
        finally:
            self("umount", target)

    def status(self) -> list[dict[str, Any]]:
        return json.loads(self("status", "--json").stdout)["mounts"]

    def processes(self) -> list[int]:
        """The processes, other than zombies, that were started with this PAGEIN_ROOT."""
        wanted = f"PAGEIN_ROOT={self.root}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if wanted in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found

    def leftovers(self) -> list[str]:
        """Mounts, processes and folders that should be gone when nothing is mounted."""
        left = mounts_below(self.folder)
        left += [f"process {pid}" for pid in self.processes()]
        for name in ("mounts", "bundles"):
            folder = self.root / "run" / name
            left += [str(path) for path in (folder.iterdir() if folder.exists() else ())]
        writable = self.root / "lib/writable"
        left += [str(path) for path in (writable.iterdir() if writable.exists() else ())]
        return left

    def clear(self) -> None:
        """Take down by force what a failed test has left."""
        for target in reversed(mounts_below(self.folder)):
            subprocess.run(["umount", "--lazy", target], check=False, capture_output=True)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
