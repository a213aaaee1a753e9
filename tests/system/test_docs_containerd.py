"""The commands of the pages on containerd and Kubernetes, run in order on a machine in a folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cri_client import Cri
from cri_node import CRI, NodeUnderTest, write_pod_images
from test_docs_commands import ROOT, docs, put_in_place

from pagein.daemon.config import load_config
from pagein.testing.containerd import Containerd
from pagein.testing.docker_registry import DockerRegistry

from daemon_under_test import DaemonUnderTest  # isort: skip
from node_image import push  # isort: skip

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("containerd", "ctr", "runc"))), reason="needs containerd, runc"
    ),
    pytest.mark.skipif(not DockerRegistry.installed(), reason="needs docker-registry"),
    pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    images = write_pod_images(tmp_path_factory.mktemp("images"))
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry:
        for name in ("app", "pause"):
            push(images, name, f"{registry.host}/{name}:v1")
        yield registry.host


class Machine:
    """containerd runs, pagein is not installed; what the pages type happens here."""

    def __init__(self, folder: Path, registry: str) -> None:
        self.node = NodeUnderTest(folder)
        self.daemon = DaemonUnderTest(self.node)
        config = CRI.format(pause=f"{registry}/pause:v1")
        self.containerd = Containerd(folder / "containerd", config)
        self.file = self.containerd.folder / "config.toml"
        programs = folder / "bin"
        programs.mkdir()
        words = " ".join(self.node.command())
        (programs / "pagein").write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (programs / "pagein").chmod(0o755)
        self.environment = self.node.environment | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "CONTAINERD_ADDRESS": str(self.containerd.socket),
        }
        self.names = {
            "registry:5000": registry,
            "install-snapshotter": f"install-snapshotter --containerd-config {self.file}",
            "doctor --containerd": f"doctor --containerd --containerd-config {self.file}",
        }

    def type(self, line: str) -> str:
        """Do what one line says, and return what it prints; it must end well."""
        if line == "systemctl enable --now pagein":
            self.daemon.start()
            return ""
        if line == "systemctl restart containerd":
            self.containerd.stop()
            self.containerd.start()
            return ""
        done = subprocess.run(
            ["sh", "-c", put_in_place(line, self.names)],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        return done.stdout


@pytest.fixture
def machine(tmp_path: Path, registry: str) -> Iterator[Machine]:
    machine = Machine(tmp_path, registry)
    with machine.containerd:
        try:
            yield machine
        finally:
            machine.containerd.stop()
            machine.daemon.end()


def lines(name: str) -> list[str]:
    page = ROOT / "docs/how-to" / name
    found = [block for block in docs.blocks(page) if block.language == "sh"]
    return [line for block in found for line in block.text.splitlines() if line]


def tables(name: str) -> list[str]:
    page = ROOT / "docs/how-to" / name
    return [block.text for block in docs.blocks(page) if block.language == "toml"]


def test_the_page_on_containerd_does_what_it_says(machine: Machine, registry: str) -> None:
    before = machine.file.read_bytes()
    said = {line: machine.type(line) for line in lines("containerd.md")}
    assert '+snapshotter = "pagein"' in said["pagein install-snapshotter --dry-run"]
    assert "BAD" not in said["pagein doctor --containerd"]
    assert said["pagein ctr-pull registry:5000/app:v1"].endswith("no layer was fetched\n")
    (ran,) = (text for line, text in said.items() if line.startswith("ctr run"))
    assert ran == "it runs\n"
    assert machine.file.read_bytes() == before


def test_the_settings_on_the_page_are_those_that_are_written(machine: Machine) -> None:
    machine.type("pagein install-snapshotter")
    (shown,) = tables("containerd.md")
    wanted, found = tomllib.loads(shown), tomllib.loads(machine.file.read_text())
    socket = str(machine.node.root / "run/snapshotter.sock")
    wanted["proxy_plugins"]["pagein"]["address"] = socket
    assert found["proxy_plugins"] == wanted["proxy_plugins"]
    cri = found["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]
    assert cri == wanted["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]


def test_the_page_on_kubernetes_does_what_it_says(
    machine: Machine, registry: str, tmp_path: Path
) -> None:
    first, whole = tables("kubernetes.md")
    machine.node.config.write_text(
        put_in_place(first, {"/run/containerd/containerd.sock": str(machine.containerd.socket)})
    )
    for line in lines("kubernetes.md"):
        machine.type(line)
    machine.type("pagein convert registry:5000/app:v1")
    cri = Cri(machine.node.root / "run/cri.sock", machine.containerd.socket)
    cri.wait_until_ready()
    image = cri.pull(f"{registry}/app:v1")
    with cri.pod("docs", tmp_path) as pod:
        assert pod.start(f"{registry}/app:v1").shell("cat /odd/one") == "linked"
    assert machine.daemon.status()["daemon"]["pulls_lazy"] == 1
    for one in (image, *(other.id for other in cri.ListImages().images)):
        cri.RemoveImage(image={"image": one})
    cri.close()
    (tmp_path / "whole.toml").write_text(whole)
    assert load_config(tmp_path / "whole.toml").secret_files
