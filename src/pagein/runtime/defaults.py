"""What a container gets when nobody says otherwise: Docker's defaults (moby, ``oci/defaults.go``
and ``oci/caps/defaults.go``), in the words of the OCI runtime specification 1.0."""

from __future__ import annotations

from typing import Any, Final

OCI_VERSION: Final = "1.0.2"

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

CAPABILITIES: Final = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)

MASKED_PATHS: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)

READ_ONLY_PATHS: Final = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)

BUNDLE_FILES: Final = ("resolv.conf", "hosts", "hostname")
"""Files of the bundle folder that appear in ``/etc`` of the container."""


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {
        "destination": destination,
        "type": kind,
        "source": source,
        "options": list(options),
    }


def system_mounts(*, with_cgroup: bool, with_mqueue: bool) -> list[dict[str, Any]]:
    """Return the kernel file systems that every container has."""
    mounts = [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ),
        _mount(
            "/dev/shm",  # noqa: S108 - the container's own
            "tmpfs",
            "shm",
            "nosuid",
            "noexec",
            "nodev",
            "mode=1777",
            "size=65536k",
        ),
        _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
    ]
    if with_mqueue:
        mounts.append(_mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"))
    if with_cgroup:
        mounts.append(
            _mount(
                "/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"
            )
        )
    return mounts


def bundle_file_mounts() -> list[dict[str, Any]]:
    """Return the binds of ``/etc/resolv.conf``, ``hosts`` and ``hostname``.

    A relative source is relative to the bundle (runtime-spec, config.md, "Mounts").
    """
    return [_mount(f"/etc/{name}", "bind", name, "rbind", "rprivate") for name in BUNDLE_FILES]


def bind_mount(source: str, destination: str, *, read_only: bool) -> dict[str, Any]:
    """Return the bind of a volume. What the host mounts below it later shows up inside.

    ``rro`` makes the mounts below read-only too (mount_setattr(2), kernel >= 5.12).
    """
    mode = ("ro", "rro") if read_only else ("rw",)
    return _mount(destination, "bind", source, "rbind", "rslave", *mode)
