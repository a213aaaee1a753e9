"""Write ``docs/reference/cli.md`` from the command line itself, as ``make docs`` does.

A test holds the committed page against `page`, so that the two cannot drift apart.
"""

# ruff: noqa: E501 - a row of a table is one line

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from pagein.cli.main import COMMANDS, cli

TARGET = Path(__file__).parent / "reference/cli.md"
NOT_RUN = {
    "demo": "starts an image of a few hundred MB several times; a test of its own does",
    "bench": "empties the page cache several times; a test of its own does",
    "ctr-pull": "needs containerd with pagein in it; a test of its own has one",
}

HEAD = """\
# Command line

<!-- Written by docs/generate_reference.py from the program's own help: change that, not this page. -->

Every command answers to `-h` and `--help`. Errors are one line that says what to do. Exit codes:

| code | meaning |
| ---: | --- |
| 0 | done |
| 1 | it did not work, or a check found something |
| 2 | wrong usage: a mistake in the command, the reference or the configuration |
| 130 | interrupted |
| 141 | the reader of the output has gone |
| other | `pagein run`: the exit code of the container's command; 128 + N where signal N ended it |

References:

| reference | image |
| --- | --- |
| `HOST/REPOSITORY:TAG`, `docker://HOST/REPOSITORY:TAG` | in a registry; also `@sha256:...` in place of the tag, or after it |
| `oci:DIR`, `oci:DIR:TAG` | in an OCI layout directory |
| `oci-archive:FILE` | a tar of an OCI layout directory; source only |
| `docker-archive:FILE[:NAME:TAG]` | what `docker save` writes; source only |
| `dir:ROOTFS` | a plain directory tree, taken as an image of one layer; source only |

Environment:

| variable | meaning |
| --- | --- |
| `PAGEIN_ROOT` | state goes to `$PAGEIN_ROOT/lib` and `$PAGEIN_ROOT/run` |
| `PAGEIN_CONFIG` | as `--config` |
| `PAGEIN_DEBUG` | as `--debug`, if not empty |
| `REGISTRY_AUTH_FILE`, `DOCKER_CONFIG` | where credentials are; see [private registries](../how-to/private-registries.md) |
| `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY` | as everywhere; loopback is never asked through a proxy |
| `TMPDIR` | scratch of `convert`, `demo` and `bench` (default: `/var/tmp`) |
"""


def paragraphs(help_text: str) -> Iterator[tuple[bool, str]]:
    """Yield each paragraph of a help text, and whether it is an example (click's ``\\b``)."""
    for part in inspect.cleandoc(help_text).split("\n\n"):
        if part.startswith("\b"):
            yield True, part.removeprefix("\b").strip("\n")
        else:
            yield False, " ".join(part.split())


def cell(text: str) -> str:
    """Make a text fit for a table."""
    return " ".join(text.split()).replace("|", "\\|")


def value_name(option: click.Option) -> str:
    """Return what stands for the option's value: nothing for a flag."""
    if option.is_flag:
        return ""
    if option.metavar:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return f"[{'|'.join(option.type.choices)}]"
    if isinstance(option.type, click.Path):
        return "PATH"
    return "N" if option.type.name.startswith("integer") else "TEXT"


def default_of(option: click.Option) -> str:
    """Return the default as it is shown, in brackets; nothing where it is not to be shown."""
    if not option.show_default or option.default is None:
        return ""
    if option.is_flag and option.secondary_opts:
        return f" [default: {(option.opts if option.default else option.secondary_opts)[0]}]"
    return f" [default: {option.default}]"


def rows(command: click.Command) -> Iterator[str]:
    """Yield a table row for each option. Not by click's own text, which changes with its versions."""
    for option in command.params:
        if not isinstance(option, click.Option) or option.hidden:
            continue
        names = ", ".join(sorted(option.opts, key=len))
        if option.secondary_opts:
            names += f" / {', '.join(option.secondary_opts)}"
        name = f"{names} {value_name(option)}".strip()
        yield f"| `{cell(name)}` | {cell((option.help or '') + default_of(option))} |"


def usage(command: click.Command, path: str) -> str:
    """Return the line of usage."""
    pieces = [path, "[OPTIONS]"]
    for argument in command.params:
        if isinstance(argument, click.Argument):
            name = argument.metavar or (argument.name or "").upper()
            shown = name if argument.required or name.startswith("[") else f"[{name}]"
            pieces.append(shown)
    if isinstance(command, click.Group):
        pieces.append("COMMAND ...")
    return " ".join(pieces)


def describe(command: click.Command, path: str) -> Iterator[str]:
    """Yield the lines on one command, and on those below it."""
    name = path.partition(" ")[2]
    depth = len(path.split())
    yield from (f"{'#' * min(depth, 4)} {path}", "")
    yield from ("```text", usage(command, path), "```", "")
    for is_example, text in paragraphs(command.help or ""):
        if not is_example:
            yield from (text, "")
            continue
        if reason := NOT_RUN.get(name):
            yield f"<!-- not run: {reason} -->"
        yield from ("```sh", text, "```", "")
    if path == "pagein":
        yield from ("| command | |", "| --- | --- |")
        for command_name, summary in COMMANDS.items():
            yield f"| [`{command_name}`](#pagein-{command_name}) | {cell(summary)} |"
        yield ""
    options = list(rows(command))
    if options:
        yield from ("| option | |", "| --- | --- |", *options, "")
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from describe(found, f"{path} {child}")


def page() -> str:
    """Return the whole page."""
    lines = list(describe(cli, "pagein"))
    lines[0] = "## pagein"
    return f"{HEAD}\n" + "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(page())
