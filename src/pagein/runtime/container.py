"""Run a prepared bundle in the foreground, pass signals on, and leave nothing behind.

Rule 1. The container's process has our stdin, and our stdout and stderr or those it is given; we
        only wait.
Rule 2. A signal reaches the container once. Without a terminal the runtime gets a process group
        of its own, so that Ctrl-C, which the kernel sends to the whole foreground group, comes to
        us alone. With a terminal it must stay in the foreground group to read from it; there
        Ctrl-C is a byte, not a signal.
Rule 3. The exit code is the command's: 128 + n for signal n, 127 not found, 126 not executable.
Rule 4. Whatever happens, the container is deleted before we return.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from pagein.errors import RuntimeFailedError, UsageError
from pagein.runtime.cgroups import Hierarchy, detect_hierarchy, runtime_command
from pagein.runtime.names import check_name
from pagein.runtime.resolve import Runtime

FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

_STOP_S = 10.0
"""Between the stop signal and SIGKILL, as ``docker stop``."""

_ASKED_TO_END_TOO_OFTEN = 3
"""The third SIGINT or SIGTERM kills. Process 1 of a container ignores both unless it has a
handler (pid_namespaces(7)), and a user at Ctrl-C must get out; the docker client does the same."""


def run_container(
    runtime: Runtime,
    bundle: Path,
    container_id: str,
    *,
    tty: bool,
    stop_signal: str = "",
    hierarchy: Hierarchy | None = None,
    output: Output | None = None,
    on_start: Callable[[RunningContainer], None] | None = None,
) -> int:
    """Run the bundle to its end and return the exit code of its command.

    The runtime keeps its state in ``bundle/state``. Signals are passed on when called in the main
    thread. ``stop_signal`` is sent when waiting itself is interrupted by an exception. ``output``
    takes the place of our stdout and stderr; ``on_start`` is given what another thread can end the
    container with. Raises UsageError where the container is there already, and RuntimeFailedError
    if the runtime refuses the bundle; it has then said why on stderr, too.
    """
    stop = parse_signal(stop_signal)
    base = runtime_command(runtime, hierarchy or detect_hierarchy(), bundle / "state")
    if (bundle / "state" / check_name(container_id)).exists():
        raise UsageError(
            f"container {container_id} is running already", hint="choose another --name"
        )
    log = bundle / "runtime.log"
    log.unlink(missing_ok=True)
    words = [*base, "--log", str(log), "--log-format", "json", "run", "--bundle", str(bundle)]
    with _Forwarder() as forwarder, contextlib.ExitStack() as at_end:
        at_end.callback(_delete, base, bundle / "state", container_id)
        kill = [*base, "kill", container_id, "KILL"]
        child = _start(runtime, [*words, container_id], output or Output(), own_group=not tty)
        forwarder.attach(child, kill)
        running = RunningContainer(child, stop, kill, forwarder)
        try:
            if on_start is not None:
                on_start(running)
            status = child.wait()
        except BaseException:
            running.stop()
            raise
    return _exit_code(runtime, status, log)


def delete_container(
    runtime: Runtime, bundle: Path, container_id: str, *, hierarchy: Hierarchy | None = None
) -> None:
    """Kill and delete what a killed ``run_container`` left; nothing there is no error.

    Hold ``claim_bundle`` meanwhile, or it may be a container that somebody is waiting for.
    """
    base = runtime_command(runtime, hierarchy or detect_hierarchy(), bundle / "state")
    _delete(base, bundle / "state", check_name(container_id))


def parse_signal(text: str) -> signal.Signals:
    """Read ``SIGTERM``, ``TERM``, ``15`` or ``""`` (SIGTERM). Raises RuntimeFailedError."""
    try:
        if text.isascii() and text.isdigit():
            return signal.Signals(int(text))
        name = text.upper() or "SIGTERM"
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
    except (KeyError, ValueError):
        raise RuntimeFailedError(f"the image's stop signal is unknown: {text[:40]!r}") from None


@dataclass(frozen=True, slots=True)
class Output:
    """Descriptors for the container's stdout and stderr; None: ours."""

    stdout: int | None = None
    stderr: int | None = None


