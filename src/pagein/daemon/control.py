"""The control socket: one JSON object a line in, one a line out.

Each process that serves mounts listens on one; the folder it lies in is root-only.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from pagein.errors import (
    DeviceError,
    NotFoundError,
    PageinError,
    RemoteProtocolError,
    RemoteUnavailableError,
    UsageError,
)

MAX_LINE = 16 << 20
_TIMEOUT_S = 10.0
_BACKLOG = 128
"""Starts of containers at once; what does not fit is refused, not held up."""

Handler = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class ControlServer:
    """Answers requests on a Unix socket, one short-lived thread a connection, until closed."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._handler = handler
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        with _reachable(path) as address:
            self._socket.bind(address)
        path.chmod(0o600)
        self._socket.listen(_BACKLOG)
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(_TIMEOUT_S)
        with connection, contextlib.suppress(OSError), connection.makefile("rwb") as stream:
            try:
                reply = dict(self._handler(json.loads(stream.readline(MAX_LINE))))
            except PageinError as error:
                reply = told(error)
            except (ValueError, KeyError, TypeError, OSError) as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            stream.write(json.dumps(reply).encode() + b"\n")
            stream.flush()

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(timeout=_TIMEOUT_S)


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """Yield an address of at most 107 bytes for ``path`` (the limit of unix(7))."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def told(error: PageinError) -> dict[str, Any]:
    """Write an error as a reply."""
    return {
        "error": str(error),
        "hint": error.hint,
        "errno": error.errno if isinstance(error, DeviceError) else None,
        "usage": isinstance(error, UsageError),
    }


def _raise(reply: Mapping[str, Any]) -> NoReturn:
    """Raise the error that a reply tells of."""
    message, hint = str(reply["error"]), reply.get("hint")
    if reply.get("errno"):
        raise DeviceError(message, errno=int(reply["errno"]), hint=hint)
    if reply.get("usage"):
        raise UsageError(message, hint=hint)
    raise RemoteProtocolError(message, hint=hint)


def ask(path: Path, request: Mapping[str, Any], *, timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
    """Send one request. Raises NotFoundError where nobody listens, RemoteError otherwise.

    An error of the other side is raised here: DeviceError, UsageError or RemoteProtocolError.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(timeout_s)
        try:
            with _reachable(path) as address:
                connection.connect(address)
            with connection.makefile("rwb") as stream:
                stream.write(json.dumps(dict(request)).encode() + b"\n")
                stream.flush()
                line = stream.readline(MAX_LINE)
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotFoundError(f"nobody listens on {path}") from None
        except OSError as error:
            raise RemoteUnavailableError(f"cannot ask {path}: {error}") from None
    if not line.endswith(b"\n"):
        raise RemoteUnavailableError(f"no answer from {path}")
    try:
        reply = json.loads(line)
    except ValueError:
        raise RemoteProtocolError(f"a strange answer from {path}") from None
    if not isinstance(reply, dict):
        raise RemoteProtocolError(f"a strange answer from {path}")
    if "error" in reply:
        _raise(reply)
    return reply
