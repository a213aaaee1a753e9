"""``pagein run``: mount an image writably, run a container on it, and clear up."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pagein.daemon.images import FoundImage, Images
from pagein.daemon.mount_server import MountOptions
from pagein.daemon.mounts import umount
from pagein.daemon.serve import serve_mount
from pagein.format.manifest import parse_config
from pagein.runtime.bundle import claim_bundle, prepare_bundle
from pagein.runtime.container import run_container
from pagein.runtime.host import gather_facts
from pagein.runtime.names import check_name, new_name
from pagein.runtime.resolve import find_runtime
from pagein.runtime.spec import RunOptions


@dataclass(frozen=True, slots=True)
class ContainerOptions:
    """``keep``: what the container writes stays for the next run of that name."""

    run: RunOptions
    keep: bool
    backend: str
    runtime: str | None


def container_name(name: str | None) -> str:
    """Check a name, or make one. Raises UsageError."""
    return check_name(name) if name else new_name()


def wants_tty(asked: bool | None) -> bool:
    """Say whether the container gets a terminal: by default when stdin and stdout are one."""
    return sys.stdin.isatty() and sys.stdout.isatty() if asked is None else asked


def run_image(images: Images, found: FoundImage, options: ContainerOptions) -> int:
    """Run a container to its end; return the exit code of its command."""
    runtime = find_runtime(options.runtime)
    name = options.run.name
    config = parse_config(found.index.config)
    bundle = images.node.paths.make(images.node.paths.run / "bundles") / name
    with claim_bundle(bundle, name), _kept(images, name, keep=options.keep) as upper:
        mounting = MountOptions(
            target=None, backend=options.backend, writable=True, upper_parent=upper
        )
        record = serve_mount(images, found, mounting)
        try:
            rootfs = Path(record.target)
            prepare_bundle(bundle, config, rootfs, options.run, gather_facts())
            return run_container(
                runtime, bundle, name, tty=options.run.tty, stop_signal=config.stop_signal
            )
        finally:
            umount(images.node.paths, Path(record.target))
            shutil.rmtree(bundle, ignore_errors=True)


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
