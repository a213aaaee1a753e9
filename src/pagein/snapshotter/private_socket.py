"""A gRPC server's unix socket that root alone may connect to."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Final

import grpc

from pagein.errors import UsageError

_MAX_PATH: Final = 107  # sun_path of unix(7), less its zero


def bind_privately(server: grpc.Server, path: Path) -> None:
    """Bind ``server``, not started yet, to ``path``; a socket that nobody serves is replaced.

    Raises UsageError where the socket cannot be made or another process serves it.
    """
    if _is_served(path):
        raise UsageError(f"another process serves {path}", hint="stop it first")
    # Nobody can connect before the permissions are right: the name comes last.
    unready = path.with_name(f".{path.name}.new")
    if len(str(unready).encode()) > _MAX_PATH:
        raise UsageError(f"the path of the socket is too long: {path}")
    try:
        unready.unlink(missing_ok=True)
        server.add_insecure_port(f"unix:{unready}")
        unready.chmod(0o600)
        unready.rename(path)
    except (RuntimeError, OSError) as error:
        raise UsageError(f"cannot listen on {path}: {error}") from error


def _is_served(path: Path) -> bool:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
