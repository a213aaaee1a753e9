"""``pagein run`` as typed: what the command sees, how it ends, and that nothing stays."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from counting_proxy import CountingProxy
from node_image import PARTS
from node_under_test import NodeUnderTest, wait_until
from registry_site import Site

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not (shutil.which("runc") or shutil.which("crun")), reason="needs runc"),
]


@pytest.fixture(autouse=True)
def no_container_stays(node: NodeUnderTest) -> Iterator[None]:
    """No cgroup of a test's container is there afterwards (`node` looks for the rest)."""
    before = cgroups()
    yield
    wait_until(lambda: cgroups() <= before)  # others may run containers of their own


def cgroups() -> set[str]:
    return {folder for folder, _, _ in os.walk("/sys/fs/cgroup") if "pagein" in folder}


def sh(node: NodeUnderTest, site: Site, script: str, *options: str) -> str:
    return node("run", *options, site.app, "--", "sh", "-c", script).stdout


@pytest.mark.parametrize("backend", ["fuse", "loop"])
@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_a_command_runs_on_either_runtime_and_backend(
    runtime: str, backend: str, site: Site, node: NodeUnderTest
) -> None:
    if shutil.which(runtime) is None:
        pytest.skip(f"needs {runtime}")
    options = ("--runtime", runtime, "--backend", backend, "--rm")
    done = node("run", *options, site.app, "--", "cat", "/data/part2", text=False)
    assert done.stdout == PARTS["part2"]
    assert done.stderr == b""
    assert node.leftovers() == []


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_the_exit_code_is_the_commands(code: int, site: Site, node: NodeUnderTest) -> None:
    node("run", site.app, "--", "sh", "-c", f"exit {code}", code=code)


@pytest.mark.parametrize(("command", "code"), [("/bin/absent", 127), ("/bin/not-executable", 126)])
def test_a_command_that_cannot_start_has_a_code_of_its_own(
    command: str, code: int, site: Site, node: NodeUnderTest
) -> None:
    done = node("run", site.app, "--", command, code=code)
    assert command.rpartition("/")[2] in done.stderr
    assert "Traceback" not in done.stderr


def started(node: NodeUnderTest, site: Site, script: str, *options: str) -> subprocess.Popen[str]:
    """Start a container that says ``ready`` when its traps are set."""
    child = node.start(
        *("run", *options, site.app, "--", "sh", "-c", script),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


WAIT = "while :; do sleep 0.1; done"


def test_a_request_to_end_reaches_the_command(site: Site, node: NodeUnderTest) -> None:
    child = started(node, site, f"trap 'echo ended; exit 143' TERM; echo ready; {WAIT}")
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=30)
    assert (out, child.returncode) == ("ended\n", 143)


def test_a_command_that_a_signal_ends_gives_128_and_its_number(
    site: Site, node: NodeUnderTest
) -> None:
    node("run", site.app, "--", "sh", "-c", "sh -c 'kill -TERM $$'; exit $?", code=143)


def test_a_signal_of_ones_own_reaches_the_command(site: Site, node: NodeUnderTest) -> None:
    child = started(node, site, f"trap 'echo usr1; exit 7' USR1; echo ready; {WAIT}")
    child.send_signal(signal.SIGUSR1)
    out, _ = child.communicate(timeout=30)
    assert (out, child.returncode) == ("usr1\n", 7)


def test_standard_input_reaches_the_command(site: Site, node: NodeUnderTest) -> None:
    assert node("run", site.app, "--", "cat", input="through\n").stdout == "through\n"


def test_the_command_and_the_environment_come_from_the_image(
    site: Site, node: NodeUnderTest
) -> None:
    assert node("run", site.app).stdout == "from the image\n"
    alice = f"{site.registry.host}/alice:v1"
    assert node("run", alice).stdout == "alice\n/home/alice\ngood day\n"
    assert node("run", alice, "--", "echo $HOME").stdout == "/home/alice\n"


