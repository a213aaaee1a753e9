"""An OCI runtime-spec 1.0 ``config.json`` from an image's configuration and what was asked for.

Pure: everything that depends on the machine comes in as HostFacts.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pagein.errors import RuntimeFailedError, UsageError
from pagein.runtime.cgroups import Hierarchy, cgroup_path
from pagein.runtime.defaults import (
    CAPABILITIES,
    MASKED_PATHS,
    OCI_VERSION,
    READ_ONLY_PATHS,
    bind_mount,
    bundle_file_mounts,
    system_mounts,
)
from pagein.runtime.environment import build_environment
from pagein.runtime.users import resolve_user

Network = Literal["host", "none"]


class ImageConfigLike(Protocol):
    """What an image says of the process to run (image-spec config.md, ``config``)."""

    @property
    def entrypoint(self) -> tuple[str, ...]:
        """Words in front of the command; may be empty."""
        ...

    @property
    def cmd(self) -> tuple[str, ...]:
        """The default command, or default arguments of the entrypoint."""
        ...

    @property
    def env(self) -> tuple[str, ...]:
        """``K=V`` entries."""
        ...

    @property
    def working_dir(self) -> str:
        """Directory to start in; empty means ``/``."""
        ...

    @property
    def user(self) -> str:
        """``USER[:GROUP]``, by name or number; empty means root."""
        ...

    @property
    def stop_signal(self) -> str:
        """Name or number of the signal that stops the process; empty means SIGTERM."""
        ...

    @property
    def labels(self) -> Mapping[str, str]:
        """They become the annotations of the container."""
        ...


@dataclass(frozen=True, slots=True)
class ProcessDefaults:
    """The plainest ImageConfigLike."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Volume:
    """A host path bound into the container. ``source`` is absolute, ``destination`` too."""

    source: str
    destination: str
    read_only: bool = False

    @classmethod
    def parse(cls, text: str, *, directory: str = "/") -> Volume:
        """Read ``SRC:DST[:ro|:rw]``; SRC may be relative to ``directory`` if it starts with a dot.

        Raises UsageError.
        """
        parts = text.split(":")
        hint = "--volume SRC:DST[:ro], both absolute paths"
        if len(parts) not in (2, 3) or "\0" in text:
            raise UsageError(f"not a volume: {text[:200]!r}", hint=hint)
        source, destination = parts[0], parts[1]
        mode = parts[2] if len(parts) == 3 else "rw"
        if mode not in ("ro", "rw"):
            raise UsageError(f"not a volume: {text[:200]!r}: unknown mode {mode!r}", hint=hint)
        if source.startswith("."):
            source = posixpath.join(directory, source)
        if not source.startswith("/") or not destination.startswith("/"):
            raise UsageError(f"not a volume: {text[:200]!r}", hint=hint)
        destination = _absolute(destination)
        if destination == "/":
            raise UsageError(f"not a volume: {text[:200]!r}: it would hide the image", hint=hint)
        return cls(posixpath.normpath(source), destination, mode == "ro")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the caller asks for. Empty means: as the image says.

    ``args`` replace the image's Cmd; its Entrypoint stays unless ``entrypoint`` is given, which
    also drops Cmd (an empty tuple: no entrypoint). ``env`` holds ``K=V``, or ``K`` to inherit.
    ``name`` is the container's id on this machine.
    """

    name: str
    args: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    volumes: tuple[Volume, ...] = ()
    workdir: str | None = None
    user: str | None = None
    hostname: str | None = None
    net: Network = "host"
    tty: bool = False
    read_only: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the machine contributes. ``capabilities`` are those this process may hand on;
    ``filesystems`` the types that the kernel knows."""

    hostname: str
    environment: Mapping[str, str]
    capabilities: frozenset[str]
    filesystems: frozenset[str]
    hierarchy: Hierarchy
    resolv_conf: bytes = b""
    hosts: bytes = b""
    terminal: tuple[int, int] | None = None
    """Columns and rows of our terminal, if stdin is one."""


def build_spec(
    config: ImageConfigLike,
    rootfs: Path,
    passwd: bytes | None,
    group: bytes | None,
    options: RunOptions,
    host: HostFacts,
) -> dict[str, Any]:
    """Return the ``config.json`` of one container, as plain JSON values.

    ``passwd`` and ``group`` are the image's ``/etc/passwd`` and ``/etc/group``, None where absent.
    Relative sources of mounts are files of the bundle. Raises UsageError for options that make no
    sense, RuntimeFailedError for an image that cannot run so.
    """
    hostname = container_hostname(options, host)
    return {
        "ociVersion": OCI_VERSION,
        "process": _process(config, passwd, group, options, host, hostname),
        "root": {"path": str(rootfs), "readonly": options.read_only},
        "hostname": hostname,
        "mounts": _mounts(options, host),
        "annotations": dict(config.labels),
        "linux": _linux(options, host),
    }


def container_hostname(options: RunOptions, host: HostFacts) -> str:
    """Return the name that the container calls itself; with the host's network, the host's."""
    if options.hostname:
        return options.hostname
    # 63: the longest label of a DNS name; sethostname(2) takes 64 bytes.
    return host.hostname if options.net == "host" else options.name[:63]


