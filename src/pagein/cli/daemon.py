"""``pagein daemon``."""

from __future__ import annotations

import os
import sys

import click

from pagein.cli.settings import Settings


@click.command()
@click.pass_obj
def command(settings: Settings) -> None:
    """Serve the mounts of this machine, and containerd, from one process. Runs in the foreground.

    SIGTERM stops it; mounts and containers stay, and their reads wait for the next daemon. Without
    systemd, a small process holds their devices meanwhile, and starts the daemon again if it dies.
    """
    from pagein.daemon.serve import check_root

    check_root()
    if "NOTIFY_SOCKET" not in os.environ:
        become_holder(settings)
    from pagein.daemon.node_daemon import run_daemon

    run_daemon(settings.paths, settings.config, os.environ)


def become_holder(settings: Settings) -> None:
    """Go on as the process that holds the daemon's descriptors, with the daemon as its child."""
    from importlib.util import find_spec

    from pagein.errors import UsageError

    settings.config  # noqa: B018 - an error in it is better told now than by a child
    holder = find_spec("pagein.daemon.holder")
    assert holder is not None
    assert holder.origin is not None
    settings.paths.make(settings.paths.run)
    address = str(settings.paths.holder_socket)
    if len(os.fsencode(address)) > 107:  # sun_path of unix(7), less its zero
        raise UsageError(f"the path of a socket is too long: {address}", hint="set PAGEIN_ROOT")
    sys.stdout.flush()
    sys.stderr.flush()
    daemon = [sys.executable, "-m", "pagein", *sys.argv[1:]]
    os.execv(  # noqa: S606 - a shell is of no use here
        sys.executable, [sys.executable, "-I", "-S", holder.origin, address, *daemon]
    )
