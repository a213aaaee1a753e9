"""``pagein check REF``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from pagein.cli import show
from pagein.cli.options import json_option, platform_option
from pagein.cli.settings import Settings


@click.command()
@click.argument("reference", metavar="REF")
@click.option(
    "--deep", is_flag=True, help="Re-read and re-hash every sector; compare every file with SRC."
)
@platform_option
@json_option
@click.pass_obj
def command(
    settings: Settings, reference: str, platform: str | None, *, deep: bool, as_json: bool
) -> int:
    """Check the converted image REF. The exit code is 1 if anything is wrong.

    Without --deep, only the index and the metadata are fetched, and held against the format.
    """
    from pagein.daemon import checking

    found = settings.images.find(reference, platform=platform)
    structure = checking.check_structure(found)
    result: dict[str, Any] = {"reference": str(found.name), "structure": asdict(structure)}
    problems: list[str] = []
    compared = False
    if deep:
        with show.progress("checking") as update:
            report = checking.check_deep(settings.images, found, update)
        compared = report.differences is not None
        problems = [*report.bad, *(str(one) for one in report.differences or ())]
        result |= {"sectors": report.sectors, "compared": compared, "problems": problems}
    if as_json:
        show.as_json(result)
        return 1 if problems else 0
    click.echo(f"{found.name}: structure is right, {structure.inodes} inodes")
    for problem in problems[: checking.MOST_SHOWN]:
        click.echo(f"  {problem}")
    if deep:
        against = "compared with the source's layers" if compared else "not compared with a source"
        click.echo(f"{report.sectors} sectors re-hashed, {against}: {len(problems)} problems")
    return 1 if problems else 0
