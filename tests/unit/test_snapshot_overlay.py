"""Mounts, as containerd 1.6's overlayfs snapshotter answers them for the same chains."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagein.errors import UsageError
from pagein.snapshotter.overlay import OverlayChoices, snapshot_mounts
from pagein.snapshotter.values import Kind, Mount

OWN = Path("/s/9")
LOWERS = [Path("/s/3/fs"), Path("/s/1/fs")]
PLAIN = OverlayChoices(index_off=False)


@pytest.mark.parametrize(
    ("kind", "lowers", "mount"),
    [
        (Kind.ACTIVE, [], Mount("bind", "/s/9/fs", ("rw", "rbind"))),
        (Kind.VIEW, [], Mount("bind", "/s/9/fs", ("ro", "rbind"))),
        (Kind.VIEW, LOWERS[:1], Mount("bind", "/s/3/fs", ("ro", "rbind"))),
        (Kind.VIEW, LOWERS, Mount("overlay", "overlay", ("lowerdir=/s/3/fs:/s/1/fs",))),
        (
            Kind.ACTIVE,
            LOWERS,
            Mount(
                "overlay",
                "overlay",
                ("workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/3/fs:/s/1/fs"),
            ),
        ),
    ],
)
def test_a_chain_has_one_mount(kind: Kind, lowers: list[Path], mount: Mount) -> None:
    assert snapshot_mounts(kind, OWN, lowers, PLAIN) == [mount]


def test_choices_come_first() -> None:
    choices = OverlayChoices(index_off=True, userxattr=True)
    (mount,) = snapshot_mounts(Kind.ACTIVE, OWN, LOWERS[:1], choices)
    assert mount.options[:2] == ("index=off", "userxattr")


def test_a_path_that_options_cannot_spell_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot lay an overlay"):
        snapshot_mounts(Kind.ACTIVE, OWN, [Path("/s:1/fs")], PLAIN)


def test_a_chain_that_the_kernel_refuses_is_refused_first() -> None:
    lowers = [Path(f"/s/{number}/fs") for number in range(501)]
    with pytest.raises(UsageError, match="501 layers"):
        snapshot_mounts(Kind.VIEW, OWN, lowers, PLAIN)
    assert snapshot_mounts(Kind.VIEW, OWN, lowers[:500], PLAIN)
