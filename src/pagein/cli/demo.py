"""``pagein demo [IMAGE] [-- CMD ARG...]``."""

from __future__ import annotations

import contextlib
import errno
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pagein.cli import show
from pagein.cli.settings import Settings
from pagein.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from pagein.store.layout import LayoutRepository
    from pagein.testing.cold_start import CountingLink

_BITS_PER_S: Final = 200e6
_LATENCY_S: Final = 0.005
_TAG: Final = "latest"
_PIECE: Final = 1 << 20
_CONFIG_LIMIT: Final = 4 << 20


class _WithCommand(click.Command):
    """Takes the words after ``--`` for the command, also where IMAGE is left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words before ``--``; the others are nobody's options, and no IMAGE."""
        place = args.index("--") if "--" in args else len(args)
        left = super().parse_args(ctx, args[:place])
        ctx.params["arguments"] += tuple(args[place + 1 :])
        return left


@click.command(cls=_WithCommand)
@click.argument("image", required=False, metavar="[IMAGE]")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD ARG...]")
@click.option("--runs", type=click.IntRange(1, 100), default=1, show_default=True,
              help="Starts of each kind, in turn; medians are shown.")  # fmt: skip
@click.pass_obj
def command(
    settings: Settings, image: str | None, arguments: tuple[str, ...], *, runs: int
) -> None:
    """Show the whole idea on this machine: convert an image, start it lazily, and compare.

    Without IMAGE, one of a few hundred MB is made of this Python and a few wheels. Both starts have
    a cold page cache and the same emulated link: 200 Mbit/s, 5 ms.

    \b
    pagein demo
    pagein demo --runs 5 registry:5000/app:v1 -- python3 -c 'import app; print("up")'
    """
    from pagein.build.scratch import scratch_folder, unwinding_on_sigterm

    _check_machine()
    with (
        unwinding_on_sigterm(),
        scratch_folder(Path(os.environ.get("TMPDIR") or "/var/tmp")) as folder,  # noqa: S108
        contextlib.ExitStack() as at_end,
    ):
        at_end.callback(_unmount_below, folder)
        demo = _Demo(folder)
        if image is None:
            demo.build()
        else:
            demo.copy(settings, image)
        if arguments:
            demo.arguments = arguments
        demo.convert()
        demo.compare(runs)


def _check_machine() -> None:
    """Say in one line what is missing. Raises what `pagein run` would, before any work is done."""
    from pagein.runtime.resolve import find_runtime

    if os.geteuid() != 0:
        raise DeviceError(
            "the demo mounts file systems and runs containers, which needs root",
            errno=errno.EPERM,
            hint="sudo pagein demo",
        )
    find_runtime()
    if not Path("/dev/fuse").exists():
        raise DeviceError("there is no /dev/fuse", errno=errno.ENODEV, hint="modprobe fuse")
    if not _kernel_knows("erofs"):
        raise DeviceError(
            "this kernel has no EROFS",
            errno=errno.ENODEV,
            hint="a kernel with CONFIG_EROFS_FS, or the package with its extra modules",
        )


def _kernel_knows(kind: str) -> bool:
    listed = Path("/proc/filesystems")
    if kind in listed.read_text().split():
        return True
    with contextlib.suppress(OSError):
        subprocess.run(["modprobe", "-q", kind], check=False, capture_output=True)
    return kind in listed.read_text().split()


def _unmount_below(folder: Path) -> None:
    """Let no mount below ``folder`` stay, though what made it was killed."""
    table = Path("/proc/self/mounts").read_text("utf-8", "surrogateescape")
    mounts = [line.split()[1] for line in table.splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], check=False, capture_output=True)


@dataclass(slots=True)
class _Series:
    """Starts of one kind."""

    name: str
    seconds: list[float] = field(default_factory=list)
    fetched: list[int] = field(default_factory=list)

    def add(self, seconds: float, fetched: int) -> None:
        """Note one start."""
        self.seconds.append(seconds)
        self.fetched.append(fetched)


class _Watch:
    """Shows a conversion through `show.progress`."""

    def __init__(self, update: Callable[[int, int], None]) -> None:
        self._update = update
        self._done = self._total = 0

    def start(self, total: int) -> None:
        """Note how many bytes there are to read."""
        self._total = total

    def read(self, count: int) -> None:
        """Show ``count`` bytes more."""
        self._done += count
        self._update(self._done, self._total)

    def note(self, text: str) -> None:
        """Show bytes only."""


