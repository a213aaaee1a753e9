"""Look at this machine: the facts that a container's specification needs."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pagein.runtime.cgroups import detect_hierarchy
from pagein.runtime.spec import HostFacts

# linux/capability.h, in the order of the bits.
_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)


def gather_facts() -> HostFacts:
    """Read /proc, /etc and our own environment. A missing file reads as empty."""
    return HostFacts(
        hostname=socket.gethostname(),
        environment=dict(os.environ),
        capabilities=parse_bounding_set(_read("/proc/self/status").decode("ascii", "replace")),
        filesystems=frozenset(_read("/proc/filesystems").decode("ascii", "replace").split()),
        hierarchy=detect_hierarchy(),
        resolv_conf=_read("/etc/resolv.conf"),
        hosts=_read("/etc/hosts"),
        terminal=_terminal_size(),
    )


def _terminal_size() -> tuple[int, int] | None:
    try:
        columns, rows = os.get_terminal_size(0)
    except OSError:
        return None
    return columns, rows


def parse_bounding_set(status: str) -> frozenset[str]:
    """Return the names of the bits in the ``CapBnd`` line of ``/proc/self/status``."""
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key == "CapBnd":
            bits = int(value, 16)
            return frozenset(name for bit, name in enumerate(_CAPABILITIES) if bits >> bit & 1)
    return frozenset()


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
