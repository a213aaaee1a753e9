"""``inspect``, ``ls``, ``cat``, ``stat`` and ``check`` as typed, held against a disk's files."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from counting_proxy import CountingProxy
from node_image import BIG, PARTS, write_layout
from node_under_test import NodeUnderTest
from registry_site import Site
from tiny_rootfs import GROUP, PASSWD

from pagein.cli.main import COMMANDS
from pagein.testing.layer_corpus import directory, file, symlink, tar_layer

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char_device",
    stat.S_IFBLK: "block_device",
    stat.S_IFIFO: "fifo",
}


def seen(path: Path) -> dict[str, Any]:
    """What ``ls --json`` must say of a file that lies on a disk."""
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    entry: dict[str, Any] = {
        "name": path.name,
        "type": KINDS[kind],
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime_ns": status.st_mtime_ns,
    }
    if kind == stat.S_IFREG:
        entry |= {"size": status.st_size, "links": status.st_nlink}
    if kind == stat.S_IFLNK:
        entry["target"] = str(path.readlink())
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        entry["device"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
    return entry


def test_a_listing_is_what_the_disk_of_another_tool_shows(
    site: Site, node: NodeUnderTest, unpacked: Path
) -> None:
    names = sorted(os.listdir(unpacked / "odd"))
    listed = json.loads(node("ls", "--json", site.app, "/odd").stdout)
    assert [entry["name"] for entry in listed] == names
    for entry in listed:
        wanted = seen(unpacked / "odd" / entry["name"])
        assert {key: entry.get(key) for key in wanted} == wanted
    assert node("ls", site.app, "/odd").stdout.splitlines() == names
    for line, name in zip(
        node("ls", "-l", site.app, "odd").stdout.splitlines(), names, strict=True
    ):
        path = unpacked / "odd" / name
        status = path.lstat()
        words = line.split()
        assert words[0] == stat.filemode(status.st_mode)
        assert words[2:4] == [str(status.st_uid), str(status.st_gid)]
        shown = f"{name} -> {path.readlink()!s}" if path.is_symlink() else name
        assert line.endswith(" " + shown)


def test_the_state_of_one_file_is_that_of_the_disk(
    site: Site, node: NodeUnderTest, unpacked: Path
) -> None:
    for name in ("xattrs", "capable", "suid", "link", "disk"):
        path = unpacked / "odd" / name
        found = json.loads(node("stat", "--json", site.app, f"/odd/{name}").stdout)
        wanted = seen(path) | {"name": f"/odd/{name}"}
        assert {key: found.get(key) for key in wanted} == wanted
        names = os.listxattr(path, follow_symlinks=False)
        assert found["xattrs"] == {
            name: os.getxattr(path, name, follow_symlinks=False).hex() for name in names
        }
    said = node("stat", site.app, "/odd/suid").stdout
    assert "Access: (6755/-rwsr-sr-x)  Uid: 7  Gid: 0" in said
    assert "Modify: 1969-12-31 23:59:54.750000000 UTC" in said


def test_bytes_come_out_as_they_are_and_only_theirs_are_fetched(
    node: NodeUnderTest, proxy: CountingProxy
) -> None:
    reference = f"{proxy.host}/app:v1"
    assert node("cat", reference, "/etc/passwd", "etc/group").stdout == PASSWD + GROUP
    proxy.forget()
    data = node("cat", reference, "/data/part1", text=False).stdout
    assert data == PARTS["part1"]
    fetched = sum(last - first + 1 for one in proxy.asked("/blobs/") if one.span
                  for first, last in [one.span])  # fmt: skip
    assert 0 < fetched < len(PARTS["part1"]) + (1 << 20)
    assert node("cat", reference, "/data/big", text=False).stdout == BIG


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("cat", "/odd"), 2, "not a regular file but a directory"),
        (("cat", "/odd/null"), 2, "not a regular file but a char device"),
        (("cat", "/no/such"), 1, "/no/such"),
        (("stat", "/etc/passwd/x"), 1, "/etc/passwd"),
        (("ls", "/odd/nowhere/x"), 1, "/odd/nowhere"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    words: tuple[str, str], code: int, said: str, site: Site, node: NodeUnderTest
) -> None:
    line, _ = node.complaint(words[0], site.app, words[1], code=code)
    assert said in line


def test_a_reader_that_leaves_early_is_no_error(site: Site, node: NodeUnderTest) -> None:
    with node.start(
        "cat", site.app, "/data/big", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=False
    ) as child:
        assert child.stdout is not None
        assert child.stdout.read(10) == BIG[:10]
        child.stdout.close()
        assert child.stderr is not None
        assert child.stderr.read() == b""
        assert child.wait(30) == 141


def test_names_that_are_no_text_are_shown_byte_for_byte(node: NodeUnderTest) -> None:
    layout, names = node.folder / "odd", [b"bad\xff", b"\xe4 latin", "ж".encode()]
    layer = tar_layer(
        directory(b"d/"), *(file(b"d/" + name) for name in names), symlink(b"d/z", b"to\xfe")
    )
    write_layout(layout, (layer,), {})
    bytes_out: dict[str, Any] = {"env": node.environment | {"LC_ALL": "C.UTF-8"}, "text": False}
    node("convert", f"oci:{layout}:v1", **bytes_out)
    for locale in ("C.UTF-8", "POSIX"):
        bytes_out["env"] |= {"LC_ALL": locale}
        found = node("ls", f"oci:{layout}:v1", "/d", **bytes_out).stdout.splitlines()
        assert sorted(found) == sorted([*names, b"z"])
    long = node("ls", "-l", f"oci:{layout}:v1", "/d", **bytes_out).stdout
    assert long.splitlines()[-1].endswith(b"z -> to\xfe") or b"z -> to\xfe\n" in long
    for name in names[:1]:
        done = node("cat", f"oci:{layout}:v1", os.fsdecode(b"/d/" + name), **bytes_out)
        assert done.stdout == b"d/" + name
        assert (
            name in node("stat", f"oci:{layout}:v1", os.fsdecode(b"/d/" + name), **bytes_out).stdout
        )
    done = node("cat", f"oci:{layout}:v1", os.fsdecode(b"/d/none\xfe"), code=1, **bytes_out)
    assert done.stderr.startswith(b"pagein: ")
    assert b"bug" not in done.stderr


def test_the_geometry_adds_up(site: Site, node: NodeUnderTest) -> None:
    facts = json.loads(node("inspect", "--json", site.app).stdout)
    assert facts["source"] == site.image.digests["app"]
    for key in ("artifact", "index"):
        assert site.blob(facts[key]).exists()
    assert site.blob(facts["index"]).stat().st_size == facts["index_size"]
    assert sum(pack["size"] for pack in facts["packs"]) == facts["stored_size"]
    for pack in facts["packs"]:
        assert site.blob(pack["digest"]).stat().st_size == pack["size"]
    assert facts["sectors"] * facts["sector_size"] == facts["data_size"]
    whole = -(-facts["metadata_size"] // facts["sector_size"]) * facts["sector_size"]
    assert facts["device_size"] == whole + facts["hot_size"] + facts["data_size"]
    assert (facts["cached_sectors"], facts["hot_size"]) == (0, 0)
    text = node("inspect", site.app).stdout
    for value in (facts["artifact"], facts["index"], *(p["digest"] for p in facts["packs"])):
        assert value in text


def test_a_sound_image_passes_both_checks(site: Site, node: NodeUnderTest) -> None:
    shallow = node("check", site.app).stdout
    assert shallow.splitlines() == [
        line for line in shallow.splitlines() if "structure is right" in line
    ]
    deep = json.loads(node("check", "--deep", "--json", site.app).stdout)
    facts = json.loads(node("inspect", "--json", site.app).stdout)
    assert (deep["compared"], deep["problems"]) == (True, [])
    assert deep["sectors"] == facts["distinct_sectors"]
    assert deep["structure"]["inodes"] == facts["inodes"]


# -- what is imported

WATCHED = """
import sys
sys.argv = ["pagein", *sys.argv[1:]]
from pagein.cli.main import main
try:
    main()
