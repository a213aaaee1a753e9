"""The service manager's protocol: "ready", "stopping", and descriptors that outlive the process.

The other end is systemd, or pagein's own holder (`pagein.daemon.holder`), which speaks the same.
Sources: sd_notify(3), sd_pid_notify_with_fds(3), sd_listen_fds(3).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Final

from pagein.errors import RemoteUnavailableError, UsageError

LISTEN_FDS_START: Final = 3
_BARRIER_S: Final = 5.0
_FD_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,255}")
"""Of what sd_pid_notify_with_fds(3) allows, what no separator is made of."""


class Notifier:
    """Tells whoever started this process how it is, and has descriptors kept.

    Without an address nobody listens, and every call does nothing. Safe to call from any thread.
    """

    def __init__(self, address: str | None) -> None:
        if address is not None and not address.startswith(("/", "@")):
            raise UsageError(f"not an address of a notification socket: {address!r}")
        self._address = None if address is None else address.replace("@", "\0", 1)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Notifier:
        """Take ``NOTIFY_SOCKET`` out of the environment, so that no child answers for us."""
        return cls(environment.pop("NOTIFY_SOCKET", None) or None)

    @property
    def listened_to(self) -> bool:
        """Whether there is anybody to tell."""
        return self._address is not None

    def ready(self, status: str) -> None:
        """Say that every socket listens."""
        self._send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def stopping(self) -> None:
        """Say that this process is about to end."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Keep the watchdog quiet."""
        self._send("WATCHDOG=1")

    def store(self, name: str, descriptors: Sequence[int]) -> None:
        """Have descriptors kept under a name; returns once they are.

        They are given to the next process when this one has ended. The keeper lets go of them by
        itself when their file system is gone (poll(2) says POLLERR). Raises RemoteUnavailableError.
        """
        if not _FD_NAME.fullmatch(name):
            raise UsageError(f"not a name for a descriptor: {name!r}")
        self._send(f"FDSTORE=1\nFDNAME={name}", descriptors)
        self._barrier()

    def remove(self, name: str) -> None:
        """Have the descriptors of a name let go."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def _barrier(self) -> None:
        """Wait until all that was sent has been taken in (``BARRIER=1``): the other end closes the
        pipe that it is given."""
        if self._address is None:
            return
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                self._send("BARRIER=1", [writer])
            finally:
                os.close(writer)
            poll = select.poll()
            poll.register(reader, 0)  # POLLHUP is always told
            if not poll.poll(_BARRIER_S * 1000):
                raise RemoteUnavailableError("the service manager does not answer")
        finally:
            os.close(reader)

    def _send(self, text: str, descriptors: Sequence[int] = ()) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as stream:
                stream.settimeout(_BARRIER_S)
                stream.connect(self._address)
                socket.send_fds(stream, [text.encode()], list(descriptors))
        except OSError as error:
            raise RemoteUnavailableError(
                f"cannot tell the service manager: {error.strerror or error}"
            ) from None


def take_descriptors(environment: MutableMapping[str, str], pid: int) -> dict[str, list[int]]:
    """Return the descriptors that this process was started with, by name; once.

    The variables go, so that no child takes them for its own; the descriptors close at exec.
    """
    values = {key: environment.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES")}
    if values["PID"] != str(pid) or not values["FDS"].isdigit():
        return {}
    numbers = range(LISTEN_FDS_START, LISTEN_FDS_START + int(values["FDS"]))
    names = values["FDNAMES"].split(":") if values["FDNAMES"] else []
    found: dict[str, list[int]] = {}
    for place, number in enumerate(numbers):
        with contextlib.suppress(OSError):
            fcntl.fcntl(number, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
            name = names[place] if place < len(names) else "unknown"
            found.setdefault(name, []).append(number)
    return found


def watchdog_period_s(environment: Mapping[str, str], pid: int) -> float | None:
    """Return how often to say that we are alive: half of what is asked for; None: never."""
    wanted = environment.get("WATCHDOG_USEC", "")
    if environment.get("WATCHDOG_PID", str(pid)) != str(pid) or not wanted.isdigit():
        return None
    return int(wanted) / 2e6 if int(wanted) else None
