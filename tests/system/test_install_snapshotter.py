"""``pagein install-snapshotter`` on files that a real containerd reads."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "cli"))

from node_under_test import NodeUnderTest  # isort: skip

pytestmark = pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd")
CRI = "io.containerd.grpc.v1.cri"

DEBIAN = """\
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni" # where Debian has them
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd"
"""
DOCKER = """\
#   Licensed under the Apache License, Version 2.0 (the "License");

disabled_plugins = ["cri"]

#root = "/var/lib/containerd"
#[debug]
#  level = "info"
"""


def generated() -> str:
    done = subprocess.run(
        ["containerd", "config", "default"], check=True, capture_output=True, text=True
    )
    return done.stdout


class Place:
    """A folder with a configuration file, and the command for it."""

    def __init__(self, folder: Path) -> None:
        self.node = NodeUnderTest(folder)
        self.folder = folder / "etc"
        self.file = self.folder / "config.toml"

    def install(self, *words: str, code: int = 0) -> str:
        command = ("install-snapshotter", "--containerd-config", self.file, *words)
        done = self.node(*command, code=code)
        return str(done.stdout + done.stderr)

    def dumped(self) -> Any:
        done = subprocess.run(
            ["containerd", "--config", self.file, "config", "dump"],
            check=True,
            capture_output=True,
            text=True,
        )
        return tomllib.loads(done.stdout)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder.rglob("*"))}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize(
    "text", [None, "", DEBIAN, generated], ids=["none", "empty", "debian", "default"]
)
def test_containerd_reads_it_and_undoing_gives_back_every_byte(place: Place, text: Any) -> None:
    if text is not None:
        place.folder.mkdir()
        place.file.write_text(text() if callable(text) else text)
        place.file.chmod(0o640)
    before = place.files() if text is not None else {}
    assert "has pagein in it" in place.install()
    config = place.dumped()
    socket = str(place.node.root / "run/snapshotter.sock")
    assert config["proxy_plugins"]["pagein"]["type"] == "snapshot"
    assert config["proxy_plugins"]["pagein"]["address"] == socket
    cri = config["plugins"][CRI]["containerd"]
    assert (cri["snapshotter"], cri["disable_snapshot_annotations"]) == ("pagein", False)
    after = place.files()
    assert "needs no change" in place.install()
    assert place.files() == after
    if text is not None:
        assert place.file.stat().st_mode & 0o777 == 0o640
    assert "is as it was" in place.install("--undo")
    assert place.files() == before
    assert "did not change" in place.install("--undo", code=2)


def test_a_dry_run_shows_the_difference_and_changes_nothing(place: Place) -> None:
    place.folder.mkdir()
    place.file.write_text(DEBIAN)
    shown = place.install("--dry-run")
    assert '+snapshotter = "pagein"' in shown.replace("  ", "")
    assert place.files() == {"config.toml": DEBIAN.encode()}
    place.install()
    assert '-snapshotter = "pagein"' in place.install("--undo", "--dry-run").replace("  ", "")
    assert set(place.files()) == {"config.toml", "config.toml.before-pagein"}


def test_dockers_file_keeps_cri_off_and_its_owner_is_told(place: Place) -> None:
    place.folder.mkdir()
    place.file.write_text(DOCKER)
    assert "turns CRI off" in place.install()
    assert place.dumped()["proxy_plugins"]["pagein"]["type"] == "snapshot"
    text = place.file.read_text()
    assert text.startswith(DOCKER.split("\n")[0])
    assert '#  level = "info"' in text


def test_a_file_of_the_first_version_is_read_as_one(place: Place) -> None:
    place.folder.mkdir()
    place.file.write_text("oom_score = 3\n")
    place.install()
    assert place.dumped()["oom_score"] == 3
    assert place.dumped()["plugins"][CRI]["containerd"]["snapshotter"] == "pagein"


def test_an_import_that_has_the_last_word_is_told_before_anything_changes(place: Place) -> None:
    (place.folder / "conf.d").mkdir(parents=True)
    (place.folder / "conf.d/mine.toml").write_text(
        f'version = 2\n[plugins."{CRI}".containerd]\nsnapshotter = "overlayfs"\n'
    )
    place.file.write_text(f'version = 2\nimports = ["{place.folder}/conf.d/*.toml"]\n')
    before = place.file.read_bytes()
    line = place.install(code=2)
    assert "reads snapshotter" in line
    assert "imports" in line
    assert place.file.read_bytes() == before
    assert sorted(path.name for path in place.folder.iterdir()) == ["conf.d", "config.toml"]


@pytest.mark.parametrize(
    ("text", "why"),
    [("x = \n", "not TOML"), ("version = 7\n", "version 7"), ("root = 3\n", "refuses")],
)
def test_a_file_that_containerd_refuses_stays_as_it_is(place: Place, text: str, why: str) -> None:
    place.folder.mkdir()
    place.file.write_text(text)
    assert why in place.install(code=2)
    assert place.files() == {"config.toml": text.encode()}


def test_what_somebody_wrote_afterwards_survives_the_undoing(place: Place) -> None:
    place.folder.mkdir()
    place.file.write_text(DEBIAN)
    place.install()
    place.file.write_text(place.file.read_text() + '\n[debug]\nlevel = "debug"\n')
    place.install("--undo")
    text = place.file.read_text()
    assert "pagein" not in text
    assert "# where Debian has them" in text
    assert tomllib.loads(text) == tomllib.loads(DEBIAN) | {"debug": {"level": "debug"}}


def test_a_linked_file_is_changed_where_it_lies(place: Place, tmp_path: Path) -> None:
    place.folder.mkdir()
    real = tmp_path / "real.toml"
    real.write_text(DEBIAN)
    place.file.symlink_to(real)
    place.install("--no-cri")
    assert place.file.is_symlink()
    assert "pagein" in real.read_text()
    assert "snapshotter =" not in real.read_text()


def test_no_containerd_is_one_line(place: Place) -> None:
    line = place.install("--containerd", "no-such-containerd", code=2)
    assert "no-such-containerd is not installed" in line
    assert not place.folder.exists()
