"""The commands that the documentation shows, run in order, page by page.

A page is one shell session on a node of its own, in a folder that holds the image as an OCI layout
(`layout`, tag v1) and as `app.tar`. Names are put in the place of those that the pages use.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from tiny_rootfs import PROGRAMS, build_tiny_rootfs

from pagein.testing.docker_registry import DockerRegistry
from pagein.testing.layer_corpus import file, tar_layer

sys.path.insert(0, str(Path(__file__).parent / "cli"))

from node_image import write_layout
from node_under_test import NodeUnderTest, wait_until

ROOT = Path(__file__).parents[2]
TOOLS = ("docker-registry", "skopeo", "runc", "bash", "tar")
PYTHONS = "/usr/local/bin:/usr/bin"
"""Where `build_tiny_rootfs` finds the one that it puts into the image."""
ENVIRONMENT = {"PATH": "/bin", "PYTHONDONTWRITEBYTECODE": "1"}

pytestmark = pytest.mark.root


def load_checks() -> ModuleType:
    """Import ``docs/check_docs.py``, which is no package."""
    spec = importlib.util.spec_from_file_location("docs_check_docs", ROOT / "docs/check_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


docs = load_checks()
COMMANDS = [block for page in docs.pages() for block in docs.blocks(page) if block.language == "sh"]
PAGES = sorted({block.page for block in COMMANDS if block.not_run is None})


@dataclass(frozen=True, slots=True)
class Place:
    """A registry with ``app:v1``, and a folder with the image in other forms."""

    registry: str
    folder: Path


def add_python(rootfs: Path) -> dict[str, str]:
    """Put in what this machine's Python loads at its start; return the variables that it needs."""
    program = shutil.which("python3", path=PYTHONS)
    if program is None:
        pytest.skip("needs python3")
    code = (
        "import sys, json; print(json.dumps([sys.prefix, *(m.__file__ for m in "
        "list(sys.modules.values()) if getattr(m, '__file__', None))]))"
    )
    done = subprocess.run(
        [program, "-I", "-S", "-c", code], check=True, capture_output=True, text=True
    )
    prefix, *files = json.loads(done.stdout)
    for name in files:
        target = rootfs / name.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, target)
    return {"PYTHONHOME": prefix}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs root and /dev/fuse")
    for tool in TOOLS:
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    folder = tmp_path_factory.mktemp("docs")
    rootfs = build_tiny_rootfs(folder / "rootfs", (*PROGRAMS, "python3", "true"))
    variables = add_python(rootfs)
    (rootfs / "usr/lib").mkdir(parents=True, exist_ok=True)
    (rootfs / "usr/bin").symlink_to("../bin")
    (rootfs / "etc/os-release").write_text("ID=tiny\n")
    layer = subprocess.run(
        ["tar", "--numeric-owner", "--sort=name", "-C", rootfs, "-cf", "-", "."],
        check=True,
        capture_output=True,
    ).stdout
    env = [f"{name}={value}" for name, value in (ENVIRONMENT | variables).items()]
    config = {"Cmd": ["sh"], "Env": env}
    write_layout(folder / "layout", (layer,), config)
    write_layout(folder / "next", (layer, tar_layer(file(b"etc/new", b"2"))), config)
    with DockerRegistry(folder / "registry") as registry:
        for source, target in (
            ("layout", f"docker://{registry.host}/app:v1"),
            ("next", f"docker://{registry.host}/app:v2"),
            ("layout", f"docker-archive:{folder}/app.tar"),
        ):
            words = ["--preserve-digests"] if target.startswith("docker:") else ["--format=v2s2"]
            subprocess.run(
                ["skopeo", "copy", "-q", "--dest-tls-verify=false", *words,
                 f"oci:{folder}/{source}:v1", target],
                check=True, capture_output=True,
            )  # fmt: skip
        yield Place(registry.host, folder)


def put_in_place(text: str, names: dict[str, str]) -> str:
    """Replace names where they stand for themselves, not within other names."""
    pattern = "|".join(re.escape(name) for name in names)
    return re.sub(rf"(?<![\w.-])({pattern})(?![\w-])", lambda found: names[found[1]], text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_work(page: Path, place: Place, tmp_path: Path) -> None:
    node = NodeUnderTest(tmp_path)
    here, target, programs = tmp_path / "here", tmp_path / "mnt", tmp_path / "bin"
    for folder in (here, target, programs):
        folder.mkdir()
    shutil.copytree(place.folder / "layout", here / "layout")
    shutil.copy(place.folder / "app.tar", here)
    program = programs / "pagein"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pagein "$@"\n')
    program.chmod(0o755)
    names = {
        "registry:5000": place.registry,
        "/mnt": str(target),
        "/var/lib/pagein": str(node.root / "lib"),
        "/run/pagein": str(node.root / "run"),
    }
    script = ["set -eu -o pipefail"]
    for block in COMMANDS:
        if block.page == page and block.not_run is None:
            script += [f"echo '== line {block.line}' >&2", put_in_place(block.text, names)]
    environment = node.environment | {"PATH": f"{programs}:{os.environ['PATH']}"}
    try:
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)],
            cwd=here,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        wait_until(lambda: node.leftovers() == [])
    finally:
        node.clear()


def test_what_is_not_run_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = [block for block in COMMANDS if docs.run_by(block.page)]
    not_run = [block for block in COMMANDS if block.not_run and block not in elsewhere]
    with capsys.disabled():
        for block in not_run:
            where = f"{block.page.relative_to(ROOT)}:{block.line}"
            print(f"\nnot run: {where}: {block.not_run}", end="")
    assert len(not_run) < len(COMMANDS) / 2
