"""``pagein run REF [-- CMD ARG...]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pagein.cli import show
from pagein.cli.container_options import container_options, run_options
from pagein.cli.options import backend_option, platform_option
from pagein.cli.prefetch_options import prefetch_options
from pagein.cli.settings import Settings

if TYPE_CHECKING:
    from pagein.device.backends import Backend


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--rm", "remove", is_flag=True, help="Forget what the container wrote, when it ends.")
@click.option("--name", metavar="NAME", help="Name the container, and keep what it writes.")
@container_options
@prefetch_options
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
    backend: Backend,
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
