"""``pagein pull REF``."""

from __future__ import annotations

import click

from pagein.cli import show
from pagein.cli.options import json_option, platform_option
from pagein.cli.settings import Settings


@click.command()
@click.argument("reference", metavar="REF")
@click.option("--full", is_flag=True, help="Fetch every sector into the local cache.")
@platform_option
@json_option
@click.pass_obj
def command(
    settings: Settings, reference: str, platform: str | None, *, full: bool, as_json: bool
) -> None:
    """Make the image REF startable; with --full it then needs no network.

    \b
    pagein pull --full registry:5000/app:v1
    """
    node = settings.images
    with show.progress("converting") as update:
        found = node.require(reference, platform=platform, progress=update, say=show.note)
    fetched = 0
    if full:
        with show.progress("fetching") as update:
            fetched = node.hydrate(found, progress=update)
    result = {
        "reference": str(found.name),
        "artifact": str(found.artifact.digest),
        "device_size": found.index.device_size,
        "bytes_fetched": fetched,
    }
    if as_json:
        show.as_json(result)
    elif full:
        click.echo(f"{found.name}: hydrated, {show.size(fetched)} fetched")
    else:
        click.echo(f"{found.name}: startable, {show.size(found.index.device_size)} on demand")
