"""The ``pagein`` command: finds the subcommand, and turns errors into one line and an exit code.

A subcommand's module is imported when it is used: ``pagein --help`` answers in under 150 ms.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from pathlib import Path
from typing import Any

import click

from pagein import __version__
from pagein.cli.settings import Settings
from pagein.errors import PageinError, UsageError

COMMANDS = {
    "demo": "The whole idea on this machine: convert, run lazily, compare.",
    "convert": "Convert an image and publish the result beside it.",
    "optimize": "Publish what a recorded start reads as one short stream.",
    "mount": "Mount an image; its data comes in as it is read.",
    "umount": "Unmount what mount mounted.",
    "run": "Run a command in a container from an image.",
    "record": "Run a command, and write which parts of the image it read.",
    "profile": "Show, merge and compare what was recorded; push and pull it.",
    "pull": "Make an image startable; --full fetches all of it.",
    "ls": "List a folder of an image, without mounting it.",
    "cat": "Write files of an image to standard output.",
    "stat": "Show what an image knows of one file.",
    "inspect": "Show an image's geometry, sizes and packs.",
    "check": "Check an image's structure; --deep re-reads everything.",
    "cache": "Look after the local cache of sectors.",
    "status": "List the mounts of this machine and what they fetched.",
    "daemon": "Serve this machine's mounts, and containerd, from one process.",
    "install-snapshotter": "Make pagein a snapshotter of containerd, or undo that.",
    "ctr-pull": "Pull an image into containerd lazily, as kubelet does.",
    "bench": "Measure cold starts of an image on this machine.",
    "doctor": "Say whether this machine can run pagein, and if not, why.",
}


class ReaderGoneError(Exception):
    """Whoever read our output has gone. Not a BrokenPipeError: click would exit with 1 for it."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports only the one that is asked for."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Raises ReaderGoneError for a BrokenPipeError."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGoneError from error

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one command; None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"pagein.cli.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pagein")
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="PAGEIN_CONFIG",
    help="Configuration file (default: /etc/pagein/config.toml).",
)
@click.option(
    "--registry-http",
    "registry_http",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Speak plain HTTP with this registry; 127.0.0.1 and localhost need no flag.",
)
@click.option("--debug", is_flag=True, envvar="PAGEIN_DEBUG", help="Show a traceback on errors.")
@click.pass_context
def cli(
    context: click.Context, config: Path | None, registry_http: tuple[str, ...], *, debug: bool
) -> None:
    """Start containers before their images have been downloaded.

    A reference is HOST/REPOSITORY:TAG, docker://..., oci:DIR[:TAG], oci-archive:FILE,
    docker-archive:FILE or dir:ROOTFS.

    \b
    pagein convert registry:5000/app:v1
    pagein run registry:5000/app:v1 -- python3 -c 'print(40 + 2)'
    """
    context.obj = Settings(config_file=config, plain_http=registry_http, debug=debug)


def report(error: PageinError) -> int:
    """Write the error's one line, and its hint; return the exit code."""
    line = " ".join(str(error).split())
    click.echo(f"pagein: {line}", err=True)
    if error.hint:
        click.echo(f"  hint: {error.hint}", err=True)
    return 2 if isinstance(error, UsageError) else 1


def main() -> None:
    """Run the command line and exit."""
    debug = "--debug" in sys.argv or bool(os.environ.get("PAGEIN_DEBUG"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files are bytes, not text
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("pagein: interrupted", err=True)
        sys.exit(130)
    except (BrokenPipeError, ReaderGoneError):
        # The reader of our output has gone; nothing more can be written to it, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except PageinError as error:
        if debug:
            raise
        sys.exit(report(error))
    except Exception as error:
        if debug:
            raise
        click.echo(f"pagein: unexpected {type(error).__name__}: {error}", err=True)
        click.echo("  hint: this is a bug; run again with --debug and report it", err=True)
        sys.exit(1)
