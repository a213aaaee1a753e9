"""``pagein doctor``."""

from __future__ import annotations

import click

from pagein.cli import show
from pagein.cli.options import json_option
from pagein.cli.settings import Settings


@click.command()
@json_option
@click.pass_obj
def command(settings: Settings, *, as_json: bool) -> int:
    """Check what mounting and running need on this machine, and say how to mend what is missing."""
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