class _Forwarder:
    """While entered, signals that would end us go to the runtime, which hands them on."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._kill: list[str] = []
        self._early: list[int] = []
        self.endings = 0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> _Forwarder:
        if threading.current_thread() is threading.main_thread():
            for number in FORWARDED:
                # What was ignored stays so: nohup, and background jobs of a plain shell.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def attach(self, child: subprocess.Popen[bytes], kill: list[str]) -> None:
        """Pass signals to ``child`` from now on, and those that came before it was there."""
        self._child, self._kill = child, kill
        early, self._early = self._early, []
        for number in early:
            child.send_signal(number)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in (signal.SIGINT, signal.SIGTERM):
            self.endings += 1
        if self._child is None:
            self._early.append(number)
        elif self.endings >= _ASKED_TO_END_TOO_OFTEN:
            _quietly(self._kill)
        else:
            self._child.send_signal(number)


class RunningContainer:
    """A container that runs, for whoever ends it before its command does. Thread-safe."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        signal_number: signal.Signals,
        kill: list[str],
        forwarder: _Forwarder,
    ) -> None:
        self._child = child
        self._signal = signal_number
        self._kill = kill
        self._forwarder = forwarder

    @property
    def was_asked_to_end(self) -> bool:
        """Whether SIGINT or SIGTERM came to us, and so to the container."""
        return self._forwarder.endings > 0

    def stop(self, grace_s: float = _STOP_S) -> None:
        """Send the image's stop signal, and SIGKILL after a grace; return when it has ended."""
        self._child.send_signal(self._signal)
        try:
            self._child.wait(grace_s)
        except subprocess.TimeoutExpired:
            _quietly(self._kill)
            self._child.wait()


def _start(
    runtime: Runtime, words: list[str], output: Output, *, own_group: bool
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            words,
            process_group=0 if own_group else None,
            stdout=output.stdout,
            stderr=output.stderr,
        )
    except OSError as error:
        raise RuntimeFailedError(
            f"cannot start {runtime.name}: {error.strerror}", hint=f"is {words[0]} installed?"
        ) from error


def _delete(base: list[str], state: Path, container_id: str) -> None:
    """Delete what the runtime left, which it does only when it was itself killed.

    Asking the file system first saves a process, 20 ms, in the usual case.
    """
    if (state / container_id).exists():
        _quietly([*base, "delete", "--force", container_id])


def _quietly(words: list[str]) -> None:
    with contextlib.suppress(OSError):
        subprocess.run(
            words,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


_NOT_FOUND = re.compile(r"not found|no such file or directory", re.IGNORECASE)
_NOT_EXECUTABLE = re.compile(
    r"permission denied|operation not permitted|is a directory|exec format error", re.IGNORECASE
)
_ABOUT_THE_COMMAND = re.compile(r"exec: \"|exec /|executable")


def _exit_code(runtime: Runtime, status: int, log: Path) -> int:
    """Tell the command's exit code from the runtime's own 1, by the runtime's log."""
    if status < 0:
        return 128 - status
    reason = _failure(runtime, log) if status else None
    if reason is None:
        return status
    if _ABOUT_THE_COMMAND.search(reason):
        if _NOT_FOUND.search(reason):
            return 127
        if _NOT_EXECUTABLE.search(reason):
            return 126
    raise RuntimeFailedError(f"{runtime.name} could not run the container: {reason}")


def _failure(runtime: Runtime, log: Path) -> str | None:
    """Return why the runtime gave up; None where the command ran. runc also logs lesser errors."""
    for level, message in _log_entries(log):
        if level == "error" and (runtime.name != "runc" or message.startswith("runc run failed")):
            return " ".join(message.removeprefix("runc run failed: ").split())
    return None


def _log_entries(log: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = log.read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            entry = json.loads(line)
            yield str(entry["level"]), str(entry["msg"])
