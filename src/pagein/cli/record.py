"""``pagein record REF -o FILE [-- CMD ARG...]``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagein.cli import show
from pagein.cli.container_options import container_options, run_options
from pagein.cli.options import backend_option, platform_option
from pagein.cli.settings import Settings

if TYPE_CHECKING:
    from pagein.daemon.record import RecordOptions
    from pagein.daemon.record_until import Until

_LONGEST_S = 24 * 3600.0


@click.command()
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the profile here.",
)
@click.option("--push", is_flag=True, help="Put the profile beside the image, too.")
@click.option(
    "--read-ahead",
    type=click.IntRange(0, 16384),
    default=0,
    show_default=True,
    metavar="KiB",
    help="The kernel's read-ahead meanwhile; a start wants the same one.",
)
@click.option(
    "--until", metavar="URL", help="Stop when this address answers 2xx, asked every 100 ms."
)
@click.option(
    "--until-log", metavar="REGEX", help="Stop at a line of the output in which this is found."
)
@click.option("--for", "duration", metavar="TIME", help="Stop after 500ms, 30s, 2m.")
@container_options
@backend_option
@platform_option
@click.argument("reference", metavar="REF")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD ARG...]")
@click.pass_obj
def command(
    settings: Settings,
    /,
    reference: str,
    output: Path | None,
    platform: str | None,
    *,
    push: bool,
    **options: Any,
) -> int:
    """Run a command in a container from the image REF, and write which parts of it were read.

    The profile says so in the order of first touch; pagein optimize makes a start of it that reads
    ahead. It is written when the command ends, or when --until, --until-log or --for ends the
    recording: then the container is stopped, and the exit code is 0. If the command ends before
    that, there is no profile, and the exit code is 1. Ctrl-C ends a recording and keeps it.

    The words of the command are part of the profile; its environment is not.

    \b
    pagein record registry:5000/app:v1 -o app.profile -- python3 -c 'print(40 + 2)'
    """
    from pagein.daemon import mounts
    from pagein.daemon.containers import sweep_bundles
    from pagein.daemon.profiles import Profiles
    from pagein.daemon.record import record_image
    from pagein.daemon.serve import check_root
    from pagein.runtime.resolve import find_runtime
    from pagein.store.profiles import save_profile

    check_output(output, push=push)
    wanted = _record_options(options)
    check_root()
    find_runtime(options["runtime"])
    profiles = Profiles(settings.images)
    if push:
        profiles.check_writable(reference)
    mounts.sweep(settings.paths)
    sweep_bundles(settings.paths)
    with show.progress("converting") as update:
        found = settings.images.require(
            reference, platform=platform, progress=update, say=show.note
        )
    recorded = record_image(settings.images, found, wanted)
    profile = recorded.profile
    if profile is None:
        show.note("the command could not start; no profile was written")
        return recorded.code
    if recorded.is_cut:
        show.note("there were more reads than are noted; the profile has the first ones")
    if output is not None:
        save_profile(output, profile)
        show.note(
            f"{show.size(profile.touched)} of {len(profile.files)} files in"
            f" {show.duration(profile.seconds)}, in {output}"
        )
    if push:
        show.note(f"pushed beside the image as {profiles.push(found, profile)}")
    return recorded.code


def check_output(output: Path | None, *, push: bool) -> None:
    """Raise UsageError where a profile would go nowhere: better before a start than after."""
    from pagein.errors import UsageError

    if output is None and not push:
        raise UsageError("where should the profile go?", hint="-o FILE, or --push")
    if output is not None and not output.absolute().parent.is_dir():
        raise UsageError(f"{output.parent} is not a directory", hint=f"mkdir -p {output.parent}")


def _record_options(options: dict[str, Any]) -> RecordOptions:
    from pagein.daemon.containers import ContainerOptions
    from pagein.daemon.record import RecordOptions
    from pagein.errors import UsageError

    until = _until(options["until"], options["until_log"], options["duration"])
    if options["tty"] and until.log is not None:
        raise UsageError("the lines of a terminal cannot be looked at", hint="leave out --tty")
    if until.url is not None and options["net"] == "none":
        raise UsageError("nothing in a container with --net none can be asked")
    if until and options["tty"] is None:
        options["tty"] = False  # nobody types into what is going to be stopped
    container = ContainerOptions(
        run=run_options(options["arguments"], options),
        keep=False,
        backend=options["backend"],
        runtime=options["runtime"],
    )
    return RecordOptions(container, until, options["read_ahead"])


def _until(url: str | None, log: str | None, duration: str | None) -> Until:
    from urllib.parse import urlsplit

    from pagein.daemon.record_until import Until
    from pagein.errors import UsageError

    if url is not None:
        try:
            parts = urlsplit(url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            is_address = False
        if not is_address:
            raise UsageError(f"not an address: {url!r}", hint="http://127.0.0.1:8000/health")
    try:
        pattern = None if log is None else re.compile(log.encode())
    except re.error as error:
        raise UsageError(f"not a regular expression: {log!r}: {error}") from None
    return Until(url, pattern, None if duration is None else parse_duration(duration))


def parse_duration(text: str) -> float:
    """Read ``500ms``, ``30s``, ``2m`` or ``1h`` as seconds. Raises UsageError."""
    from pagein.errors import UsageError
    from pagein.store import hosts

    seconds = hosts.parse_duration(text)
    if not 0 < seconds <= _LONGEST_S:
        raise UsageError(f"not a time to record: {text!r}", hint="500ms, 30s or 2m; at most 24h")
    return seconds
