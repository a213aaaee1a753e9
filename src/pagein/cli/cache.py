"""``pagein cache du|ls|prune|verify``."""

from __future__ import annotations

import click

from pagein.cli import show
from pagein.cli.options import json_option
from pagein.cli.settings import Settings


@click.group()
def command() -> None:
    """Look after the local cache of sectors. It is only a cache: all of it can be fetched again."""


@command.command()
@json_option
@click.pass_obj
def du(settings: Settings, *, as_json: bool) -> None:
    """Show how much the cache holds, and its limit."""
    usage = settings.images.node.cache().du()
    limit = settings.config.cache_bytes
    if as_json:
        show.as_json({"bytes": usage.bytes, "sectors": usage.sectors, "limit": limit})
    else:
        click.echo(f"{show.size(usage.bytes)} of {show.size(limit)} in {usage.sectors} sectors")


@command.command(name="ls")
@json_option
@click.pass_obj
def list_sectors(settings: Settings, *, as_json: bool) -> None:
    """List the digest of every sector held."""
    digests = sorted(settings.images.node.cache().refs())
    if as_json:
        show.as_json([f"sha256:{digest}" for digest in digests])
        return
    for digest in digests:
        click.echo(f"sha256:{digest}")


@command.command()
@click.option(
    "--to", "target", default="0", show_default=True, metavar="SIZE", help="Keep this much."
)
@click.pass_obj
def prune(settings: Settings, target: str) -> None:
    """Drop sectors, the least useful first. Running containers fetch again what they need."""
    from pagein.daemon.config import parse_size

    freed = settings.images.node.cache().prune(parse_size(target))
    click.echo(f"{show.size(freed)} freed")


@command.command()
@click.pass_obj
def verify(settings: Settings) -> int:
    """Hash every sector again, and drop those that are not what they were."""
    checked, dropped = settings.images.node.cache().verify()
    click.echo(f"{checked} sectors checked, {dropped} dropped")
    return 1 if dropped else 0
