"""``pagein daemon`` as a process: started, killed with and without its holder, and asked."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

from node_under_test import NodeUnderTest, mounts_below, wait_until

from pagein.daemon.control import ask
from pagein.errors import PageinError


class DaemonUnderTest:
    """The daemon of one machine, and the holder that starts it."""

    def __init__(self, node: NodeUnderTest) -> None:
        self.node = node
        self.log = node.folder / "daemon.log"
        self.control = node.root / "run/control.sock"
        self._holder: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it as a user does, and wait until it answers."""
        with self.log.open("a") as log:
            self._holder = self.node.start("daemon", stdout=log, stderr=log)
        wait_until(self.answers)

    def answers(self) -> bool:
        assert self._holder is None or self._holder.poll() is None, self.log.read_text()
        with contextlib.suppress(PageinError):
            return bool(self.status())
        return False

    def status(self) -> dict[str, Any]:
        return ask(self.control, {"op": "status"})

    @property
    def pid(self) -> int:
        return int(self.status()["daemon"]["pid"])

    def kill(self) -> int:
        """Kill the daemon, not its holder; return its process number."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        return pid

    def kill_both(self) -> None:
        """Kill the holder first, so that nobody starts the daemon again."""
        pid = self.pid
        assert self._holder is not None
        self._holder.kill()
        self._holder.wait()
        self._holder = None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{pid}").exists())

    def stop(self) -> int:
        """Stop it as a user does; return the exit code."""
        assert self._holder is not None
        self._holder.terminate()
        code = self._holder.wait()
        self._holder = None
        return code

    def end(self) -> None:
        """Unmount everything and stop."""
        for target in reversed(mounts_below(self.node.folder)):
            subprocess.run(["umount", "--lazy", target], check=False, capture_output=True)
        if self._holder is not None:
            if self.answers():
                wait_until(self.is_idle)
            self.stop()

    def is_idle(self) -> bool:
        """Whether it has nothing attached, and no writable layer to remove."""
        writable = self.node.root / "lib/writable"
        left = list(writable.iterdir()) if writable.exists() else []
        return self.status()["images"] == [] and left == []


def reboot(node: NodeUnderTest) -> None:
    """Do to our state what a reboot does: no mounts, no processes, another boot's records."""
    for target in reversed(mounts_below(node.folder)):
        subprocess.run(["umount", "--lazy", target], check=True)
    for record in node.root.glob("*/daemon/*/*.json"):
        record.write_text(re.sub(r'"boot":"[^"]*"', '"boot":"another"', record.read_text()))
