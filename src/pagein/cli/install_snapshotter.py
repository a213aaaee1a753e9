"""``pagein install-snapshotter``."""

from __future__ import annotations

from pathlib import Path

import click

from pagein.cli.extras import needing_containerd
from pagein.cli.settings import Settings


@click.command()
@click.option(
    "--containerd-config",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("/etc/containerd/config.toml"),
    show_default=True,
    help="containerd's configuration file; made where there is none.",
)
@click.option("--containerd", "program", default="containerd", show_default=True,
              help="The program, which checks the file before it is used.")  # fmt: skip
@click.option("--cri/--no-cri", default=True, show_default=True,
              help="Use pagein for Kubernetes' pods, or only for who names it.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--undo", is_flag=True, help="Give the file back as it was.")
@click.pass_obj
def command(
    settings: Settings, file: Path, program: str, *, cri: bool, dry_run: bool, undo: bool
) -> None:
    """Make pagein a snapshotter of containerd.

    Merges three settings into containerd's configuration: pagein as proxy plugin, as the
    snapshotter of CRI, and the labels that tell it which image a layer is of. The file as it was
    stays beside it, as FILE.before-pagein.
    """
    with needing_containerd():
        from pagein.daemon import installing
        from pagein.daemon.containerd_config import Target, remarks

    containerd = installing.Containerd(program)
    paths = settings.paths
    target = Target(containerd.version(), paths.snapshotter_socket, paths.state, cri)
    change = (
        installing.plan_undo(file, target)
        if undo
        else installing.plan_install(file, target, containerd)
    )
    if not undo and change.after is not None:
        for line in remarks(change.after.decode(), target):
            click.echo(f"note: {line}", err=True)
    if dry_run:
        click.echo(change.diff(), nl=False)
        return
    if undo:
        installing.undo(change)
    elif change.needed:
        installing.install(change)
    if not change.needed:
        click.echo(f"{change.file} needs no change")
        return
    click.echo(f"{change.file} {'is as it was' if undo else 'has pagein in it'}")
    click.echo("restart containerd to use it: systemctl restart containerd")
