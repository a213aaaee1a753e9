"""Does a pull by containerd reach us: each link of the chain, and what would mend it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from pagein.daemon.config import Config
from pagein.daemon.containerd_config import NAME, Target, check
from pagein.daemon.doctor import Finding
from pagein.daemon.installing import Containerd
from pagein.daemon.paths import Paths
from pagein.errors import NotFoundError, PageinError
from pagein.snapshotter.containerd_client import ContainerdClient

_TYPE = "io.containerd.snapshotter.v1"
_INSTALL = "pagein install-snapshotter, then systemctl restart containerd"
_DAEMON = "systemctl start pagein, or pagein daemon"


def examine_containerd(
    paths: Paths, config: Config, address: Path, file: Path, program: str
) -> list[Finding]:
    """Look at everything between containerd and us; leaves nothing behind."""
    daemon = ContainerdClient(paths.snapshotter_socket, "default")
    containerd = ContainerdClient(address, "default")
    try:
        return [
            _finding("daemon", _DAEMON, lambda: _daemon(daemon, paths)),
            _finding("containerd", "systemctl start containerd", lambda: _version(containerd)),
            _finding("its configuration", _INSTALL, lambda: _configured(paths, file, program)),
            _finding("its plugin", _INSTALL, lambda: _plugin(containerd)),
            _finding("a call through it", _DAEMON, lambda: _call(containerd)),
            _logins(paths, config),
        ]
    finally:
        daemon.close()
        containerd.close()


def _finding(name: str, mend: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, ok=True, detail=look())
    except PageinError as error:
        hint = error.hint if isinstance(error, NotFoundError) else None
        return Finding(name, ok=False, detail=str(error), mend=hint or mend)


def _daemon(client: ContainerdClient, paths: Paths) -> str:
    client.has_snapshot(NAME, "no such snapshot")
    return f"answers at {paths.snapshotter_socket}"


def _version(client: ContainerdClient) -> str:
    return f"version {client.version()}"


def _configured(paths: Paths, file: Path, program: str) -> str:
    containerd = Containerd(program)
    target = Target(containerd.version(), paths.snapshotter_socket, paths.state)
    check(containerd.dump(file), target)
    return f"{file} has pagein for CRI, and the labels it needs"


def _plugin(client: ContainerdClient) -> str:
    found = client.plugins(f"type=={_TYPE},id=={NAME}")
    if not found:
        raise NotFoundError(
            f"the containerd that runs has no snapshotter {NAME}",
            hint="it was started with another configuration: systemctl restart containerd",
        )
    if found[0].error:
        raise NotFoundError(f"the snapshotter {NAME} failed to load: {found[0].error}")
    return f"{_TYPE}.{NAME} is loaded"


def _call(client: ContainerdClient) -> str:
    """Make an empty snapshot, and remove it: less than that containerd answers by itself."""
    key = f"pagein-doctor-{secrets.token_hex(8)}"
    client.prepare(NAME, key, "", {})
    client.remove(NAME, key)
    return "is answered"


def _logins(paths: Paths, config: Config) -> Finding:
    """Tell whether pulls with a pod's own secrets can be lazy; without, they are classical."""
    name = "kubelet's logins"
    if not config.cri_image_service:
        mend = "set cri_image_service, and kubelet's --image-service-endpoint"
        return Finding(name, ok=False, detail="are not heard", mend=mend, required=False)
    ok = paths.cri_socket.is_socket()
    return Finding(
        name,
        ok,
        f"come with its image calls to {paths.cri_socket}" if ok else f"no {paths.cri_socket}",
        "" if ok else _DAEMON,
        required=False,
    )
