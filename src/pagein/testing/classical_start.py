"""Start a container the classical way: fetch all layers, unpack them all, run.

    python -m pagein.testing.classical_start REF DIR [CMD ARG...]

A program of its own, so that demonstrations and benchmarks start it as they start ``pagein run``,
with the same client, runtime and container. DIR must not exist; it is left for the caller to look
at and to remove.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from pagein.build.unpack import unpack
from pagein.errors import PageinError, UsageError
from pagein.format.manifest import parse_config
from pagein.format.platforms import Platform
from pagein.runtime.bundle import prepare_bundle
from pagein.runtime.container import run_container
from pagein.runtime.host import gather_facts
from pagein.runtime.names import new_name
from pagein.runtime.resolve import find_runtime
from pagein.runtime.spec import RunOptions
from pagein.store.registry import RegistryRepository
from pagein.store.resolve import resolve
from pagein.transport.http import HttpTransport
from pagein.types import ImageName

_CONFIG_LIMIT = 4 << 20


def start(reference: str, folder: Path, arguments: tuple[str, ...]) -> int:
    """Fetch, unpack to ``folder`` and run; returns the command's exit code. Anonymous."""
    name = ImageName.parse(reference)
    repository = RegistryRepository(name, HttpTransport())
    found = resolve(
        repository,
        name.digest or name.tag or "latest",
        Platform.local(platform.machine()),
        want_artifact=False,
    )
    if found.source is None:
        raise UsageError(f"{reference} is a converted image; name its source")
    folder.mkdir(mode=0o700)
    manifest = found.source.manifest
    unpack(repository, manifest, folder / "rootfs")
    config = parse_config(repository.read_blob(manifest.config.digest, limit=_CONFIG_LIMIT))
    options = RunOptions(name=new_name(), args=arguments)
    prepare_bundle(folder / "bundle", config, folder / "rootfs", options, gather_facts())
    return run_container(
        find_runtime(),
        folder / "bundle",
        options.name,
        tty=False,
        stop_signal=config.stop_signal,
    )


def main() -> None:
    """Read the command line and run."""
    if len(sys.argv) < 3:
        sys.exit("usage: classical_start REF DIR [CMD ARG...]")
    try:
        sys.exit(start(sys.argv[1], Path(sys.argv[2]), tuple(sys.argv[3:])))
    except PageinError as error:
        print(f"classical start: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
