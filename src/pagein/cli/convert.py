"""``pagein convert SRC [DST]``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagein.cli import show
from pagein.cli.optimize import as_values as as_optimized
from pagein.cli.optimize import tell as tell_optimized
from pagein.cli.options import hot_level_option, json_option, profile_option
from pagein.cli.settings import Settings

if TYPE_CHECKING:
    from pagein.build.publish import Published, PublishedImage


def as_values(published: Published) -> dict[str, Any]:
    """Return the result for JSON."""
    images = []
    for image in published.images:
        facts = asdict(image.converted)
        facts["artifact"] = str(image.converted.artifact)
        facts["index"] = str(image.converted.index)
        facts["packs"] = [
            {"digest": str(p.digest), "size": p.size, "layer": str(p.layer), "sent": p.sent}
            for p in image.converted.packs
        ]
        facts["stages"] = {str(stage): seconds for stage, seconds in facts["stages"].items()}
        facts["source"] = str(image.source)
        facts["platform"] = str(image.platform) if image.platform else None
        facts["optimized"] = as_optimized(image.optimized) if image.optimized else None
        images.append(facts)
    return {"images": images, "bound": str(published.bound) if published.bound else None}


def tell(image: PublishedImage) -> None:
    """Say in three lines what one image became."""
    converted = image.converted
    seconds = max(converted.seconds, 1e-9)
    platform = f" ({image.platform})" if image.platform else ""
    click.echo(f"{image.source}{platform} -> {converted.artifact}")
    click.echo(
        f"  {show.size(converted.content_size)} in {converted.files} files,"
        f" {show.duration(seconds)}, {show.size(converted.content_size / seconds)}/s"
    )
    sent = sum(pack.size for pack in converted.packs if pack.sent)
    click.echo(
        f"  {len(converted.packs)} packs of {show.size(converted.pack_size)}"
        f" ({show.size(sent)} sent), index of {show.size(converted.index_size)}"
    )
    if image.optimized is not None:
        tell_optimized(image.optimized)


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="[DST]", required=False)
@click.option("--tag", metavar="NAME", help="Store the artifact under a tag of its own, too.")
@click.option("--bind", is_flag=True, help="Rewrite SRC's tag as an index that lists the artifact.")
@click.option("--platform", metavar="OS/ARCH|all", help="Choose from an image index.")
@click.option("--sector-size", default="4MiB", show_default=True, metavar="SIZE",
              help="A power of two, 256KiB to 16MiB.")  # fmt: skip
@click.option("--level", default=3, show_default=True, help="zstd level, 1 to 22.")
@click.option("--jobs", default=0, metavar="N", help="Threads (default: one a core).")
@profile_option(required=False)
@hot_level_option
@json_option
@click.pass_obj
def command(
    settings: Settings,
    source: str,
    destination: str | None,
    tag: str | None,
    platform: str | None,
    sector_size: str,
    level: int,
    jobs: int,
    profiles: tuple[Path, ...],
    hot_level: int,
    *,
    bind: bool,
    as_json: bool,
) -> None:
    """Convert the image SRC and publish index, packs and artifact manifest.

    They go beside SRC, or to DST (docker://... or oci:DIR:TAG; its tag names the artifact). The
    source image is not touched. Run again, it sends only what is not there yet. With --profile the
    result is optimized at once: see `pagein optimize`.

    \b
    pagein convert registry:5000/app:v1
    pagein convert docker-archive:app.tar oci:converted:v1
    """
    from pagein.build.publish import publish
    from pagein.build.report import ConvertOptions
    from pagein.daemon.config import parse_size
    from pagein.daemon.conversion import CountedProgress
    from pagein.daemon.images import absolute_name
    from pagein.daemon.optimizing import read_profiles
    from pagein.errors import UsageError

    profile = read_profiles(profiles) if profiles else None
    images, node = settings.images, settings.images.node
    source_name = absolute_name(source)
    target_name = absolute_name(destination) if destination else source_name
    if bind and (destination is not None or source_name.tag is None):
        raise UsageError("--bind rewrites the tag of SRC: name SRC by tag, and no DST")
    place = images.place(source_name)
    with show.progress("converting") as update:
        published = publish(
            place,
            node.reference(source_name, place),
            node.writable(target_name),
            ConvertOptions(sector_size=parse_size(sector_size), level=level, jobs=jobs),
            platform=None if platform == "all" else node.platform(platform),
            tag=tag or (target_name.tag if destination else None),
            bind=source_name.tag if bind else None,
            progress=CountedProgress(update),
            profile=profile,
            hot_level=hot_level,
        )
    if as_json:
        show.as_json(as_values(published))
        return
    for image in published.images:
        tell(image)
    if published.bound is not None:
        click.echo(f"{source_name} is now the index {published.bound}")
