"""Options of the commands that run a container."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pagein.cli.options import Command

if TYPE_CHECKING:
    from pagein.runtime.spec import RunOptions

_OPTIONS: Final[tuple[Callable[[Command], Command], ...]] = (
    click.option(
        "--env",
        "-e",
        "env",
        multiple=True,
        metavar="K=V",
        help="Set a variable; K alone passes ours on.",
    ),
    click.option(
        "--volume", "-v", "volumes", multiple=True, metavar="SRC:DST[:ro]", help="Bind a host path."
    ),
    click.option("--workdir", "-w", metavar="DIR", help="Start in this directory."),
    click.option(
        "--user", "-u", metavar="USER[:GROUP]", help="Run as this user, by name or number."
    ),
    click.option(
        "--net",
        type=click.Choice(["host", "none"]),
        default="host",
        show_default=True,
        help="The host's network, or none.",
    ),
    click.option("--hostname", metavar="NAME", help="Host name inside, with --net none."),
    click.option("--entrypoint", metavar="CMD", help="Replace the image's entrypoint."),
    click.option(
        "--tty/--no-tty", "tty", default=None, help="Default: a terminal when stdin is one."
    ),
    click.option(
        "--runtime", type=click.Choice(["runc", "crun"]), help="Default: the first installed."
    ),
)


def container_options(command: Command) -> Command:
    """Add the options, in the order that help shows them in."""
    return functools.reduce(lambda made, option: option(made), reversed(_OPTIONS), command)


def run_options(arguments: tuple[str, ...], options: dict[str, Any]) -> RunOptions:
    """Turn the command line's words into values. Raises UsageError."""
    import shlex

    from pagein.daemon.containers import container_name, wants_tty
    from pagein.runtime.spec import RunOptions, Volume

    here = str(Path.cwd())
    entrypoint = options["entrypoint"]
    return RunOptions(
        name=container_name(options.get("name")),
        args=arguments[1:] if arguments[:1] == ("--",) else arguments,
        entrypoint=None if entrypoint is None else tuple(shlex.split(entrypoint)),
        env=options["env"],
        volumes=tuple(Volume.parse(text, directory=here) for text in options["volumes"]),
        workdir=options["workdir"],
        user=options["user"],
        hostname=options["hostname"],
        net=options["net"],
        tty=wants_tty(options["tty"]),
    )
