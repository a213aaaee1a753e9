"""containerd's configuration with pagein in it, and without it again."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from pagein.daemon.containerd_config import Target, Version, merge, parse_version, remarks, remove
from pagein.errors import UsageError

CRI_2 = "io.containerd.grpc.v1.cri"
CRI_3 = "io.containerd.cri.v1.images"


def target(version: Version = (1, 7, 20), *, cri: bool = True) -> Target:
    return Target(version, Path("/run/pagein/snapshotter.sock"), Path("/var/lib/pagein"), cri)


def merged(text: str, version: Version = (1, 7, 20), *, cri: bool = True) -> Any:
    result = merge(text, target(version, cri=cri))
    assert merge(result, target(version, cri=cri)) == result
    return tomllib.loads(result)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1", (1, 6, 20)),
        ("containerd github.com/containerd/containerd/v2 v2.0.1 88aa2f5", (2, 0, 1)),
        ("containerd containerd.io 1.7.24 88bf19b", (1, 7, 24)),
    ],
)
def test_versions_are_read(text: str, version: Version) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["", "containerd", "containerd x 1.4.3"])
def test_other_programs_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_version(text)


def test_a_new_file_has_the_version_that_containerd_writes() -> None:
    old, new = merged("", (1, 6, 20)), merged("", (2, 0, 0))
    assert (old["version"], new["version"]) == (2, 3)
    wanted = {"snapshotter": "pagein", "disable_snapshot_annotations": False}
    assert old["plugins"][CRI_2]["containerd"] == wanted
    assert new["plugins"][CRI_3] == wanted
    plugin = {"type": "snapshot", "address": "/run/pagein/snapshotter.sock"}
    assert old["proxy_plugins"]["pagein"] == plugin
    assert new["proxy_plugins"]["pagein"] == plugin | {"exports": {"root": "/var/lib/pagein"}}


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ((1, 6, 31), False),
        ((1, 6, 32), True),
        ((1, 7, 15), False),
        ((1, 7, 16), True),
        ((2, 0, 0), True),
    ],
)
def test_the_root_is_exported_to_those_that_read_it(version: Version, told: bool) -> None:
    assert ("exports" in merged("", version)["proxy_plugins"]["pagein"]) == told
    assert (remarks("version = 2\n", target(version)) == []) == told


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("oom_score = 3\n", ("cri", "containerd")),
        ("version = 1\n", ("cri", "containerd")),
        ("version = 2\n", (CRI_2, "containerd")),
        ("version = 3\n", (CRI_3,)),
    ],
)
def test_the_files_own_version_says_where_cri_is(text: str, path: tuple[str, ...]) -> None:
    table = merged(text, (2, 0, 0))["plugins"]
    for name in path:
        table = table[name]
    assert table["snapshotter"] == "pagein"


EDITED = """\
# our nodes
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "registry/pause:3.9" # pinned
    [plugins."io.containerd.grpc.v1.cri".containerd]
      snapshotter = "overlayfs" # the default
      default_runtime_name = "runc"

[proxy_plugins]
  # lazy images of another kind
  [proxy_plugins.stargz]
    type = "snapshot"
    address = "/run/stargz.sock"
"""


def test_what_others_wrote_stays_with_its_comments() -> None:
    text = merge(EDITED, target())
    for line in ("# our nodes", "# pinned", "# the default", "# lazy images of another kind"):
        assert line in text
    after, before = tomllib.loads(text), tomllib.loads(EDITED)
    del after["proxy_plugins"]["pagein"]
    cri = after["plugins"][CRI_2]["containerd"]
    assert cri.pop("disable_snapshot_annotations") is False
    cri["snapshotter"] = "overlayfs"
    assert after == before


def test_without_cri_only_the_plugin_is_offered() -> None:
    assert merged("", cri=False).keys() == {"version", "proxy_plugins"}


@pytest.mark.parametrize(
    "text", ["", 'a.b = "x"\n', "[[list]]\n", "plugins = {}\n", "proxy_plugins = {}"]
)
def test_any_shape_of_toml_takes_it(text: str) -> None:
    assert "pagein" in merged(f"version = 2\n{text}")["proxy_plugins"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x = ", "not TOML"),
        ("version = 9\n", "version 9"),
        ('version = "2"\n', "version 2"),
        ("version = 2\nproxy_plugins = 3\n", "proxy_plugins is not a table"),
        ("version = 2\nplugins = []\n", "plugins is not a table"),
    ],
)
def test_what_is_no_configuration_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        merge(text, target())


def test_the_transfer_service_unpacks_for_both_snapshotters() -> None:
    config = merged("version = 3\n", (2, 1, 0))
    entries = config["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"]
    assert [entry["snapshotter"] for entry in entries] == ["overlayfs", "pagein"]
    exports = config["proxy_plugins"]["pagein"]["exports"]
    assert exports["enable_remote_snapshot_annotations"] == "true"
    own = """\
