"""Real containers on runc and on crun: what a command sees, and what it leaves behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_rootfs import build_tiny_rootfs

from pagein.runtime import container
from pagein.runtime.bundle import prepare_bundle
from pagein.runtime.host import gather_facts
from pagein.runtime.resolve import find_runtime
from pagein.runtime.rootfs import prepare_overlay
from pagein.runtime.spec import ProcessDefaults, RunOptions

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

DRIVER = Path(__file__).with_name("run_bundle.py")
NAME = f"test-runtime-{os.getpid()}"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_rootfs(tmp_path_factory.mktemp("tiny") / "rootfs")


class Box:
    """One place to run containers on one runtime, and to see afterwards that nothing is left."""

    def __init__(self, runtime: str, tree: Path, folder: Path) -> None:
        self.runtime, self.tree, self.bundle = runtime, tree, folder / "bundle"
        self.image: dict[str, object] = {}

    def words(self, *args: str, **options: object) -> list[str]:
        order = {
            "runtime": self.runtime,
            "rootfs": str(self.tree),
            "bundle": str(self.bundle),
            "image": self.image,
            "options": {"name": NAME, "args": args, **options},
        }
        return [sys.executable, str(DRIVER), json.dumps(order)]

    def run(self, *args: str, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(*args, **options), capture_output=True, text=True, timeout=60
        )

    def sh(self, script: str, **options: object) -> str:
        done = self.run("sh", "-c", script, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, script: str, **options: object) -> subprocess.Popen[str]:
        """Start a command that says ``ready`` when its traps are set."""
        child = subprocess.Popen(
            self.words("sh", "-c", script, **options),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child

    def leftovers(self) -> list[str]:
        state = self.bundle / "state"
        left = [str(path) for path in state.iterdir()] if state.exists() else []
        for folder, names, _ in os.walk("/sys/fs/cgroup"):
            left += [f"{folder}/{name}" for name in names if NAME in name]
        left += [m for m in Path("/proc/mounts").read_text().splitlines() if str(self.bundle) in m]
        return left


@pytest.fixture(params=["runc", "crun"])
def box(request: pytest.FixtureRequest, tree: Path, tmp_path: Path) -> Iterator[Box]:
    if shutil.which(request.param) is None:
        pytest.skip(f"needs {request.param}")
    box = Box(request.param, tree, tmp_path)
    yield box
    assert box.leftovers() == []


@contextlib.contextmanager
def overlay(lower: Path, folder: Path) -> Iterator[Path]:
    made = prepare_overlay(lower, folder / "writable", volatile=True)
    target = folder / "rootfs"
    target.mkdir()
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", made.options, str(target)], check=True
    )
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True)


@pytest.mark.parametrize("code", [0, 1, 3, 125, 126, 127, 255])
def test_the_exit_code_is_the_commands(box: Box, code: int) -> None:
    done = box.run("sh", "-c", f"echo out; echo err >&2; exit {code}")
    assert (done.returncode, done.stdout, done.stderr) == (code, "out\n", "err\n")


@pytest.mark.parametrize(
    ("command", "code"),
    [("nowhere", 127), ("/bin/nowhere", 127), ("/bin/not-executable", 126), ("/etc", 126)],
)
def test_a_command_that_cannot_start_has_a_code_and_a_line_of_its_own(
    box: Box, command: str, code: int
) -> None:
    done = box.run(command)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1


def test_standard_input_reaches_the_command(box: Box) -> None:
    done = subprocess.run(box.words("cat"), input=b"\x00\xffbytes", capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"\x00\xffbytes")


def test_entrypoint_and_cmd_make_the_command(box: Box) -> None:
    box.image = {"entrypoint": ["sh", "-c", 'echo "$0 $@"'], "cmd": ["from", "image"]}
    assert box.run().stdout == "from image\n"
    assert box.run("from", "caller").stdout == "from caller\n"


def test_the_environment_is_dockers(box: Box) -> None:
    box.image = {"env": ["A=image", "B=image"], "user": "alice"}
    seen = dict(line.split("=", 1) for line in box.sh("env", env=["B=asked"]).splitlines())
    assert seen["A"] == "image"
    assert seen["B"] == "asked"
    assert seen["HOME"] == "/home/alice"
    assert seen["PATH"].endswith(":/bin")
    assert "TERM" not in seen


def test_a_missing_working_directory_is_made(box: Box, tmp_path: Path) -> None:
    box.image = {"working_dir": "/made/here"}
    with overlay(box.tree, tmp_path) as box.tree:
        assert box.sh("pwd") == "/made/here\n"
    assert box.run("pwd", workdir="relative").returncode == 1


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", "0 0 0"),
        ("alice", "1000 1000 1000 44 106"),
        ("1000", "1000 1000 1000 44 106"),
        ("alice:staff", "1000 50 50"),
        ("7:8", "7 8 8"),
        ("4242", "4242 0 0"),
    ],
)
def test_users_are_looked_up_in_the_image(box: Box, user: str, expected: str) -> None:
    assert box.sh("echo $(id -u) $(id -g) $(id -G)", user=user) == f"{expected}\n"


def test_an_unknown_user_is_one_line(box: Box) -> None:
    done = box.run("true", user="mallory")
    assert done.returncode == 1
    assert "no user 'mallory'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_accounts_are_never_read_from_the_host(box: Box, tmp_path: Path) -> None:
    with overlay(box.tree, tmp_path) as box.tree:
        (box.tree / "etc/passwd").unlink()
        (box.tree / "etc/passwd").symlink_to("../../../../../../etc/passwd")
        done = box.run("true", user="daemon")
    assert "no user 'daemon'" in done.stderr


def test_capabilities_are_dockers_default_set(box: Box) -> None:
    status = dict(
        line.split(":\t") for line in box.sh("cat /proc/self/status").splitlines() if ":\t" in line
    )
    assert status["CapBnd"] == status["CapEff"] == status["CapPrm"] == "00000000a80425fb"
    assert status["CapAmb"] == "0000000000000000"


def test_a_user_who_is_not_root_has_no_effective_capabilities(box: Box) -> None:
    assert "CapEff:\t0000000000000000" in box.sh("cat /proc/self/status", user="alice")


def test_volumes_are_bound_and_read_only_where_asked(box: Box, tmp_path: Path) -> None:
    shared, fixed = tmp_path / "shared", tmp_path / "fixed"
    shared.mkdir()
    fixed.mkdir()
    (fixed / "below").mkdir()
    (fixed / "shared").mkdir()  # a mount point cannot be made below a read-only volume
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(fixed / "below")], check=True)
    try:
        with overlay(box.tree, tmp_path) as box.tree:
            said = box.sh(
                "echo hello >/data/shared/file; touch /data/x || echo refused;"
                "touch /data/below/x || echo refused below",
                volumes=[f"{shared}:/data/shared", f"{fixed}:/data:ro"],
            )
    finally:
        subprocess.run(["umount", str(fixed / "below")], check=True)
    assert said == "refused\nrefused below\n"
    assert (shared / "file").read_text() == "hello\n"


def test_a_volume_without_a_source_is_one_line(box: Box, tmp_path: Path) -> None:
    done = box.run("true", volumes=[f"{tmp_path}/nowhere:/data"])
    assert done.returncode == 1
    assert "does not exist" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def _interfaces(box: Box, net: str) -> set[str]:
    lines = box.sh("cat /proc/net/dev", net=net).splitlines()[2:]
    return {line.split(":")[0].strip() for line in lines}


def test_without_a_network_there_is_only_loopback(box: Box) -> None:
    ours = {name for _, name in socket.if_nameindex()}
    assert _interfaces(box, "host") == ours
    assert _interfaces(box, "none") == {"lo"}
    assert "localhost" in box.sh("cat /etc/hosts", net="none")


def test_the_host_lends_its_name_and_its_resolver(box: Box) -> None:
    resolver = Path("/etc/resolv.conf").read_text()
    assert box.sh("cat /etc/resolv.conf") == resolver
    assert box.sh("cat /etc/hosts") == Path("/etc/hosts").read_text()
    assert box.sh("cat /etc/hostname /proc/sys/kernel/hostname", hostname="inside") == (
        "inside\ninside\n"
    )


def test_kernel_file_systems_are_there_and_guarded(box: Box) -> None:
    said = box.sh(
        "ls -d /proc/1 /dev/null /dev/pts /dev/shm /sys/kernel /dev/fd >/dev/null || exit 9;"
        "cat /proc/timer_list; echo $?; (echo x >/proc/sysrq-trigger) 2>/dev/null || echo refused;"
        "(: >/sys/kernel/uevent_seqnum) 2>/dev/null || echo refused; echo $$; ls /proc/1/fd"
    ).splitlines()
    assert said[:4] == ["0", "refused", "refused", "1"]


def test_the_root_is_writable_and_the_image_stays_as_it_was(box: Box, tmp_path: Path) -> None:
    lower = box.tree
    with overlay(lower, tmp_path) as box.tree:
        assert box.sh("echo new >/root/file; rm -f /x; cat /root/file") == "new\n"
        assert "drwxr-xr-x" in box.sh("ls -ld /")
    assert not (lower / "root/file").exists()
    assert (tmp_path / "writable/upper/root/file").read_text() == "new\n"


def test_a_read_only_root_refuses_writes(box: Box) -> None:
    assert box.sh("touch /file 2>/dev/null || echo refused", read_only=True) == "refused\n"


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2"])
def test_a_signal_to_pagein_reaches_the_command(box: Box, name: str) -> None:
    child = box.start(
        f"trap 'echo got {name}; exit 42' {name}; echo ready; while :; do sleep 0.05; done"
    )
    child.send_signal(getattr(signal, f"SIG{name}"))
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (42, f"got {name}\n", "")


def test_a_signal_reaches_the_command_once(box: Box) -> None:
    child = box.start("n=0; trap 'n=$((n+1))' INT; echo ready; sleep 0.2; sleep 0.3; echo $n")
    os.kill(child.pid, signal.SIGINT)
    out, _ = child.communicate(timeout=30)
    assert out == "1\n"


def test_a_command_that_a_signal_ends_gives_128_and_its_number(box: Box) -> None:
    assert box.run("sh", "-c", "sh -c 'kill -9 $$'; exit $?").returncode == 137


def test_the_third_request_to_end_kills_a_command_that_ignores_it(box: Box) -> None:
    child = box.start("trap '' TERM; echo ready; while :; do sleep 1; done")
    for _ in range(3):
        child.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    child.communicate(timeout=30)
    assert child.returncode == 137


def test_a_killed_runtime_leaves_no_container(box: Box) -> None:
    child = box.start("echo ready; while :; do sleep 1; done")
    tasks = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    os.kill(int(tasks[0]), signal.SIGKILL)
    child.communicate(timeout=30)
    assert child.returncode == 137


def test_one_name_runs_once_at_a_time(box: Box) -> None:
    child = box.start("trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done")
    second = box.run("true")
    assert second.returncode == 1
    assert second.stderr == f"pagein: container {NAME} is running already\n"
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=30)
    assert child.returncode == 0


class Terminal:
    """The far end of a terminal."""

    def __init__(self, master: int) -> None:
        self.master, self.seen = master, b""

    def wait_for(self, text: bytes) -> None:
        deadline = time.monotonic() + 30
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.master, 4096)
                except OSError:  # EIO: everybody at the near end is gone
                    assert text in self.seen, self.seen


def test_a_terminal_is_a_terminal_with_the_right_size(box: Box) -> None:
    master, near = pty.openpty()
    fcntl.ioctl(near, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    script = (
        "test -t 0 && test -t 1 && test -t 2 && echo all terminals; echo term=$TERM;"
        "until test \"$(stty size)\" = '33 101'; do sleep 0.05; done; stty size;"
        "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.05; done"
    )
    # A session of its own, with this terminal in control, as a shell in a window has it.
    words = ["setsid", "--ctty", "--wait", *box.words("sh", "-c", script, tty=True)]
    child = subprocess.Popen(words, stdin=near, stdout=near, stderr=near)
    os.close(near)
    try:
        terminal = Terminal(master)
        terminal.wait_for(b"ready")
        os.write(master, b"\x03")
        terminal.wait_for(b"interrupted")
        assert child.wait(30) == 5
    finally:
        os.close(master)
    assert b"all terminals\r\n" in terminal.seen
    assert b"term=xterm\r\n" in terminal.seen
    assert b"33 101\r\n" in terminal.seen


def test_another_thread_ends_a_container_that_does_not_listen(box: Box) -> None:
    options = RunOptions(
        name=NAME, args=("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    )
    prepare_bundle(box.bundle, ProcessDefaults(), box.tree, options, gather_facts())
    reader, writer = os.pipe()
    stoppers: list[threading.Thread] = []

    def stop_when_ready(running: container.RunningContainer) -> None:
        def stop() -> None:
            assert os.read(reader, 100) == b"ready\n"
            running.stop(grace_s=0.3)

        stoppers.append(threading.Thread(target=stop))
        stoppers[0].start()

    began = time.monotonic()
    output = container.Output(stdout=writer)
    with open(reader), open(writer):
        runtime = find_runtime(box.runtime)
        code = container.run_container(
            runtime, box.bundle, NAME, tty=False, output=output, on_start=stop_when_ready
        )
        stoppers[0].join(10)
    assert code == 137
    assert 0.3 < time.monotonic() - began < 8
