"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
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
