"""``pagein status``."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from pagein.cli import show
from pagein.cli.options import json_option
from pagein.cli.settings import Settings


def gather(settings: Settings) -> list[dict[str, Any]]:
    """Return every live mount with its figures."""
    from pagein.daemon import mounts

    found = []
    for folder, record in mounts.live(settings.paths):
        figures = mounts.status(folder)
        if figures is not None:
            found.append(msgspec.to_builtins(record) | figures)
    return found


@click.command()
@json_option
@click.pass_obj
def command(settings: Settings, *, as_json: bool) -> None:
    """List the mounts of this machine: bytes fetched, hit rate and miss latency."""
    found = gather(settings)
    if as_json:
        show.as_json({"mounts": found})
        return
    if not found:
        click.echo("no mounts")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("image", "at", "backend"):
        table.add_column(title, overflow="fold")
    for title in ("size", "fetched", "hit rate", "miss p50", "miss p99", "miss p99.9", "errors"):
        table.add_column(title, justify="right", no_wrap=True)
    for mount in found:
        table.add_row(
            mount["reference"],
            mount["target"],
            mount["backend"],
            show.size(mount["size"]),
            show.size(mount["bytes_fetched"]),
            show.percent(mount["hit_rate"]),
            show.duration(mount["miss_p50_s"]),
            show.duration(mount["miss_p99_s"]),
            show.duration(mount["miss_p999_s"]),
            str(mount["read_errors"]),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