def _process(
    config: ImageConfigLike,
    passwd: bytes | None,
    group: bytes | None,
    options: RunOptions,
    host: HostFacts,
    hostname: str,
) -> dict[str, Any]:
    identity = resolve_user(config.user if options.user is None else options.user, passwd, group)
    capabilities = _capabilities(options, host)
    process = {
        "terminal": options.tty,
        "user": {
            "uid": identity.uid,
            "gid": identity.gid,
            # The primary group is listed too: without it a process that drops its supplementary
            # groups would gain what a negative group permission denies (CVE-2022-36109).
            "additionalGids": [identity.gid, *identity.groups],
        },
        "args": command_line(config, options),
        "env": build_environment(
            config.env,
            options.env,
            host.environment,
            hostname=hostname,
            home=identity.home,
            tty=options.tty,
        ),
        "cwd": _working_dir(config, options),
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
        },
        "noNewPrivileges": False,
    }
    if options.tty and host.terminal is not None:
        # runc takes the size over by itself, crun only from here.
        process["consoleSize"] = {"width": host.terminal[0], "height": host.terminal[1]}
    return process


def command_line(config: ImageConfigLike, options: RunOptions) -> list[str]:
    """Put Entrypoint and Cmd together as ``docker run`` does. UsageError if nothing is left."""
    if options.entrypoint is None:
        words = [*config.entrypoint, *(options.args or config.cmd)]
    else:
        words = [*options.entrypoint, *options.args]
    if not words:
        raise UsageError("the image names no command", hint="pagein run REF -- CMD ARG...")
    return words


def _working_dir(config: ImageConfigLike, options: RunOptions) -> str:
    if options.workdir is None:
        return _absolute(config.working_dir)
    if not options.workdir.startswith("/"):
        raise UsageError(f"not an absolute path: --workdir {options.workdir[:200]!r}")
    return _absolute(options.workdir)


def _absolute(path: str) -> str:
    """Normalise as seen from ``/``: nothing leaves the root (``//x`` is ``/x`` too)."""
    return posixpath.normpath("/" + path.lstrip("/"))


def _capabilities(options: RunOptions, host: HostFacts) -> list[str]:
    added = {_capability(name) for name in options.cap_add}
    dropped = {_capability(name) for name in options.cap_drop}
    unknown = (added | dropped) - host.capabilities - set(CAPABILITIES) - {"CAP_ALL"}
    if unknown:
        raise UsageError(f"this machine cannot give {', '.join(sorted(unknown))}")
    wanted = set() if "CAP_ALL" in dropped else set(CAPABILITIES)
    wanted |= host.capabilities if "CAP_ALL" in added else added
    # A runtime fails on a capability outside its own bounding set, as inside another container.
    return sorted((wanted - dropped) & host.capabilities)


def _capability(name: str) -> str:
    upper = name.upper()
    return upper if upper.startswith("CAP_") else f"CAP_{upper}"


def _mounts(options: RunOptions, host: HostFacts) -> list[dict[str, Any]]:
    taken = {volume.destination for volume in options.volumes}
    if len(taken) < len(options.volumes):
        raise UsageError("two volumes have the same destination")
    defaults = system_mounts(
        with_cgroup=host.hierarchy is not Hierarchy.NONE,
        with_mqueue="mqueue" in host.filesystems,
    )
    defaults += bundle_file_mounts()
    # A volume below another one must be mounted after it.
    volumes = sorted(options.volumes, key=lambda volume: volume.destination.count("/"))
    return [mount for mount in defaults if mount["destination"] not in taken] + [
        bind_mount(v.source, v.destination, read_only=v.read_only) for v in volumes
    ]


def _linux(options: RunOptions, host: HostFacts) -> dict[str, Any]:
    namespaces = ["mount", "pid", "ipc", "uts"]
    if options.net == "none":
        namespaces.append("network")
    if host.hierarchy is Hierarchy.V2:
        namespaces.append("cgroup")  # Docker's default on v2, and only there
    linux: dict[str, Any] = {
        "namespaces": [{"type": name} for name in namespaces],
        "maskedPaths": list(MASKED_PATHS),
        "readonlyPaths": list(READ_ONLY_PATHS),
    }
    path = cgroup_path(host.hierarchy, options.name)
    if path is not None:
        linux["cgroupsPath"] = path
        # The runtime itself allows null, zero, full, random, urandom, tty, ptmx and pts.
        linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    return linux


def bundle_files(options: RunOptions, host: HostFacts) -> dict[str, bytes]:
    """Return what ``/etc/resolv.conf``, ``hosts`` and ``hostname`` hold, by name."""
    hostname = container_hostname(options, host)
    if "\n" in hostname or not hostname.isascii():
        raise RuntimeFailedError(f"not a host name: {hostname[:80]!r}")
    own = (
        f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\t{hostname}\n"
    )
    hosts = host.hosts if options.net == "host" and host.hosts else own.encode()
    return {
        "resolv.conf": host.resolv_conf,
        "hosts": hosts,
        "hostname": f"{hostname}\n".encode(),
    }
