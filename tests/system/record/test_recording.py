"""``pagein record`` with a real container that reads what the test knows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess

import pytest
from daemon_under_test import DaemonUnderTest
from node_under_test import NodeUnderTest
from recorded_image import (
    Place,
    dd,
    read_json,
    repository,
    touched_blocks,
    touched_length,
)

pytestmark = pytest.mark.root

READS = "; ".join(
    (dd("data/big", 100, 3), dd("data/big", 10, 1), "cat /data/odd >/dev/null",
     dd("data/big", 99, 3), dd("data/big", 700, 1))
)  # fmt: skip
BLOCKS = [
    *(("data/big", block) for block in (100, 101, 102, 10)),
    *(("data/odd", block) for block in range(6)),
    *(("data/big", block) for block in (99, 700)),
]
WAIT = "while :; do sleep 0.05; done"


@pytest.mark.parametrize("backend", ["fuse", "loop"])
def test_a_profile_has_the_blocks_that_were_read_in_that_order(
    backend: str, place: Place, node: NodeUnderTest
):
    out = node.folder / "app.profile"
    node("record", place.app, "-o", out, "--backend", backend, "--", "sh", "-c", READS)
    profile = read_json(out)
    assert touched_blocks(profile) == BLOCKS
    assert touched_length(profile, "data/odd") == 5 * 4096 + 100
    assert profile["version"] == 1
    assert profile["read_ahead_kb"] == 0
    assert profile["reference"] == f"docker://{place.app}"
    assert profile["source"] == place.image.digests["app"]
    assert profile["command"] == ["sh", "-c", READS]
    assert 0 < profile["seconds"] < 30
    times = [touch[3] for touch in profile["touches"]]
    assert times[0] == 0
    assert times == sorted(times)
    assert times[-1] <= profile["seconds"] * 1000
    names = [one["name"] for one in profile["files"]]
    assert "bin/sh" in names
    assert "bin/dd" in names
    assert "bin/stat" not in names
    assert out.stat().st_mode & 0o777 == 0o644


def test_a_second_recording_says_the_same_although_all_sectors_are_here(
    place: Place, node: NodeUnderTest
):
    for name in ("one", "two"):
        node("record", place.app, "-o", node.folder / name, "--", "sh", "-c", READS)
    one, two = (read_json(node.folder / name) for name in ("one", "two"))
    assert touched_blocks(one) == touched_blocks(two) == BLOCKS
    assert one["files"] == two["files"]


@pytest.mark.parametrize("backend", ["fuse", "loop"])
def test_an_optimized_image_is_recorded_the_same(backend: str, place: Place, node: NodeUnderTest):
    reference = repository(place, f"optimized-{backend}")
    before, after = node.folder / "before", node.folder / "after"
    node("convert", reference)
    node("record", reference, "-o", before, "--", "sh", "-c", READS)
    node("optimize", reference, "--profile", before)
    node("record", reference, "-o", after, "--backend", backend, "--", "sh", "-c", READS)
    assert touched_blocks(read_json(after)) == BLOCKS
    difference = json.loads(node("profile", "diff", before, after, "--json").stdout)
    assert (difference["only_a"], difference["only_b"]) == (0, 0)


def test_reads_that_a_read_ahead_adds_are_in_a_profile_with_that_read_ahead(
    place: Place, node: NodeUnderTest
):
    out = node.folder / "app.profile"
    script = dd("data/big", 0, 1)  # the kernel reads ahead from the start of a file
    node("record", place.app, "-o", out, "--read-ahead", 64, "--", "sh", "-c", script)
    profile = read_json(out)
    assert profile["read_ahead_kb"] == 64
    blocks = touched_blocks(profile)
    assert blocks[0] == ("data/big", 0)
    assert len(blocks) > 1


def test_the_exit_code_is_the_commands_and_the_profile_is_written(
    place: Place, node: NodeUnderTest
):
    out = node.folder / "app.profile"
    script = f"{dd('data/big', 5, 1)}; echo said; exit 7"
    done = node("record", place.app, "-o", out, "--", "sh", "-c", script, code=7)
    assert done.stdout == "said\n"
    assert touched_blocks(read_json(out)) == [("data/big", 5)]


def test_options_of_run_reach_the_container(place: Place, node: NodeUnderTest):
    out = node.folder / "app.profile"
    shared = node.target()
    options = (
        "--env",
        "WHO=me",
        "--volume",
        f"{shared}:/v",
        "--workdir",
        "/data",
        "--user",
        "alice",
    )
    script = "echo $WHO; pwd; id -un; ls /v"
    (shared / "bound").write_text("")
    done = node("record", *options, place.app, "-o", out, "--", "sh", "-c", script)
    assert done.stdout.split() == ["me", "/data", "alice", "bound"]
    done = node("record", place.app, "-o", out, "--entrypoint", "/bin/id", "--", "-u")
    assert done.stdout == "0\n"
    assert read_json(out)["command"] == ["/bin/id", "-u"]


def test_an_image_that_nobody_converted_is_converted_here(place: Place, node: NodeUnderTest):
    out = node.folder / "app.profile"
    done = node("record", place.plain, "-o", out, "--", "sh", "-c", READS)
    assert "converting it here" in done.stderr
    assert touched_blocks(read_json(out)) == BLOCKS


def test_a_line_of_the_output_ends_a_recording(place: Place, node: NodeUnderTest):
    out = node.folder / "app.profile"
    before, after = dd("data/big", 1, 1), dd("data/big", 2, 1)
    script = (
        f"trap '{after}; echo stopped; exit 3' INT; {before}; echo one; echo re''ady 2 >&2; {WAIT}"
    )
    words = ("--until-log", "^rea?dy [0-9]$", "--", "sh", "-c", script)
    done = node("record", place.app, "-o", out, *words)
    assert done.stdout == "one\nstopped\n"
    assert "ready 2\n" in done.stderr
    # What is read in order to stop is no part of a start.
    assert touched_blocks(read_json(out)) == [("data/big", 1)]


def test_the_last_line_of_a_command_that_ends_counts(place: Place, node: NodeUnderTest):
    out = node.folder / "app.profile"
    node(
        "record",
        place.app,
        "-o",
        out,
        "--until-log",
        "ready",
        "--",
        "sh",
        "-c",
        "echo ready; exit 3",
    )
    assert out.exists()


@pytest.mark.parametrize("script", ["echo nearly; exit 3", "exit 0"])
def test_a_command_that_ends_before_the_condition_leaves_no_profile(
    script: str, place: Place, node: NodeUnderTest
):
    out = node.folder / "app.profile"
    out.write_text("of before")
    done = node(
        *("record", place.app, "-o", out, "--until-log", "ready", "--for", "1h"),
        *("--", "sh", "-c", script),
        code=1,
    )
    said = f"the command ended with {script[-1]} before a line matched 'ready' or 3600 s had passed"
    assert said in done.stderr
    assert out.read_text() == "of before"
    assert [one.name for one in node.folder.iterdir() if one.name.startswith(".")] == []


def test_time_ends_a_recording(place: Place, node: NodeUnderTest):
    out = node.folder / "app.profile"
    script = f"trap 'exit 3' INT; {dd('data/big', 1, 1)}; {WAIT}"
    node("record", place.app, "-o", out, "--for", "1500ms", "--", "sh", "-c", script)
    profile = read_json(out)
    assert touched_blocks(profile) == [("data/big", 1)]
    assert 1 < profile["seconds"] < 10


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("found", [True, False])
def test_an_address_that_answers_ends_a_recording(found: bool, place: Place, node: NodeUnderTest):
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    if python is None:
        pytest.skip("needs python3")
    out, port = node.folder / "app.profile", free_port()
    serve = f"{python} -m http.server --bind 127.0.0.1 --directory /data {port}"
    script = f"{dd('data/big', 7, 1)}; trap 'kill $!; exit 3' INT; {serve} & wait"
    url = f"http://127.0.0.1:{port}/{'small' if found else 'absent'}"
    words = ("--until", url, "--volume", "/usr:/usr:ro", "--volume", "/lib:/lib:ro")
    options = () if found else ("--until-log", '"GET /absent HTTP/1.1" 404')
    done = node("record", place.app, "-o", out, *words, *options, "--", "sh", "-c", script)
    blocks = touched_blocks(read_json(out))
    assert blocks[0] == ("data/big", 7)
    # The file that was served is part of the start; the answer came after it was read.
    assert blocks[1:] == ([("data/small", 0)] if found else [])
    assert ('"GET /small HTTP/1.1" 200' in done.stderr) == found


def test_what_answers_before_the_start_cannot_end_it(place: Place, node: NodeUnderTest):
    url = f"http://{place.registry.host}/v2/"
    line, hint = node.complaint(
        "record", place.app, "-o", node.folder / "p", "--until", url, "--", "sh", code=2
    )
    assert line == f"{url} answers already, before the container runs"
    assert "another address" in hint


def test_an_interrupt_keeps_what_was_recorded(place: Place, node: NodeUnderTest):
    out = node.folder / "app.profile"
    script = f"trap 'exit 130' INT; {dd('data/big', 3, 1)}; echo ready; {WAIT}"
    for until in ((), ("--until-log", "never")):
        child = node.start(
            *("record", place.app, "-o", out, *until, "--", "sh", "-c", script),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=30)
        assert child.returncode == 130
        assert touched_blocks(read_json(out)) == [("data/big", 3)]
        out.unlink()


def test_a_recording_never_uses_the_daemon(place: Place, node: NodeUnderTest):
    daemon = DaemonUnderTest(node)
    daemon.start()
    try:
        target = node.mount(place.app)
        assert (target / "data/big").read_bytes()  # the daemon's page cache has it all
        out = node.folder / "app.profile"
        script = f"echo running; {READS}; read wait"
        child = node.start(
            *("record", place.app, "-o", out, "--", "sh", "-c", script),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
        shown = daemon.status()
        assert (len(shown["images"]), len(shown["mounts"])) == (1, 1)
        child.communicate("go on\n", timeout=30)
        assert child.returncode == 0
        assert touched_blocks(read_json(out)) == BLOCKS
    finally:
        daemon.end()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "where should the profile go?"),
        (("-o", "/nonexistent/p"), "/nonexistent is not a directory"),
        (("-o", "p", "--for", "soon"), "not a duration: 'soon'"),
        (("-o", "p", "--for", "0s"), "not a time to record: '0s'"),
        (("-o", "p", "--until", "ftp://x/"), "not an address: 'ftp://x/'"),
        (("-o", "p", "--until-log", "("), "not a regular expression: '('"),
        (("-o", "p", "--tty", "--until-log", "x"), "the lines of a terminal cannot be looked at"),
        (("-o", "p", "--net", "none", "--until", "http://x/"), "nothing in a container with --net"),
    ],
)
def test_words_that_make_no_sense_are_one_line(
    words: tuple[str, ...], complaint: str, node: NodeUnderTest
):
    line, _ = node.complaint("record", "nowhere.invalid/app:v1", *words, code=2)
    assert line.startswith(complaint)


def test_a_place_that_cannot_be_pushed_to_is_told_before_the_start(node: NodeUnderTest):
    line, hint = node.complaint("record", "--push", "oci-archive:/nowhere.tar", code=2)
    assert line == "oci-archive: cannot be written to"
    assert "docker://" in hint


@pytest.mark.parametrize(
    ("words", "code"), [(("--until-log", "ready"), 1), ((), 127)], ids=["until", "whole"]
)
def test_a_command_that_cannot_start_leaves_no_mount_and_no_profile(
    words: tuple[str, ...], code: int, place: Place, node: NodeUnderTest
):
    out = node.folder / "app.profile"
    done = node("record", place.app, "-o", out, *words, "--", "/bin/absent", code=code)
    assert "no profile was written" in done.stderr
    assert not out.exists()
    assert os.listdir(node.root / "run/mounts") == []
