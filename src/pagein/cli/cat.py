"""``pagein cat REF PATH...``."""

from __future__ import annotations

import sys

import click

from pagein.cli.options import platform_option
from pagein.cli.settings import Settings


@click.command()
@click.argument("reference", metavar="REF")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@platform_option
@click.pass_obj
def command(
    settings: Settings, reference: str, paths: tuple[str, ...], platform: str | None
) -> None:
    """Write the files PATH... of the image REF to standard output.

    Only the sectors that hold them are fetched.

    \b
    pagein cat registry:5000/app:v1 /etc/os-release
    """
    with settings.images.files(reference, platform=platform) as files:
        for path in paths:
            for piece in files.read(files.lookup(path)):
                sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
