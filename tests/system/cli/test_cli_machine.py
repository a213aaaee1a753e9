"""Machines and users that cannot mount: what works, and the one line about what does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from node_under_test import NodeUnderTest
from registry_site import Site
from tiny_rootfs import PASSWD

from pagein.daemon.paths import Paths
from pagein.device.mount import mount
from pagein.errors import DeviceError

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

NOBODY = 65534
Typed = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home() -> Iterator[Path]:
    """The home of a user who is not root; pytest's own folders are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="pagein-home-"))
    os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def nobody(home: Path) -> Typed:
    """Type a command as that user."""

    def typed(*words: object, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [
                *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
                *(sys.executable, "-m", "pagein", *map(str, words)),
            ],
            env={"PATH": os.environ["PATH"], "HOME": str(home), **variables},
            cwd=home,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if "can't open file" in done.stderr or "No module named" in done.stderr:
            pytest.skip("this checkout is closed to other users")
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    return typed


def test_who_is_not_root_looks_inside_an_image(site: Site, nobody: Typed, home: Path) -> None:
    assert nobody("cat", site.app, "/etc/passwd").stdout == PASSWD
    assert "part3" in nobody("ls", "-l", site.app, "/data").stdout
    assert "70000" in nobody("stat", site.app, "/odd").stdout
    facts = json.loads(nobody("inspect", "--json", site.app).stdout)
    assert facts["cached_sectors"] > 0
    assert json.loads(nobody("status", "--json").stdout) == {"mounts": []}
    assert (home / ".local/state/pagein/cache").is_dir()
    for path in (home / ".local/state/pagein").rglob("*"):
        assert path.lstat().st_mode & 0o077 == 0 or path.is_file()


def test_who_is_not_root_converts_into_a_layout_and_looks_inside(
    site: Site, nobody: Typed, home: Path
) -> None:
    plain = f"{site.registry.host}/plain:v1"
    nobody("convert", "--sector-size", "256KiB", plain, f"oci:{home}/layout:v1")
    done = nobody("cat", f"oci:{home}/layout:v1", "/etc/group")
    assert "alice:x:1000:" in done.stdout


def test_state_lies_where_the_user_says(site: Site, nobody: Typed, home: Path) -> None:
    nobody("ls", site.app, "/", XDG_STATE_HOME=f"{home}/state")
    assert (home / "state/pagein/images").is_dir()
    nobody("ls", site.app, "/", XDG_STATE_HOME=f"{home}/state", PAGEIN_ROOT=f"{home}/own")
    assert (home / "own/lib/images").is_dir()
    assert not (home / ".local").exists()


@pytest.mark.parametrize("command", [("mount", "REF", "."), ("run", "REF"), ("umount", ".")])
def test_who_is_not_root_is_told_so_before_any_work(
    command: tuple[str, ...], site: Site, nobody: Typed, home: Path
) -> None:
    done = nobody(*(site.app if word == "REF" else word for word in command), code=2)
    assert done.stderr == (
        "pagein: mounting needs root\n  hint: sudo, or look inside with pagein ls and pagein cat\n"
    )
    assert list(home.iterdir()) == []


def test_a_state_folder_of_somebody_else_is_one_line(
    site: Site, nobody: Typed, node: NodeUnderTest
) -> None:
    done = nobody("ls", site.app, "/", code=1, PAGEIN_ROOT="/proc/pagein")
    assert done.stderr.startswith("pagein: cannot make the folder /proc/pagein: ")
    assert "PAGEIN_ROOT" in done.stderr
    assert done.stderr.count("\n") == 2


@pytest.mark.parametrize(
    ("variables", "state", "run"),
    [
        ({"PAGEIN_ROOT": "/x", "XDG_STATE_HOME": "/s"}, "/x/lib", "/x/run"),
        (
            {"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/run/user/7", "HOME": "/h"},
            "/s/pagein",
            "/run/user/7/pagein",
        ),
        (
            {"XDG_STATE_HOME": "relative", "HOME": "/h"},
            "/h/.local/state/pagein",
            "/h/.local/state/pagein/run",
        ),
    ],
)
def test_folders_are_those_of_the_xdg_specification(
    variables: dict[str, str], state: str, run: str
) -> None:
    assert Paths.from_environment(variables, root=False) == Paths(Path(state), Path(run))
    if "PAGEIN_ROOT" not in variables:
        assert Paths.from_environment(variables, root=True) == Paths(
            Path("/var/lib/pagein"), Path("/run/pagein")
        )


BARE_DEV = """
set -e
mount -t tmpfs dev /dev
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/urandom c 1 9
"""
"""A /dev as containers have it, without fuse and loop devices."""

NO_EROFS = """
set -e
grep -v erofs /proc/filesystems > "$FOLDER/filesystems"
mount --bind "$FOLDER/filesystems" /proc/filesystems
if test -d /lib/modules; then mount -t tmpfs modules /lib/modules; fi
"""


def elsewhere(node: NodeUnderTest, script: str, *words: object) -> list[str]:
    """A command that runs in a mount namespace of its own, which ``script`` has changed."""
    script += '\nexec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", *node.command(*words)]


def run_elsewhere(
    node: NodeUnderTest, script: str, *words: object
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        elsewhere(node, script, *words),
        env=node.environment | {"FOLDER": str(node.folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare failed" in done.stderr:
        pytest.skip("needs mount namespaces")
    return done


@pytest.mark.parametrize("backend", ["auto", "fuse", "loop"])
def test_without_dev_fuse_a_mount_is_one_line_that_says_so(
    backend: str, site: Site, node: NodeUnderTest
) -> None:
    for words in (("mount", site.app, node.target()), ("run", site.app, "--", "true")):
        done = run_elsewhere(node, BARE_DEV, words[0], "--backend", backend, *words[1:])
        assert done.returncode == 1
        line, hint = done.stderr.splitlines()
        assert line == "pagein: cannot open /dev/fuse: No such file or directory"
        assert "modprobe fuse" in hint
        assert node.leftovers() == []


def findings(text: str) -> dict[str, dict[str, object]]:
    return {one["name"]: one for one in json.loads(text)}


def test_the_doctor_names_what_is_missing_and_how_to_mend_it(node: NodeUnderTest) -> None:
    done = run_elsewhere(node, BARE_DEV, "doctor", "--json")
    assert done.returncode == 1
    found = findings(done.stdout)
    assert found["/dev/fuse"]["ok"] is False
    assert "modprobe fuse" in str(found["/dev/fuse"]["mend"])
    assert found["loop devices"]["ok"] is False
    assert found["root"]["ok"] is True
    done = run_elsewhere(node, BARE_DEV, "doctor")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    [place] = [n for n, line in enumerate(lines) if line.startswith("BAD /dev/fuse")]
    assert "modprobe fuse" in lines[place + 1]


def test_the_doctor_misses_erofs_and_a_runtime(node: NodeUnderTest) -> None:
    done = run_elsewhere(node, NO_EROFS + "export PATH=/nowhere", "doctor", "--json")
    assert done.returncode == 1
    found = findings(done.stdout)
    assert found["erofs"]["ok"] is False
    assert "modprobe erofs" in str(found["erofs"]["mend"])
    assert found["runtime"]["ok"] is False
    assert "apt-get install runc" in str(found["runtime"]["mend"])
    assert found["/dev/fuse"]["ok"] is True


def test_the_doctor_is_content_with_this_machine(site: Site, node: NodeUnderTest) -> None:
    done = node("doctor")
    assert "BAD" not in done.stdout
    found = findings(node("doctor", "--json").stdout).values()
    assert all(one["ok"] for one in found if one["required"])


def test_the_doctor_sees_a_user_who_is_not_root(nobody: Typed) -> None:
    found = findings(nobody("doctor", "--json", code=1).stdout)
    assert found["root"]["ok"] is False
    assert "run as root" in str(found["root"]["mend"])
    nobody("doctor", "--json", code=1, PAGEIN_ROOT="/root/closed")


def test_a_file_system_that_the_kernel_lacks_is_named(node: NodeUnderTest) -> None:
    with pytest.raises(DeviceError, match="cannot mount no-such-fs at") as caught:
        mount("none", node.target(), "no-such-fs", 0, "")
    assert "this kernel lacks that file system" in str(caught.value.hint)
