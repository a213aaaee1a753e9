"""Conversions into layouts and for mounts that are stopped, or run out of room."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from counting_proxy import Asked, CountingProxy
from node_image import SECTOR
from node_under_test import DEADLINE_S, NodeUnderTest
from registry_site import Site
from tiny_rootfs import PASSWD

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

SAID = {signal.SIGINT: "\npagein: interrupted\n", signal.SIGTERM: "", signal.SIGKILL: ""}
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}


def by_name(number: signal.Signals) -> str:
    return number.name


class Gate:
    """Holds up the ``number``-th request that is like ``wanted``, until it is opened."""

    def __init__(self, proxy: CountingProxy, wanted: tuple[str, str], number: int) -> None:
        self._wanted = wanted
        self._left = number
        self._lock = threading.Lock()
        self._reached = threading.Event()
        self._open = threading.Event()
        proxy.before_answer = self._pass

    def _pass(self, asked: Asked) -> None:
        method, part = self._wanted
        if asked.method != method or part not in asked.path:
            return
        with self._lock:
            self._left -= 1
            is_the_one = self._left == 0
        if is_the_one:
            self._reached.set()
            self._open.wait(DEADLINE_S)

    def wait(self) -> None:
        assert self._reached.wait(DEADLINE_S), "nobody came to the gate"

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def scratch(node: NodeUnderTest) -> Iterator[Path]:
    """The folder for temporary files; empty again at the end of each test."""
    folder = node.folder / "scratch"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


def start(node: NodeUnderTest, scratch: Path, *words: str) -> subprocess.Popen[str]:
    return node.start(
        *("convert", "--sector-size", SECTOR, "--json", "--jobs", "2", *words),
        env=node.environment | {"TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=by_name)
def test_a_layout_that_was_being_written_holds_no_half_image(
    number: signal.Signals, site: Site, node: NodeUnderTest, proxy: CountingProxy, scratch: Path
) -> None:
    layout = node.folder / "layout"
    gate = Gate(proxy, ("GET", "/blobs/sha256"), 4)  # configuration, two layers, the third
    words = (f"{proxy.host}/plain:v1", f"oci:{layout}:v1")
    with start(node, scratch, *words) as child:
        gate.wait()
        child.send_signal(number)
        if number == signal.SIGKILL:
            child.wait(DEADLINE_S)
        gate.open()
        _, said = child.communicate(timeout=DEADLINE_S)
    assert (child.returncode, said) == (CODES[number], SAID[number])
    if (layout / "index.json").exists():
        assert json.loads((layout / "index.json").read_text())["manifests"] == []
    assert number == signal.SIGKILL or list(layout.rglob("*.tmp")) == []
    with start(node, scratch, *words) as child:
        _, said = child.communicate(timeout=DEADLINE_S)
    assert (child.returncode, said) == (0, "")
    assert node("cat", f"oci:{layout}:v1", "/etc/passwd").stdout == PASSWD


def test_an_image_that_was_being_converted_for_a_mount_is_converted_by_the_next_one(
    node: NodeUnderTest, proxy: CountingProxy
) -> None:
    reference, target = f"{proxy.host}/plain:v1", node.target()
    gate = Gate(proxy, ("GET", "/blobs/sha256"), 3)
    with node.start("mount", reference, target, stderr=subprocess.PIPE) as child:
        gate.wait()
        child.send_signal(signal.SIGINT)
        gate.open()
        _, said = child.communicate(timeout=DEADLINE_S)
    assert (child.returncode, said.splitlines()[-1]) == (130, "pagein: interrupted")
    assert node.leftovers() == []
    scratch = node.root / "lib/scratch"
    assert not scratch.exists() or list(scratch.iterdir()) == []
    node("mount", reference, target)
    assert (target / "etc/passwd").read_text() == PASSWD
    node("umount", target)


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(
    site: Site, node: NodeUnderTest, scratch: Path
) -> None:
    for full in (scratch, node.target()):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "full", full], check=True)
        try:
            layout = node.folder / "out" if full == scratch else full / "out"
            line, _ = node.complaint(
                *("convert", "--sector-size", SECTOR, site.app, f"oci:{layout}:v1"),
                env=node.environment | {"TMPDIR": str(scratch)},
            )
            assert line.endswith("No space left on device")
            assert list(scratch.iterdir()) == []
            assert list(layout.rglob("*.tmp")) == []
        finally:
            subprocess.run(["umount", full], check=True)
