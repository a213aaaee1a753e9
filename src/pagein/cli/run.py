"""``pagein run REF [-- CMD ARG...]``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagein.cli import show
from pagein.cli.options import backend_option, platform_option
from pagein.cli.settings import Settings

if TYPE_CHECKING:
    from pagein.runtime.spec import RunOptions


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--rm", "remove", is_flag=True, help="Forget what the container wrote, when it ends.")
@click.option(
    "--env",
    "-e",
    "env",
    multiple=True,
    metavar="K=V",
    help="Set a variable; K alone passes ours on.",
)
@click.option(
    "--volume", "-v", "volumes", multiple=True, metavar="SRC:DST[:ro]", help="Bind a host path."
)
@click.option("--workdir", "-w", metavar="DIR", help="Start in this directory.")
@click.option("--user", "-u", metavar="USER[:GROUP]", help="Run as this user, by name or number.")
@click.option("--net", type=click.Choice(["host", "none"]), default="host", show_default=True,
              help="The host's network, or none.")  # fmt: skip
@click.option("--name", metavar="NAME", help="Name the container, and keep what it writes.")
@click.option("--hostname", metavar="NAME", help="Host name inside, with --net none.")
@click.option("--entrypoint", metavar="CMD", help="Replace the image's entrypoint.")
@click.option("--tty/--no-tty", "tty", default=None, help="Default: a terminal when stdin is one.")
@click.option(
    "--runtime", type=click.Choice(["runc", "crun"]), help="Default: the first installed."
)
@backend_option
@platform_option
@click.argument("reference", metavar="REF")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD ARG...]")
@click.pass_obj
def command(
    settings: Settings,
    /,
    reference: str,
    arguments: tuple[str, ...],
    backend: str,
    platform: str | None,
    runtime: str | None,
    **options: Any,
) -> int:
    """Run a command in a container from the image REF; the exit code is the command's.

    Its data comes in as it is read. The file system is writable; what is written is gone at the
    end, or with --name kept for the next run of that name (unless --rm).

    \b
    pagein run registry:5000/app:v1 -- python3 -c 'print(40 + 2)'
    """
    from pagein.daemon import mounts
    from pagein.daemon.containers import ContainerOptions, run_image, sweep_bundles
    from pagein.daemon.serve import check_root
    from pagein.runtime.resolve import find_runtime

    wanted = ContainerOptions(
        run=run_options(arguments, options),
        keep=options["name"] is not None and not options["remove"],
        backend=backend,
        runtime=runtime,
    )
    check_root()
    find_runtime(runtime)
    mounts.sweep(settings.paths)
    sweep_bundles(settings.paths)
    with show.progress("converting") as update:
        found = settings.images.require(
            reference, platform=platform, progress=update, say=show.note
        )
    return run_image(settings.images, found, wanted)


def run_options(arguments: tuple[str, ...], options: dict[str, Any]) -> RunOptions:
    """Turn the command line's words into values. Raises UsageError."""
    import shlex

    from pagein.daemon.containers import container_name, wants_tty
    from pagein.runtime.spec import RunOptions, Volume

    here = str(Path.cwd())
    entrypoint = options["entrypoint"]
    return RunOptions(
        name=container_name(options["name"]),
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
