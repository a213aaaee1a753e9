"""``pagein umount DIR``."""

from __future__ import annotations

from pathlib import Path

import click

from pagein.cli.settings import Settings


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--force", is_flag=True, help="Detach a tree that is still in use.")
@click.pass_obj
def command(settings: Settings, directory: Path, *, force: bool) -> None:
    """Unmount the image at DIR, and end the process that served it."""
    import os

    from pagein.daemon import client, mounts
    from pagein.daemon.serve import check_root

    check_root()
    if os.path.realpath(directory) in mounts.sweep(settings.paths):
        return  # its process had been killed
    client.umount(settings.paths, directory, force=force)
