"""A containerd of our own: an empty root, a socket of its own, nothing of the machine's touched."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from pagein.device.mount import mount_table, unmount
from pagein.errors import DeviceError, UsageError

_START_TIMEOUT_S = 20.0


class Containerd:
    """Runs containerd below ``folder``, which must not exist; ``with`` owns it.

    ``config`` is further TOML, for proxy plugins or CRI; by default there is no CRI. ``configure``
    is called with the file before containerd starts. Containers are the caller's to end. Raises
    UsageError where it does not start.
    """

    def __init__(
        self,
        folder: Path,
        config: str | None = None,
        *,
        configure: Callable[[Path], object] = lambda _: None,
    ) -> None:
        self._configure = configure
        self.folder = folder
        self.socket = folder / "containerd.sock"
        self._config = config or 'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What containerd printed."""
        return self.folder / "log"

    def ctr(self, *words: str | Path) -> list[str]:
        """Return a command line of ctr for this containerd."""
        return ["ctr", "--address", str(self.socket), *map(str, words)]

    def __enter__(self) -> Containerd:
        self.folder.mkdir(parents=True)
        file = self.folder / "config.toml"
        file.write_text(
            f'version = 2\nroot = "{self.folder}/root"\nstate = "{self.folder}/state"\n'
            f'{self._config}\n[grpc]\naddress = "{self.socket}"\n'
            f'[ttrpc]\naddress = "{self.folder}/ttrpc.sock"\n'
        )
        try:
            self._configure(file)
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the process, also after `stop` or `kill`, and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["containerd", "--config", self.folder / "config.toml"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        pause = threading.Event()
        while subprocess.run(self.ctr("version"), capture_output=True, check=False).returncode:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise UsageError(f"containerd did not start: {self.log.read_text()[-2000:]}")
            pause.wait(0.05)

    def stop(self) -> None:
        """End the process in good order; idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait()

    def kill(self) -> None:
        """End the process with SIGKILL."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Stop, and unmount what is mounted below the folder."""
        self.stop()
        inside = [e.target for e in mount_table() if e.target.startswith(f"{self.folder}/")]
        for target in reversed(inside):
            with contextlib.suppress(DeviceError):
                unmount(Path(target), lazy=True)
