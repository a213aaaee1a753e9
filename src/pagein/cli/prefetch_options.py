"""Options that say what is fetched before it is read: for this command, settings of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import click

from pagein.cli.options import Command


def _changes(setting: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """Return a callback that puts an option's value in the place of a setting."""

    def change(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        del parameter
        if value is not None:
            context.obj.changes[setting] = value

    return change


def _hydrate(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    given = dict(word.partition("=")[::2] for word in value.replace(",", " ").split())
    unknown = set(given) - {"after", "rate"}
    if unknown:
        raise click.BadParameter(
            f"{min(unknown)!r} is neither after= nor rate=", context, parameter
        )
    context.obj.changes["hydrate_after"] = given.get("after", "0")
    if "rate" in given:
        context.obj.changes["hydrate_rate"] = given["rate"]


_OPTIONS: Final[tuple[Callable[[Command], Command], ...]] = (
    click.option(
        "--prefetch",
        type=click.Choice(["none", "hot", "all"]),
        expose_value=False,
        callback=_changes("prefetch"),
        help="Fetch unasked: nothing, the hot region (default), or all of the image.",
    ),
    click.option(
        "--prefetch-rate",
        metavar="SIZE",
        expose_value=False,
        callback=_changes("prefetch_rate"),
        help="Fetch the hot region at this many bytes a second at most.",
    ),
    click.option(
        "--hydrate",
        metavar="after=TIME,rate=SIZE",
        expose_value=False,
        callback=_hydrate,
        help="Fetch the rest, so long after the mount, at so many bytes a second.",
    ),
)


def prefetch_options(command: Command) -> Command:
    """Add the options, in the order that help shows them in."""
    return functools.reduce(lambda made, option: option(made), reversed(_OPTIONS), command)
