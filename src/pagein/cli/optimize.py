"""``pagein optimize REF --profile FILE``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagein.cli import show
from pagein.cli.options import hot_level_option, json_option, platform_option, profile_option
from pagein.cli.settings import Settings

if TYPE_CHECKING:
    from pagein.build.report import Optimized


def as_values(optimized: Optimized) -> dict[str, Any]:
    """Return the result for JSON."""
    facts = asdict(optimized)
    for name in ("artifact", "optimized_from", "profile", "index"):
        facts[name] = str(getattr(optimized, name))
    return facts


def tell(optimized: Optimized) -> None:
    """Say in a few lines what was made."""
    match = optimized.match
    click.echo(f"{optimized.optimized_from} -> {optimized.artifact}")
    click.echo(
        f"  profile: {match.files} files, {show.size(match.bytes_taken)} taken; skipped"
        f" {match.absent} files that are not there, {match.changed} of another size,"
        f" {show.size(match.bytes_skipped)}"
    )
    click.echo(
        f"  hot region of {show.size(optimized.hot_size)},"
        f" {show.size(optimized.hot_stored)} stored;"
        f" {optimized.whole_sectors} of {optimized.hot_sectors} sectors are layer data"
    )
    click.echo(
        f"  metadata of {show.size(optimized.metadata_size)}"
        f" (before: {show.size(optimized.plain_metadata_size)}),"
        f" index of {show.size(optimized.index_size)}"
        f" (before: {show.size(optimized.plain_index_size)})"
    )
    made = "was there already" if optimized.was_there else f"{show.duration(optimized.seconds)}"
    click.echo(
        f"  {made}, {show.size(optimized.read_size)} read, {show.size(optimized.sent_size)} sent"
    )


@click.command()
@click.argument("reference", metavar="REF")
@profile_option(required=True)
@hot_level_option
@click.option("--tag", metavar="NAME", help="Store the artifact under a tag of its own, too.")
@click.option("--bind", is_flag=True, help="Rewrite REF's tag as an index that lists the artifact.")
@click.option("--jobs", default=0, metavar="N", help="Threads (default: one a core).")
@platform_option
@json_option
@click.pass_obj
def command(
    settings: Settings,
    reference: str,
    profiles: tuple[Path, ...],
    hot_level: int,
    tag: str | None,
    jobs: int,
    platform: str | None,
    *,
    bind: bool,
    as_json: bool,
) -> None:
    """Publish the converted image REF with a hot region: what a recorded start reads, in order.

    A new artifact comes beside the one that is there, and is found before it. Only copies, index
    and manifest are sent; the image's other data stays as it is. Files that the profile names and
    the image has not, or has in another size, are skipped.

    \b
    pagein record registry:5000/app:v1 -o app.profile -- python3 -c 'print(40 + 2)'
    pagein optimize registry:5000/app:v1 --profile app.profile
    """
    from pagein.build.report import ConvertOptions
    from pagein.daemon.conversion import CountedProgress
    from pagein.daemon.optimizing import optimize_image, read_profiles

    profile = read_profiles(profiles)
    with show.progress("optimizing") as update:
        done = optimize_image(
            settings.images.node,
            reference,
            profile,
            ConvertOptions(level=hot_level, jobs=jobs),
            platform=platform,
            tag=tag,
            bind=bind,
            progress=CountedProgress(update),
        )
    if as_json:
        bound = str(done.bound) if done.bound else None
        hidden_by = str(done.hidden_by) if done.hidden_by else None
        show.as_json(as_values(done.optimized) | {"bound": bound, "hidden_by": hidden_by})
        return
    tell(done.optimized)
    if done.bound is not None:
        click.echo(f"{reference} is now the index {done.bound}")
    if done.hidden_by is not None:
        show.note(
            f"{done.hidden_by} is still what is found for {reference};"
            " --bind puts the new one into its place"
        )
