"""``pagein ctr-pull``."""

from __future__ import annotations

from pathlib import Path

import click

from pagein.cli import show
from pagein.cli.extras import needing_containerd
from pagein.cli.options import json_option, platform_option
from pagein.cli.settings import Settings


@click.command()
@click.argument("reference")
@platform_option
@click.option(
    "--address",
    type=click.Path(path_type=Path),
    default=Path("/run/containerd/containerd.sock"),
    envvar="CONTAINERD_ADDRESS",
    show_default=True,
    help="containerd's socket.",
)
@click.option("-n", "--namespace", default="default", envvar="CONTAINERD_NAMESPACE",
              show_default=True, help="containerd's namespace; Kubernetes' is k8s.io.")  # fmt: skip
@click.option("--snapshotter", default="pagein", show_default=True,
              help="What pagein is called in containerd's configuration.")  # fmt: skip
@json_option
@click.pass_obj
def command(
    settings: Settings,
    reference: str,
    platform: str | None,
    address: Path,
    namespace: str,
    snapshotter: str,
    *,
    as_json: bool,
) -> None:
    """Pull an image into containerd lazily, as kubelet does, and ctr and nerdctl do not.

    \b
    pagein ctr-pull registry:5000/app:v1
    ctr run --rm --snapshotter pagein registry:5000/app:v1 one
    """
    with needing_containerd():
        from pagein.daemon.containerd_pull import ContainerdPull
        from pagein.snapshotter.containerd_client import ContainerdClient

    client = ContainerdClient(address, namespace)
    try:
        pull = ContainerdPull(
            settings.images, client, snapshotter, lambda line: click.echo(line, err=True)
        )
        done = pull.pull(reference, platform)
    finally:
        client.close()
    if as_json:
        values = {"digest": str(done.digest), "layers": done.layers, "fetched": done.fetched}
        show.as_json({"name": done.name, **values})
    elif done.fetched:
        click.echo(f"{done.name}: fetched {done.fetched} of {done.layers} layers")
    else:
        click.echo(f"{done.name}: ready, and no layer was fetched")
