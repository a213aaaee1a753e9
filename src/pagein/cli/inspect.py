"""``pagein inspect REF``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from pagein.cli import show
from pagein.cli.options import json_option, platform_option
from pagein.cli.settings import Settings

if TYPE_CHECKING:
    from pagein.daemon.report import ImageFacts


def hot_region(facts: ImageFacts) -> str:
    """Say what a hot region is, or that there is none."""
    if not facts.hot_sectors:
        return show.size(0)
    return (
        f"{show.size(facts.hot_size)}, {facts.hot_sectors} sectors,"
        f" {show.size(facts.hot_stored)} stored; read-ahead of {facts.read_ahead_kb} KiB"
    )


@click.command()
@click.argument("reference", metavar="REF")
@platform_option
@json_option
@click.pass_obj
def command(settings: Settings, reference: str, platform: str | None, *, as_json: bool) -> None:
    """Show the geometry of the converted image REF, its packs, and what a start-up will fetch."""
    from pagein.daemon.report import describe_image

    facts = describe_image(settings.images, settings.images.find(reference, platform=platform))
    if as_json:
        show.as_json(msgspec.to_builtins(facts))
        return
    click.echo(f"image      {facts.reference}")
    click.echo(f"source     {facts.source}")
    click.echo(f"artifact   {facts.artifact}")
    click.echo(f"index      {facts.index}  {show.size(facts.index_size)}")
    click.echo(
        f"device     {show.size(facts.device_size)}, sectors of {show.size(facts.sector_size)}"
    )
    click.echo(f"metadata   {show.size(facts.metadata_size)}, {facts.inodes} inodes")
    click.echo(f"hot region {hot_region(facts)}")
    if facts.optimized_from:
        click.echo(f"made from  {facts.optimized_from} for profile {facts.profile}")
    click.echo(
        f"layer data {show.size(facts.data_size)}, {facts.sectors - facts.hot_sectors} sectors"
        f" ({facts.zero_sectors} zero), {show.size(facts.stored_size)} stored"
    )
    click.echo(f"in cache   {facts.cached_sectors} of {facts.distinct_sectors} distinct sectors")
    for pack in facts.packs:
        click.echo(f"pack       {pack.digest}  {show.size(pack.size)}, {pack.sectors} sectors")
    click.echo(
        f"start-up   fetches the index ({show.size(facts.index_size)}) and then what is read,"
        f" {show.size(facts.hot_stored)} of it ahead"
    )
