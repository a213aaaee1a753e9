"""``pagein mount REF DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pagein.cli import show
from pagein.cli.options import backend_option, platform_option
from pagein.cli.prefetch_options import prefetch_options
from pagein.cli.settings import Settings

if TYPE_CHECKING:
    from pagein.device.backends import Backend


@click.command()
@click.argument("reference", metavar="REF")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@prefetch_options
@backend_option
@click.option("--rw", "writable", is_flag=True, help="Lay a writable overlay on top.")
@platform_option
@click.pass_obj
def command(
    settings: Settings,
    reference: str,
    directory: Path,
    backend: Backend,
    platform: str | None,
    *,
    writable: bool,
) -> None:
    """Mount the image REF at DIR. What is written with --rw is gone after umount.

    Returns when the tree is usable; the daemon, or else a background process, serves it until it is
    unmounted.

    \b
    pagein mount registry:5000/app:v1 /mnt && ls /mnt/usr/lib && pagein umount /mnt
    """
    from pagein.daemon import mounts
    from pagein.daemon.client import mount_image
    from pagein.daemon.mount_server import MountOptions
    from pagein.daemon.serve import check_root

    check_root()
    mounts.sweep(settings.paths)
    with show.progress("converting") as update:
        found = settings.images.require(
            reference, platform=platform, progress=update, say=show.note
        )
    options = MountOptions(target=directory, backend=backend, writable=writable)
    mount_image(settings.images, found, options)
