"""The bundle folder: ``config.json`` and the files that are bound into the container's /etc."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pagein.errors import RuntimeFailedError, UsageError
from pagein.runtime.inside import read_inside
from pagein.runtime.spec import (
    HostFacts,
    ImageConfigLike,
    RunOptions,
    Volume,
    build_spec,
    bundle_files,
)

_MAX_ACCOUNT_FILE = 16 << 20
"""Bytes; a passwd file of 100,000 users is about 6 MiB."""


@contextlib.contextmanager
def claim_bundle(bundle: Path, name: str) -> Iterator[int]:
    """Own the bundle of the container ``name``: hold this around its preparation and its run.

    The claim ends with the process, however it ends: a process that is forked meanwhile and lives
    longer has to close the descriptor that this yields. Makes ``bundle``, root-only. Raises
    UsageError where another process, or another claim in this one, owns it.
    """
    bundle.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(bundle / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UsageError(
            f"container {name} is running already", hint="choose another --name"
        ) from None
    try:
        yield lock
    finally:
        os.close(lock)


def prepare_bundle(
    bundle: Path,
    config: ImageConfigLike,
    rootfs: Path,
    options: RunOptions,
    host: HostFacts,
) -> None:
    """Write the bundle of a container whose mounted root is at ``rootfs`` (an absolute path).

    ``bundle`` is made, root-only, or may exist. Raises UsageError or RuntimeFailedError.
    """
    check_volumes(options.volumes)
    passwd = read_inside(rootfs, "etc/passwd", limit=_MAX_ACCOUNT_FILE)
    group = read_inside(rootfs, "etc/group", limit=_MAX_ACCOUNT_FILE)
    spec = build_spec(config, rootfs, passwd, group, options, host)
    write_bundle(bundle, spec, bundle_files(options, host))


def write_bundle(bundle: Path, spec: dict[str, Any], files: dict[str, bytes]) -> None:
    """Write ``config.json`` (0600: it holds the environment) and ``files`` (0644) into ``bundle``.

    Raises UsageError where a word is not UTF-8, which JSON cannot hold.
    """
    try:
        document = json.dumps(spec, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        word = error.object[max(0, error.start - 20) : error.end + 20]
        raise UsageError(f"cannot hand over a word that is not UTF-8: {word!r}") from None
    try:
        bundle.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(bundle / "config.json", document, 0o600)
        for name, data in files.items():
            _write(bundle / name, data, 0o644)
    except OSError as error:
        raise RuntimeFailedError(f"cannot write the bundle {bundle}: {error.strerror}") from error


def check_volumes(volumes: tuple[Volume, ...]) -> None:
    """Raise UsageError for a volume whose source does not exist.

    Docker makes a directory there; a mistyped path to a model is worth a message instead.
    """
    for volume in volumes:
        if not os.path.lexists(volume.source):
            raise UsageError(
                f"cannot bind {volume.source} to {volume.destination}: it does not exist",
                hint=f"mkdir -p {volume.source}",
            )


def _write(path: Path, data: bytes, mode: int) -> None:
    # Made with its final mode at once: no moment in which others can read it.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