def test_options_win_over_the_image(site: Site, node: NodeUnderTest) -> None:
    alice = f"{site.registry.host}/alice:v1"
    options = ("--env", "GREETING=hello", "--workdir", "/data", "--user", "daemon")
    assert node("run", *options, alice).stdout == "daemon\n/data\nhello\n"
    assert node("run", "--entrypoint", "/bin/id", alice, "--", "-u").stdout == "1000\n"
    assert node("run", "--user", "1234:50", site.app, "--", "id").stdout.startswith("uid=1234 ")
    passed = node(
        *("run", "--env", "FROM_HERE", site.app, "--", "sh", "-c", "echo $FROM_HERE"),
        env=node.environment | {"FROM_HERE": "mine"},
    )
    assert passed.stdout == "mine\n"


def test_a_user_that_the_image_lacks_is_one_line(site: Site, node: NodeUnderTest) -> None:
    line, _ = node.complaint("run", "--user", "bob", site.app)
    assert "bob" in line


def test_volumes_are_bound_and_read_only_where_asked(site: Site, node: NodeUnderTest) -> None:
    shared = node.target()
    (shared / "in").write_text("from the host\n")
    script = "cat /v/in; echo out > /v/out; echo no > /r/out || echo refused; cat /r/in"
    options = ("--volume", f"{shared}:/v", "--volume", f"{shared}:/r:ro")
    assert sh(node, site, script, *options) == "from the host\nrefused\nfrom the host\n"
    assert (shared / "out").read_text() == "out\n"


def test_the_network_is_the_hosts_or_none(site: Site, node: NodeUnderTest) -> None:
    assert sh(node, site, "ls /sys/class/net", "--net", "none").split() == ["lo"]
    assert set(sh(node, site, "ls /sys/class/net").split()) == set(os.listdir("/sys/class/net"))
    names = sh(node, site, "cat /etc/resolv.conf; cat /etc/hosts")
    resolver = Path("/etc/resolv.conf")
    assert names.startswith(resolver.read_text() if resolver.exists() else "")
    assert "localhost" in names


def test_the_root_is_writable_and_forgotten(site: Site, node: NodeUnderTest) -> None:
    script = "ls /root; echo new > /root/new; mkdir /made; cat /root/new; ls -d /made"
    for _ in range(2):
        assert sh(node, site, script) == "new\n/made\n"
    assert sh(node, site, script, "--name", "brief", "--rm") == "new\n/made\n"
    assert sh(node, site, "ls /root", "--name", "brief", "--rm") == ""


def test_a_name_keeps_what_was_written(site: Site, node: NodeUnderTest) -> None:
    sh(node, site, "echo kept > /root/kept", "--name", "mine")
    assert sh(node, site, "cat /root/kept", "--name", "mine") == "kept\n"
    assert sh(node, site, "ls /root", "--name", "other", "--rm") == ""
    assert sh(node, site, "cat /root/kept", "--name", "mine", "--rm") == "kept\n"
    assert sh(node, site, "ls /root", "--name", "mine", "--rm") == ""


def test_one_name_runs_once_at_a_time(site: Site, node: NodeUnderTest) -> None:
    child = started(node, site, f"trap 'exit 0' TERM; echo ready; {WAIT}", "--name", "only")
    line, _ = node.complaint("run", "--name", "only", site.app, "--", "id", code=2)
    assert "only" in line
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=30)
    assert child.returncode == 0


def test_ten_containers_of_one_image_run_side_by_side(site: Site, node: NodeUnderTest) -> None:
    def number(n: int) -> str:
        return sh(node, site, f"echo {n} > /n; sleep 0.2; cat /n")

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(number, range(10))) == [f"{n}\n" for n in range(10)]


