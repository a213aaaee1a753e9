"""``pagein run``: mount an image writably, run a container on it, and clear up.

A `pagein run` that was killed leaves a container that may well go on: it has its command, its
mount and the process that serves it. The next run of that name ends it; any other lets it be, and
takes away what it no longer needs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pagein.daemon.client import mount_image, umount
from pagein.daemon.images import FoundImage, Images
from pagein.daemon.mount_server import MountOptions
from pagein.daemon.mounts import MountRecord
from pagein.daemon.paths import Paths
from pagein.device.backends import Backend
from pagein.device.mount import is_mount_point, unmount
from pagein.errors import DeviceError, PageinError, RuntimeFailedError
from pagein.format.manifest import parse_config
from pagein.runtime.bundle import claim_bundle, prepare_bundle
from pagein.runtime.container import (
    Output,
    RunningContainer,
    delete_container,
    run_container,
)
from pagein.runtime.host import gather_facts
from pagein.runtime.names import check_name, new_name
from pagein.runtime.resolve import RUNTIMES, Runtime, find_runtime
from pagein.runtime.spec import RunOptions


@dataclass(frozen=True, slots=True)
class ContainerOptions:
    """``keep``: what the container writes stays for the next run of that name."""

    run: RunOptions
    keep: bool
    backend: Backend
    runtime: str | None


def container_name(name: str | None) -> str:
    """Check a name, or make one. Raises UsageError."""
    return check_name(name) if name else new_name()


def wants_tty(asked: bool | None) -> bool:
    """Say whether the container gets a terminal: by default when stdin and stdout are one."""
    return sys.stdin.isatty() and sys.stdout.isatty() if asked is None else asked


def run_image(images: Images, found: FoundImage, options: ContainerOptions) -> int:
    """Run a container to its end; return the exit code of its command."""
    with prepared(images, found, options, _mount_passing) as container:
        return container.run()


Mount = Callable[[Images, FoundImage, MountOptions, int], MountRecord]
"""Mounts an image as it is told. The descriptor, which holds a lock of ours, is none of a serving
process's business."""


def _mount_passing(
    images: Images, found: FoundImage, options: MountOptions, claim: int
) -> MountRecord:
    return mount_image(images, found, options, passing=True, keep_from_server=(claim,))


@dataclass(frozen=True, slots=True)
class PreparedContainer:
    """A bundle on a mounted image, ready to run. ``mount``: what it stands on."""

    runtime: Runtime
    bundle: Path
    name: str
    tty: bool
    stop_signal: str
    mount: MountRecord

    def run(
        self,
        *,
        output: Output | None = None,
        on_start: Callable[[RunningContainer], None] | None = None,
    ) -> int:
        """Run the command to its end; return its exit code (see `run_container`)."""
        return run_container(
            self.runtime,
            self.bundle,
            self.name,
            tty=self.tty,
            stop_signal=self.stop_signal,
            output=output,
            on_start=on_start,
        )


@contextlib.contextmanager
def prepared(
    images: Images, found: FoundImage, options: ContainerOptions, mount: Mount
) -> Iterator[PreparedContainer]:
    """Mount an image writably, and prepare a container on it; clear both up at the end."""
    name = options.run.name
    paths = images.node.paths
    bundle = paths.make(paths.run / "bundles") / name
    runtime = find_runtime(options.runtime)
    with claim_bundle(bundle, name) as claim, _kept(images, name, keep=options.keep) as upper:
        try:
            _end_abandoned(paths, bundle)
            mounting = MountOptions(
                target=None, backend=options.backend, writable=True, upper_parent=upper
            )
            record = mount(images, found, mounting, claim)
            rootfs = Path(record.target)
            try:
                config = parse_config(found.index.config)
                prepare_bundle(bundle, config, rootfs, options.run, gather_facts())
                yield PreparedContainer(
                    runtime, bundle, name, options.run.tty, config.stop_signal, record
                )
            finally:
                if is_mount_point(rootfs):  # not after its server was lost
                    umount(paths, rootfs)
        finally:
            shutil.rmtree(bundle, ignore_errors=True)


def sweep_bundles(paths: Paths) -> None:
    """Clear what killed runs left, as far as no container needs it."""
    for bundle in (paths.run / "bundles").glob("*"):
        # Without a config.json its owner is about to take the lock: do not get in the way.
        if (bundle / "config.json").exists():
            with contextlib.suppress(OSError, ValueError), (bundle / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _let_go(bundle)


def _let_go(bundle: Path) -> None:
    with contextlib.suppress(DeviceError):
        # A container that still runs has this mount in a namespace of its own.
        unmount(_rootfs(bundle))
    if not (bundle / "state" / bundle.name).exists():
        shutil.rmtree(bundle, ignore_errors=True)


def _end_abandoned(paths: Paths, bundle: Path) -> None:
    """End the container of a killed run of this name, whose bundle is claimed."""
    if not (bundle / "config.json").exists():
        return
    for name in RUNTIMES:  # whichever it was
        with contextlib.suppress(RuntimeFailedError):
            delete_container(find_runtime(name), bundle, bundle.name)
    with contextlib.suppress(PageinError):
        umount(paths, _rootfs(bundle))
    (bundle / "config.json").unlink()


def _rootfs(bundle: Path) -> Path:
    """Where the root of a prepared bundle is mounted. Raises OSError."""
    return Path(json.loads((bundle / "config.json").read_bytes())["root"]["path"])


@contextlib.contextmanager
def _kept(images: Images, name: str, *, keep: bool) -> Iterator[Path | None]:
    """Yield the folder of a named container's writable layer; None where nothing is kept."""
    folder = images.node.paths.containers / name
    if keep:
        yield images.node.paths.make(folder)
        return
    try:
        yield folder if folder.exists() else None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
