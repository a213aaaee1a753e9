"""``pagein profile show|merge|diff|push|pull``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagein.cli import show
from pagein.cli.options import json_option, platform_option
from pagein.cli.settings import Settings

if TYPE_CHECKING:
    from pagein.format.profile import Profile

_FILE = click.Path(dir_okay=False, path_type=Path)
_SLICES = 10
_output = click.option(
    "--output",
    "-o",
    type=_FILE,
    required=True,
    metavar="FILE",
    help="Write the profile here.",
)
_top = click.option(
    "--top", type=click.IntRange(0), default=10, show_default=True, help="Files that are listed."
)


@click.group()
def command() -> None:
    """Look at profiles, which say what a start reads; merge them; keep them beside the image."""


@command.command(name="show")
@click.argument("file", type=_FILE, metavar="FILE")
@_top
@json_option
def show_profile(file: Path, top: int, *, as_json: bool) -> None:
    """Show what a profile has: how much of which files, and when."""
    from pagein.store.profiles import load_profile

    facts = _facts(load_profile(file), top)
    if as_json:
        show.as_json(facts)
        return
    words = " ".join(facts["command"]) or "-"
    click.echo(f"image      {show.plain(facts['reference'])}")
    click.echo(f"source     {facts['source']}")
    click.echo(f"command    {show.plain(words)}")
    click.echo(f"recorded   {facts['recorded']}, {show.duration(facts['seconds'])}")
    click.echo(f"read-ahead {facts['read_ahead_kb']} KiB")
    click.echo(
        f"touched    {show.size(facts['bytes'])} of {facts['files']} files,"
        f" in {facts['touches']} ranges"
    )
    for one in facts["timeline"]:
        click.echo(f"  by {one['ms']:>7} ms  {show.size(one['bytes']):>11}")
    for one in facts["biggest"]:
        size = show.size(one["size"])
        click.echo(f"  {show.size(one['touched']):>11} of {size:>11}  {one['name']}")


def _facts(profile: Profile, top: int) -> dict[str, Any]:
    touched = [0] * len(profile.files)
    last_ms = max((touch.at_ms for touch in profile.touches), default=0)
    ends = [-(-last_ms * part // _SLICES) for part in range(1, _SLICES + 1)]
    for touch in profile.touches:
        touched[touch.file] += touch.length
    biggest = sorted(zip(touched, profile.files, strict=True), key=lambda one: -one[0])[:top]
    return {
        "reference": profile.reference,
        "source": str(profile.source),
        "command": list(profile.command),
        "recorded": profile.recorded,
        "seconds": profile.seconds,
        "read_ahead_kb": profile.read_ahead_kb,
        "bytes": profile.touched,
        "files": len(profile.files),
        "touches": len(profile.touches),
        "timeline": [
            {"ms": end, "bytes": sum(t.length for t in profile.touches if t.at_ms <= end)}
            for end in dict.fromkeys(ends)
        ],
        "biggest": [
            {"name": file.name, "size": file.size, "touched": count} for count, file in biggest
        ],
    }


@command.command()
@click.argument("files", nargs=-1, required=True, type=_FILE, metavar="FILE...")
@_output
def merge(files: tuple[Path, ...], output: Path) -> None:
    """Make one profile of several: what any of the starts touched, in the order of first touch."""
    from pagein.format.profile_merge import merge_profiles
    from pagein.store.profiles import load_profile

    _save(output, merge_profiles([load_profile(file) for file in files]), of=len(files))


@command.command()
@click.argument("a", type=_FILE, metavar="A")
@click.argument("b", type=_FILE, metavar="B")
@_top
@json_option
def diff(a: Path, b: Path, top: int, *, as_json: bool) -> None:
    """Compare two profiles: bytes that only A, only B, or both touch, also by file.

    A file that has another size in B counts as two files.
    """
    from pagein.format.profile import ProfiledFile
    from pagein.format.profile_ranges import compare_profiles
    from pagein.store.profiles import load_profile

    found = compare_profiles(load_profile(a), load_profile(b))
    sums = {name: sum(getattr(one, name) for one in found) for name in ("only_a", "only_b", "both")}
    differing = sorted(found, key=lambda one: -(one.only_a + one.only_b))
    shown: list[dict[str, Any]] = [
        {
            "name": ProfiledFile.of(one.path, one.size).name,
            "size": one.size,
            "only_a": one.only_a,
            "only_b": one.only_b,
            "both": one.both,
        }
        for one in differing[:top]
        if one.only_a or one.only_b
    ]
    if as_json:
        show.as_json(sums | {"files": shown})
        return
    for name, title in (("only_a", "only in A"), ("only_b", "only in B"), ("both", "in both")):
        click.echo(f"{title}  {show.size(sums[name]):>11}")
    for file in shown:
        parts = (show.size(file[name]) for name in ("only_a", "only_b", "both"))
        click.echo("  ".join(f"{part:>11}" for part in parts) + f"  {file['name']}")


@command.command()
@click.argument("file", type=_FILE, metavar="FILE")
@click.argument("reference", metavar="REF")
@platform_option
@click.pass_obj
def push(settings: Settings, file: Path, reference: str, platform: str | None) -> None:
    """Put a profile beside the image REF, for all who start that image."""
    from pagein.daemon.profiles import Profiles
    from pagein.store.profiles import load_profile

    digest = Profiles(settings.images).push_to(reference, platform, load_profile(file))
    click.echo(str(digest))


@command.command()
@click.argument("reference", metavar="REF")
@_output
@click.option(
    "--read-ahead",
    type=click.IntRange(0, 16384),
    metavar="KiB",
    help="Take only what was recorded with this one.",
)
@platform_option
@click.pass_obj
def pull(
    settings: Settings, reference: str, output: Path, read_ahead: int | None, platform: str | None
) -> None:
    """Merge the profiles that were pushed beside the image REF into one."""
    from pagein.daemon.profiles import Profiles
    from pagein.errors import NotFoundError
    from pagein.format.profile_merge import merge_profiles

    found = Profiles(settings.images).pull(
        reference, platform, lambda line: show.note(f"left out: {line}")
    )
    wanted = [one for one in found if read_ahead in (None, one.read_ahead_kb)]
    if not wanted:
        raise NotFoundError(f"no profile was recorded with a read-ahead of {read_ahead} KiB")
    _save(output, merge_profiles(wanted), of=len(wanted))


def _save(output: Path, profile: Profile, *, of: int = 1) -> None:
    from pagein.store.profiles import save_profile

    save_profile(output, profile)
    count = f"{of} profiles, " if of > 1 else ""
    show.note(f"{count}{show.size(profile.touched)} of {len(profile.files)} files, in {output}")