def on_a_terminal(node: NodeUnderTest, typed: bytes, *words: str) -> tuple[bytes, int]:
    """Run a command whose stdin, stdout and stderr are a terminal; type when it says ``ready``."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.clear()
        os.environ.update(node.environment)
        os.execv(sys.executable, node.command(*words))
    shown, deadline = b"", time.monotonic() + 30
    with contextlib.closing(os.fdopen(terminal, "rb", buffering=0)) as stream:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 0.2)[0]:
                continue
            try:
                piece = stream.read(4096)
            except OSError:  # the other end was closed
                break
            if not piece:
                break
            shown += piece
            if typed and b"ready" in shown:
                os.write(terminal, typed)
                typed = b""
    return shown, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_terminal_is_passed_on(site: Site, node: NodeUnderTest) -> None:
    script = "test -t 0 && test -t 1 && echo ready; read line; echo got $line; exit 9"
    shown, code = on_a_terminal(node, b"words\n", "run", site.app, "--", "sh", "-c", script)
    assert b"got words" in shown
    assert code == 9


def test_control_c_on_a_terminal_reaches_the_command(site: Site, node: NodeUnderTest) -> None:
    script = f"trap 'echo stopped; exit 5' INT; echo ready; {WAIT}"
    shown, code = on_a_terminal(node, b"\x03", "run", site.app, "--", "sh", "-c", script)
    assert b"stopped" in shown
    assert code == 5


def test_a_pipe_is_no_terminal(site: Site, node: NodeUnderTest) -> None:
    assert sh(node, site, "test -t 0 || echo no terminal") == "no terminal\n"


def test_without_a_runtime_one_line_names_the_package(
    node: NodeUnderTest, proxy: CountingProxy
) -> None:
    where = node.environment | {"PATH": "/nowhere"}
    line, hint = node.complaint("run", f"{proxy.host}/plain:v1", env=where)
    assert line == "no container runtime found"
    assert hint.startswith("apt-get install runc")
    assert proxy.asked() == []
    line, hint = node.complaint("run", "--runtime", "crun", f"{proxy.host}/app:v1", env=where)
    assert (line, hint) == ("crun is not installed", "apt-get install crun")


def killed(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait(30)


def test_the_container_of_a_killed_run_goes_on_until_its_name_is_used_again(
    site: Site, node: NodeUnderTest
) -> None:
    script = "echo ready; while :; do cat /data/part3 > /dev/null; echo alive; sleep 0.02; done"
    child = started(node, site, script, "--name", "doomed")
    assert child.stdout is not None
    with child.stdout as out, child.stderr or contextlib.nullcontext():
        killed(child)
        assert sh(node, site, "echo another") == "another\n"
        for _ in range(20):
            assert out.readline() == "alive\n"
        assert sh(node, site, "echo again", "--name", "doomed", "--rm") == "again\n"
        assert set(out.read().splitlines()) <= {"alive"}


def test_what_a_killed_run_left_goes_with_its_container(site: Site, node: NodeUnderTest) -> None:
    shared = node.target()
    script = "echo ready; until test -e /v/stop; do sleep 0.02; done"
    child = started(node, site, script, "--volume", f"{shared}:/v")
    assert child.stdout is not None
    with child.stdout as out, child.stderr or contextlib.nullcontext():
        killed(child)
        (shared / "stop").touch()
        assert out.read() == ""
    [bundle] = (node.root / "run/bundles").iterdir()
    wait_until(lambda: not (bundle / "state" / bundle.name).exists())
    sh(node, site, "exit 0")
    wait_until(lambda: node.leftovers() == [])


def test_only_what_a_start_touches_is_fetched(node: NodeUnderTest, proxy: CountingProxy) -> None:
    node("run", f"{proxy.host}/app:v1", "--", "sh", "-c", "exit 3", code=3)
    spans = [one.span for one in proxy.asked("/blobs/") if one.span]
    fetched = sum(last - first + 1 for first, last in spans)
    assert 0 < fetched < 3 << 20
