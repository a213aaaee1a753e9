"""``pagein bench REF [-- CMD ARG...]``."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from pagein.cli import show
from pagein.cli.options import json_option
from pagein.cli.settings import Settings


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--runs", type=click.IntRange(1, 100), default=3, show_default=True,
              help="Starts of each kind, in turn; medians are shown.")  # fmt: skip
@json_option
@click.argument("reference", metavar="REF")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD ARG...]")
@click.pass_obj
def command(
    settings: Settings, reference: str, arguments: tuple[str, ...], *, runs: int, as_json: bool
) -> None:
    """Measure cold starts of the converted image REF on this machine, to the first output.

    pagein with an empty cache, beside the classical way: fetch all layers, unpack them, run. Each
    start empties this machine's page cache, and the classical one needs room for the whole image
    below TMPDIR (default: /var/tmp). Whoever serves REF sets the speed of the network.

    \b
    pagein bench registry:5000/app:v1 -- python3 -c 'import app; print("up")'
    """
    from pagein.daemon.serve import check_root
    from pagein.runtime.resolve import find_runtime

    check_root()
    find_runtime()
    # Says at once that there is no such image, or that nobody has converted it.
    name = str(settings.images.find(reference).name)
    words = arguments[1:] if arguments[:1] == ("--",) else arguments
    seconds: dict[str, list[float]] = {"classical": [], "pagein": []}
    for number in range(runs):
        for kind in list(seconds)[:: 1 if number % 2 == 0 else -1]:
            with _scratch() as folder:
                seconds[kind].append(_start(kind, settings, name, words, folder))
            show.note(f"{kind}: {show.duration(seconds[kind][-1])}")
    if as_json:
        show.as_json({"reference": name, "command": list(words), "seconds": seconds})
        return
    for kind, values in seconds.items():
        click.echo(
            f"{kind:10} {show.duration(statistics.median(values))}"
            f" [{show.duration(min(values))} to {show.duration(max(values))}]"
        )
    slow, fast = (statistics.median(values) for values in seconds.values())
    click.echo(f"ratio      {slow / fast:.1f} x")


def _start(kind: str, settings: Settings, name: str, words: tuple[str, ...], folder: Path) -> float:
    """Start once with nothing at hand; return the seconds to the first output."""
    from pagein.testing.cold_start import drop_caches, time_start

    drop_caches()
    if kind == "classical":
        program = [sys.executable, "-m", "pagein.testing.classical_start", name]
        return time_start([*program, str(folder / "classical"), *words]).seconds
    program = [sys.executable, "-m", "pagein"]
    if settings.config_file is not None:
        program += ["--config", str(settings.config_file)]
    for host in settings.plain_http:
        program += ["--registry-http", host]
    program += ["run", "--rm", name, *(["--", *words] if words else [])]
    return time_start(program, {"PAGEIN_ROOT": str(folder / "root")}).seconds


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """Yield an empty folder; whatever is mounted below it goes with it."""
    from pagein.build.scratch import scratch_folder
    from pagein.device.mount import mount_table, unmount
    from pagein.errors import DeviceError

    parent = Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108
    with scratch_folder(parent) as folder:
        try:
            yield folder
        finally:
            inside = [one.target for one in mount_table() if one.target.startswith(f"{folder}/")]
            for target in reversed(inside):
                with contextlib.suppress(DeviceError):
                    unmount(Path(target), lazy=True)
