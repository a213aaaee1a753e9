"""``pagein ls REF PATH``."""

from __future__ import annotations

import datetime
import os
import stat
from typing import TYPE_CHECKING, Any

import click

from pagein.cli import show
from pagein.cli.options import json_option, platform_option
from pagein.cli.settings import Settings

if TYPE_CHECKING:
    from pagein.format.erofs.read import Inode
    from pagein.store.files import ImageFiles

_TYPE_BITS = {1: stat.S_IFREG, 2: stat.S_IFDIR, 3: stat.S_IFCHR, 4: stat.S_IFBLK,
              5: stat.S_IFIFO, 6: stat.S_IFSOCK, 7: stat.S_IFLNK}  # fmt: skip


def mode_text(inode: Inode) -> str:
    """Write type and permissions as ``ls -l`` does."""
    return stat.filemode(_TYPE_BITS[inode.kind] | inode.mode)


def time_text(mtime_ns: int) -> str:
    """Write a time in UTC; years that no calendar knows stay a number of seconds."""
    try:
        moment = datetime.datetime.fromtimestamp(mtime_ns // 10**9, tz=datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return f"@{mtime_ns // 10**9}"
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def describe(files: ImageFiles, name: bytes, inode: Inode) -> dict[str, Any]:
    """Return one file as values for JSON."""
    entry: dict[str, Any] = {
        "name": os.fsdecode(name),
        "type": inode.kind.name.lower(),
        "mode": f"{inode.mode:04o}",
        "uid": inode.uid,
        "gid": inode.gid,
        "size": inode.size,
        "links": inode.nlink,
        "mtime_ns": inode.mtime_ns,
    }
    if stat.S_ISLNK(_TYPE_BITS[inode.kind]):
        entry["target"] = os.fsdecode(files.reader.readlink(inode))
    if inode.kind in (3, 4):
        entry["device"] = list(inode.device)
    return entry


def long_line(entry: dict[str, Any], inode: Inode) -> str:
    """Write one file as ``ls -ln`` does."""
    arrow = f" -> {entry['target']}" if "target" in entry else ""
    size = ", ".join(map(str, inode.device)) if "device" in entry else str(inode.size)
    return (
        f"{mode_text(inode)} {inode.nlink:>3} {inode.uid:>5} {inode.gid:>5} {size:>12} "
        f"{time_text(inode.mtime_ns)} {entry['name']}{arrow}"
    )


@click.command()
@click.argument("reference", metavar="REF")
@click.argument("path", default="/")
@click.option("-l", "--long", is_flag=True, help="Show types, modes, owners, sizes and times.")
@platform_option
@json_option
@click.pass_obj
def command(
    settings: Settings,
    reference: str,
    path: str,
    platform: str | None,
    *,
    long: bool,
    as_json: bool,
) -> None:
    """List PATH (default: the root) in the image REF, without mounting it.

    Only the image's metadata is fetched.

    \b
    pagein ls -l registry:5000/app:v1 /usr/bin
    """
    with settings.images.files(reference, platform=platform) as files:
        inode = files.lookup(path)
        if inode.kind == 2:
            listed = [(n, i) for n, i in files.reader.iterdir(inode) if n not in (b".", b"..")]
        else:
            listed = [(os.fsencode(path), inode)]
        entries = [(describe(files, name, child), child) for name, child in listed]
    if as_json:
        show.as_json([entry for entry, _ in entries])
        return
    for entry, child in entries:
        line = long_line(entry, child) if long else entry["name"]
        click.echo(os.fsencode(line))
