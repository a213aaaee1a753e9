"""``pagein status``."""

from __future__ import annotations

import sys

import click

from pagein.cli import show
from pagein.cli.options import json_option
from pagein.cli.settings import Settings


@click.command()
@json_option
@click.pass_obj
def command(settings: Settings, *, as_json: bool) -> None:
    """List the mounts of this machine: bytes fetched, hit rate and miss latency."""
    from pagein.daemon.client import status

    told = status(settings.paths)
    if as_json:
        show.as_json(told)
        return
    found = told["mounts"]
    if "daemon" in told:
        daemon = told["daemon"]
        memory = show.size(daemon["resident_bytes"])
        click.echo(f"daemon {daemon['pid']}: {len(told['images'])} images, {memory} of memory")
        found += [
            image | {"target": "(containerd)"}
            for image in told["images"]
            if "snapshots" in image["users"]
        ]
        for lost in daemon["lost"]:
            for pid, target in lost["users"]:
                click.echo(f"lost: {target} of process {pid} has no server; restart it")
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
