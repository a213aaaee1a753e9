"""``pagein doctor``."""

from __future__ import annotations

from pathlib import Path

import click

from pagein.cli import show
from pagein.cli.extras import needing_containerd
from pagein.cli.options import json_option
from pagein.cli.settings import Settings


@click.command()
@click.option("--containerd", is_flag=True, help="Check what containerd needs instead.")
@click.option(
    "--address",
    type=click.Path(path_type=Path),
    default=Path("/run/containerd/containerd.sock"),
    envvar="CONTAINERD_ADDRESS",
    show_default=True,
    help="containerd's socket.",
)
@click.option(
    "--containerd-config",
    "file",
    type=click.Path(path_type=Path),
    default=Path("/etc/containerd/config.toml"),
    show_default=True,
    help="containerd's configuration file.",
)
@json_option
@click.pass_obj
def command(
    settings: Settings, address: Path, file: Path, *, containerd: bool, as_json: bool
) -> int:
    """Check what mounting and running need on this machine, and say how to mend what is missing.

    With --containerd: follow a pull from containerd to the daemon, link by link.
    """
    if containerd:
        with needing_containerd():
            from pagein.daemon.containerd_doctor import examine_containerd

        findings = examine_containerd(settings.paths, settings.config, address, file, "containerd")
    else:
        from pagein.daemon.doctor import examine

        findings = examine(settings.paths)
    if as_json:
        show.as_json([finding.as_dict() for finding in findings])
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            mark = "ok " if finding.ok else "BAD" if finding.required else "no "
            click.echo(f"{mark} {finding.name:<{width}}  {finding.detail}")
            if not finding.ok and finding.mend:
                click.echo(f"    {'':<{width}}  -> {finding.mend}")
    return 1 if any(finding.required and not finding.ok for finding in findings) else 0
