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
    from pagein.build.base import BaseWish
    from pagein.build.publish import Published, PublishedImage
    from pagein.build.report import Converted, PackReport
    from pagein.daemon.wiring import Node
    from pagein.types import ImageName


def as_values(published: Published) -> dict[str, Any]:
    """Return the result for JSON."""
    from pagein.build.report import Reused

    images = []
    for image in published.images:
        facts = asdict(image.converted)
        facts["artifact"] = str(image.converted.artifact)
        facts["index"] = str(image.converted.index)
        facts["packs"] = [_pack(pack) for pack in image.converted.packs]
        facts["reused"] = isinstance(image.converted, Reused)
        if isinstance(image.converted, Reused):
            plain = image.converted.optimized_from
            facts["optimized_from"] = str(plain) if plain else None
        else:
            facts["stages"] = {str(s): seconds for s, seconds in image.converted.stages.items()}
        facts["source"] = str(image.source)
        facts["platform"] = str(image.platform) if image.platform else None
        facts["optimized"] = as_optimized(image.optimized) if image.optimized else None
        images.append(facts)
    return {"images": images, "bound": str(published.bound) if published.bound else None}


def _pack(pack: PackReport) -> dict[str, Any]:
    layer = str(pack.layer) if pack.layer else None
    return {"digest": str(pack.digest), "size": pack.size, "layer": layer, "sent": pack.sent}


def tell(image: PublishedImage) -> None:
    """Say in three lines what one image became."""
    from pagein.build.report import Reused

    converted = image.converted
    platform = f" ({image.platform})" if image.platform else ""
    click.echo(f"{image.source}{platform} -> {converted.artifact}")
    if isinstance(converted, Reused):
        click.echo("  already converted; --force converts again")
    else:
        _tell_converted(converted)
    if image.optimized is not None:
        tell_optimized(image.optimized)


def _tell_converted(converted: Converted) -> None:
    seconds = max(converted.seconds, 1e-9)
    click.echo(
        f"  {show.size(converted.content_size)} in {converted.files} files,"
        f" {show.duration(seconds)}, {show.size(converted.content_size / seconds)}/s"
    )
    sent = sum(pack.size for pack in converted.packs if pack.sent)
    click.echo(
        f"  {len(converted.packs)} packs of {show.size(converted.pack_size)}"
        f" ({show.size(sent)} sent), index of {show.size(converted.index_size)}"
    )
    if converted.reused_size:
        click.echo(f"  {show.size(converted.reused_size)} of it are sectors of an earlier artifact")


def _wish(node: Node, bases: tuple[str, ...], target: ImageName) -> BaseWish:
    """Return what the options say: the bases named, none, or the version before."""
    from pagein.build.base import NamedBase, PreviousBase
    from pagein.daemon.images import absolute_name

    if not bases:
        return PreviousBase(target.tag)
    named = []
    for name in (absolute_name(base) for base in bases if base != "none"):
        place = node.repository(name)
        named.append(NamedBase(place, node.reference(name, place)))
    return tuple(named)


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="[DST]", required=False)
@click.option("--tag", metavar="NAME", help="Store the artifact under a tag of its own, too.")
@click.option("--bind", is_flag=True, help="Rewrite SRC's tag as an index that lists the artifact.")
@click.option("--platform", metavar="OS/ARCH|all", help="Choose from an image index.")
@click.option("--base", "bases", metavar="REF|none", multiple=True,
              help="Store no sector again that the artifact of REF has; may be given several times."
              " Default: the version before, if DST has one.")  # fmt: skip
@click.option("--force", is_flag=True, help="Convert also what is converted already.")
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
    bases: tuple[str, ...],
    sector_size: str,
    level: int,
    jobs: int,
    profiles: tuple[Path, ...],
    hot_level: int,
    *,
    bind: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Convert the image SRC and publish index, packs and artifact manifest.

    They go beside SRC, or to DST (docker://... or oci:DIR:TAG; its tag names the artifact). The
    source image is not touched. What is converted already is not converted again; of a new
    version only the sectors that changed are sent. With --profile the result
    is optimized at once: see `pagein optimize`.

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
            base=_wish(node, bases, target_name),
            force=force,
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
