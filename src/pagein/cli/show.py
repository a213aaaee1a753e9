"""How values look to a person: sizes, times, and progress on a terminal or as plain lines."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

_LINE_EVERY_S = 5.0


def size(count: float) -> str:
    """Write a number of bytes: ``812 B``, ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def plain(text: str) -> str:
    """Write text of a file that somebody else made: no control characters for our terminal."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def duration(seconds: float | None) -> str:
    """Write a time: ``0.8 ms``, ``2.5 s``; a dash where there is none."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def percent(share: float | None) -> str:
    """Write a share of 1; a dash where there is none."""
    return "-" if share is None else f"{share * 100:.1f} %"


def as_json(value: Any) -> None:
    """Print a value for machines."""
    click.echo(json.dumps(value, indent=2, sort_keys=True))


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show bytes done of a total and the rate: a bar on a terminal, else a line now and then.

    Yields ``update(done, total)``, both in bytes; safe to call from any thread.
    """
    if sys.stderr.isatty():
        with _bar(title) as update:
            yield update
    else:
        yield _lines(title)


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        Speed(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(title, total=None)

        def update(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total or None)

        yield update


def _lines(title: str) -> Callable[[int, int], None]:
    began = last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _LINE_EVERY_S:
            return
        last = now
        of = f" of {size(total)}" if total else ""
        click.echo(f"{title}: {size(done)}{of}, {size(done / (now - began))}/s", err=True)

    return update


def note(line: str) -> None:
    """Say one line about the work at hand, beside the output."""
    click.echo(f"pagein: {line}", err=True)
