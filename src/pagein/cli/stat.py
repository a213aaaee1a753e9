"""``pagein stat REF PATH``."""

from __future__ import annotations

import os

import click

from pagein.cli import show
from pagein.cli.ls import describe, mode_text, time_text
from pagein.cli.options import json_option, platform_option
from pagein.cli.settings import Settings


@click.command()
@click.argument("reference", metavar="REF")
@click.argument("path")
@platform_option
@json_option
@click.pass_obj
def command(
    settings: Settings, reference: str, path: str, platform: str | None, *, as_json: bool
) -> None:
    """Show what the image REF knows of the file PATH (a symlink itself, not what it points to)."""
    with settings.images.files(reference, platform=platform) as files:
        inode = files.lookup(path, follow=False)
        entry = describe(files, os.fsencode(path), inode)
        xattrs = {
            os.fsdecode(name): value.hex() for name, value in files.reader.xattrs(inode).items()
        }
    entry["inode"] = inode.nid
    entry["xattrs"] = xattrs
    if as_json:
        show.as_json(entry)
        return
    arrow = f" -> {entry['target']}" if "target" in entry else ""
    click.echo(f"  File: {entry['name']}{arrow}")
    click.echo(f"  Size: {inode.size:<15} Type: {entry['type'].replace('_', ' ')}")
    click.echo(f" Inode: {inode.nid:<15} Links: {inode.nlink}")
    click.echo(f"Access: ({entry['mode']}/{mode_text(inode)})  Uid: {inode.uid}  Gid: {inode.gid}")
    click.echo(f"Modify: {time_text(inode.mtime_ns)}.{inode.mtime_ns % 10**9:09d} UTC")
    if "device" in entry:
        click.echo(f"Device: {inode.device[0]}, {inode.device[1]}")
    for name, value in sorted(xattrs.items()):
        click.echo(f" Xattr: {name}=0x{value}")