class _Demo:
    """One demonstration: an image in a layout of its own, converted there, and started."""

    def __init__(self, folder: Path) -> None:
        from pagein.store.layout import LayoutRepository

        self._folder = folder
        self._layout: LayoutRepository = LayoutRepository(folder / "layout")
        self.arguments: tuple[str, ...] = ()

    def build(self) -> None:
        """Make an image of this machine's Python."""
        from pagein.testing.demo_image import build_demo_image

        began = time.perf_counter()
        show.note("building an image of this Python, numpy, scipy and pandas")
        scratch = self._folder / "build"
        scratch.mkdir()
        made = build_demo_image(self._layout, scratch, show.note, tag=_TAG)
        self.arguments = made.command
        click.echo(
            f"built:      {made.layers} layers, {made.files} files, "
            f"{show.size(made.plain_size)}, compressed {show.size(made.stored_size)}; "
            f"{show.duration(time.perf_counter() - began)}"
        )

    def copy(self, settings: Settings, image: str) -> None:
        """Copy the user's image, so that both starts get it over the same link."""
        from pagein.types import ImageName

        place, found = settings.images.resolve(ImageName.parse(image), None, want_artifact=False)
        if found.source is None:
            raise UsageError(f"{image} is a converted image", hint="name the one it was made from")
        manifest, scratch = found.source.manifest, self._folder / "blob"
        config = place.read_blob(manifest.config.digest, limit=_CONFIG_LIMIT)
        self._layout.put_blob(manifest.config.digest, config)
        stored = sum(layer.size for layer in manifest.layers)
        done = 0
        with show.progress("copying") as update:
            for layer in manifest.layers:
                with (
                    place.open_blob(layer.digest, size=layer.size) as source,
                    scratch.open("wb") as target,
                ):
                    while piece := source.read(_PIECE):
                        target.write(piece)
                        done += len(piece)
                        update(done, stored)
                self._layout.put_blob(layer.digest, scratch)
                scratch.unlink()
        self._layout.put_manifest(found.source.blob, tag=_TAG)
        click.echo(f"copied:     {len(manifest.layers)} layers, compressed {show.size(stored)}")

    def convert(self) -> None:
        """Convert the image, beside itself."""
        from pagein.build.publish import publish
        from pagein.build.report import Converted, ConvertOptions

        with show.progress("converting") as update:
            done = publish(
                self._layout,
                _TAG,
                self._layout,
                ConvertOptions(scratch=self._folder / "convert"),
                bind=_TAG,
                force=True,
                progress=_Watch(update),
            ).images[0].converted  # fmt: skip
        assert isinstance(done, Converted)
        packs = sum(pack.size for pack in done.packs)
        click.echo(
            f"converted:  {done.files} files, {show.size(done.content_size)} in "
            f"{show.duration(done.seconds)}: {done.content_size / done.seconds / 1e6:.0f} MB/s; "
            f"index {show.size(done.index_size)}, packs {show.size(packs)}"
        )

    def compare(self, runs: int) -> None:
        """Start the image both ways in turn, from a registry behind the emulated link."""
        from pagein.testing.cold_start import CountingLink
        from pagein.testing.registry import FakeRegistry

        link = CountingLink(_BITS_PER_S, _LATENCY_S)
        classical, lazy = _Series("fetch all, unpack all, start"), _Series("pagein run")
        with FakeRegistry(serving={"demo": self._layout}, link=link) as registry:
            reference = f"{registry.host}/demo:{_TAG}"
            click.echo(
                f"served:     {reference}, {_BITS_PER_S / 1e6:.0f} Mbit/s, "
                f"{show.duration(_LATENCY_S)}; caches cold; {' '.join(self.arguments)}"
            )
            for number in range(runs):
                output = self._classical_start(classical, link, reference, number)
                if self._lazy_start(lazy, link, reference, number) != output:
                    show.note("the two starts said different things")
        _print_table(classical, lazy)

    def _classical_start(
        self, series: _Series, link: CountingLink, reference: str, number: int
    ) -> bytes:
        folder = self._folder / f"classical-{number}"
        words = [sys.executable, "-m", "pagein.testing.classical_start", reference, str(folder)]
        return self._start(series, link, [*words, *self.arguments], folder)

    def _lazy_start(
        self, series: _Series, link: CountingLink, reference: str, number: int
    ) -> bytes:
        folder = self._folder / f"lazy-{number}"
        words = [sys.executable, "-m", "pagein", "run", "--rm", reference]
        words += ["--", *self.arguments] if self.arguments else []
        return self._start(series, link, words, folder, {"PAGEIN_ROOT": str(folder)})

    def _start(
        self,
        series: _Series,
        link: CountingLink,
        words: list[str],
        folder: Path,
        environment: dict[str, str] | None = None,
    ) -> bytes:
        from pagein.testing.cold_start import drop_caches, time_start

        drop_caches(self._folder / "layout")
        link.take_count()
        started = time_start(words, environment)
        series.add(started.seconds, link.take_count())
        _unmount_below(folder)
        subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=False)
        return started.output


def _print_table(classical: _Series, lazy: _Series) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("start")
    table.add_column("time to first output", justify="right")
    table.add_column("bytes fetched", justify="right")
    medians = []
    for series in (classical, lazy):
        seconds, fetched = statistics.median(series.seconds), statistics.median(series.fetched)
        medians.append((seconds, fetched))
        table.add_row(series.name, show.duration(seconds), show.size(fetched))
    (slow, much), (fast, little) = medians
    table.add_section()
    table.add_row("ratio", f"{slow / fast:.1f} x", f"{much / max(little, 1):.1f} x")
    Console().print(table)