version = 3
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "zfs"
"""
    entries = merged(own, (2, 1, 0))["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"]
    assert [entry["snapshotter"] for entry in entries] == ["zfs", "pagein"]


@pytest.mark.parametrize("before", ["", "version = 2\n", EDITED, "version = 3\n"])
@pytest.mark.parametrize("version", [(1, 6, 20), (2, 1, 0)])
def test_taking_it_out_of_an_edited_file_leaves_the_rest(before: str, version: Version) -> None:
    installed = merge(before, target(version)) + '\n[debug]\nlevel = "debug"\n'
    left = tomllib.loads(remove(installed, before))
    assert left.pop("debug") == {"level": "debug"}
    assert "pagein" not in str(left)
    was = tomllib.loads(before)
    if before == EDITED:
        assert left == was
    else:
        assert left.get("version", 2) in (2, 3)


def test_an_operator_is_told_what_else_stands_in_the_way() -> None:
    text = """\
version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[plugins."io.containerd.grpc.v1.cri".containerd]
discard_unpacked_layers = true
"""
    first, second = remarks(text, target())
    assert "CRI off" in first
    assert "discard_unpacked_layers" in second


SHAPES = {
    "dotted": f"""\
version = 2
plugins."{CRI_2}".containerd.snapshotter = "overlayfs"
plugins."{CRI_2}".sandbox_image = "pause"
proxy_plugins.other.type = "snapshot"
""",
    "out of order": f"""\
version = 2
[plugins."{CRI_2}"]
sandbox_image = "pause"
[proxy_plugins.other]
type = "snapshot"
[plugins."{CRI_2}".containerd]
snapshotter = "overlayfs" # ours
[debug]
level = "info"
[plugins."{CRI_2}".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.internal.v1.opt"]
path = "/opt"
[proxy_plugins.third]
type = "content"
""",
    "inline": f"""\
version = 2
plugins = {{ "{CRI_2}" = {{ containerd = {{ snapshotter = "overlayfs" }}, x = 1 }} }}
proxy_plugins = {{ other = {{ type = "snapshot" }} }}
""",
    "ours, elsewhere": """\
version = 2
[proxy_plugins.pagein]
type = "snapshot"
address = "/old/place.sock"
[proxy_plugins.pagein.exports]
root = "/old"
""",
    "deeper only": f"""\
version = 2
[plugins."{CRI_2}".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
""",
    "empty tables": "version = 2\n[proxy_plugins]\n# none yet\n[plugins]\n",
    "crlf": 'version = 2\r\n[debug]\r\nlevel = "info"\r\n',
}


@pytest.mark.parametrize("name", SHAPES)
def test_only_what_is_ours_differs_however_the_file_is_written(name: str) -> None:
    before = tomllib.loads(SHAPES[name])
    wanted = tomllib.loads(SHAPES[name])
    wanted.setdefault("proxy_plugins", {})["pagein"] = {
        "type": "snapshot",
        "address": "/run/pagein/snapshotter.sock",
        "exports": {"root": "/var/lib/pagein"},
    }
    cri = wanted.setdefault("plugins", {}).setdefault(CRI_2, {}).setdefault("containerd", {})
    cri |= {"snapshotter": "pagein", "disable_snapshot_annotations": False}
    assert merged(SHAPES[name]) == wanted
    installed = merge(SHAPES[name], target()) + "\n[metrics]\naddress = 'x'\n"
    left = tomllib.loads(remove(installed, SHAPES[name]))
    assert left.pop("metrics") == {"address": "x"}
    if before.get("proxy_plugins", {}).pop("pagein", None) and not before["proxy_plugins"]:
        del before["proxy_plugins"]
    assert left == before


def test_what_cannot_be_edited_by_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """tomlkit is not without faults; the result is held against what it should mean."""
    monkeypatch.setattr("tomlkit.dumps", lambda document: "version = 2\n")
    with pytest.raises(UsageError, match="cannot be edited by program") as caught:
        merge("version = 2\n", target())
    assert "by hand" in str(caught.value.hint)
