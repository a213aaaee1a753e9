"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]

json_option: Callable[[Command], Command] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON."
)
platform_option: Callable[[Command], Command] = click.option(
    "--platform",
    metavar="OS/ARCH[/VARIANT]",
    help="Choose from an image index (default: this machine's).",
)
backend_option: Callable[[Command], Command] = click.option(
    "--backend",
    type=click.Choice(["auto", "fuse", "loop"]),
    default="auto",
    show_default=True,
    help="How the device is shown to the kernel.",
)
hot_level_option: Callable[[Command], Command] = click.option(
    "--hot-level",
    type=click.IntRange(1, 22),
    default=3,
    show_default=True,
    metavar="N",
    help="zstd level of the hot region, 1 to 22.",
)


def profile_option(*, required: bool) -> Callable[[Command], Command]:
    """Return the option for one profile or several; the command gets ``profiles``."""
    return click.option(
        "--profile",
        "profiles",
        multiple=True,
        required=required,
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="What `pagein record` wrote; several are merged.",
    )