finally:
    print("\\n".join(sys.modules), file=sys.stderr)
"""
NEVER_FOR_HELP = {
    "google", "grpc", "httpx", "isal", "msgspec", "rich", "ssl", "tomlkit", "urllib3", "yaml",
    "zstandard", "pagein.build", "pagein.daemon", "pagein.device", "pagein.format",
    "pagein.runtime", "pagein.snapshotter", "pagein.store", "pagein.testing", "pagein.transport",
}  # fmt: skip
NEVER_FOR_LOOKING = {
    "google", "grpc", "httpx", "isal", "rich", "yaml", "pagein.build", "pagein.device",
    "pagein.runtime", "pagein.snapshotter", "pagein.testing",
}  # fmt: skip


def imported(node: NodeUnderTest, *words: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *words],
        env=node.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("words", [("--help",), ("--version",)], ids=" ".join)
def test_help_imports_nothing_that_it_does_not_need(
    words: tuple[str, ...], node: NodeUnderTest
) -> None:
    assert imported(node, *words) & NEVER_FOR_HELP == set()


def test_no_command_imports_more_before_it_is_run(node: NodeUnderTest) -> None:
    modules = [f"pagein.cli.{name.replace('-', '_')}" for name in COMMANDS]
    script = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    needed = {"msgspec", "pagein.format"}
    assert set(done.stdout.split()) & NEVER_FOR_HELP - needed == set()


def test_looking_into_an_image_imports_no_converter(site: Site, node: NodeUnderTest) -> None:
    assert imported(node, "ls", site.app, "/") & NEVER_FOR_LOOKING == set()
