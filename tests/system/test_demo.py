"""The demonstration, with an image small enough for a test."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagein.build.unpack import unpack
from pagein.format.manifest import ImageManifest, parse_config, parse_manifest
from pagein.store.layout import LayoutRepository
from pagein.testing.cold_start import CountingLink, time_start
from pagein.testing.demo_image import DemoImage, build_demo_image
from pagein.testing.registry import FakeRegistry

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]
needs_runtime = pytest.mark.skipif(
    not (shutil.which("runc") or shutil.which("crun")), reason="needs runc or crun"
)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LayoutRepository]:
    folder = tmp_path_factory.mktemp("demo-image")
    repository = LayoutRepository(folder / "layout")
    (folder / "scratch").mkdir()
    said: list[str] = []
    made = build_demo_image(repository, folder / "scratch", said.append, wheels=())
    assert said == []
    assert list((folder / "scratch").iterdir()) == []
    assert isinstance(made, DemoImage)
    assert made.layers == 3
    yield repository
    shutil.rmtree(folder)


def test_the_image_holds_a_python_that_needs_nothing_else(
    layout: LayoutRepository, tmp_path: Path
) -> None:
    blob = layout.manifest("latest")
    manifest = parse_manifest(blob.data, blob.media_type)
    assert isinstance(manifest, ImageManifest)
    config = parse_config(layout.read_blob(manifest.config.digest, limit=1 << 20))
    assert config.cmd == ("python3",)
    unpack(layout, manifest, tmp_path / "root")
    code = "import ssl, sqlite3, ctypes, json, sys; print(json.dumps(list(sys.version_info)))"
    words = [
        shutil.which("chroot") or "chroot",
        str(tmp_path / "root"),
        "/bin/sh",
        "-c",
        f'python3 -c "{code}"',
    ]
    environment = dict(entry.partition("=")[::2] for entry in config.env)
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == list(sys.version_info)
    shutil.rmtree(tmp_path / "root")


def test_an_image_is_what_skopeo_takes_for_one(layout: LayoutRepository) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("needs skopeo")
    done = subprocess.run(
        ["skopeo", "inspect", f"{layout.name}:latest"], capture_output=True, check=True
    )
    assert len(json.loads(done.stdout)["Layers"]) == 3


@needs_runtime
def test_a_classical_start_fetches_every_layer_and_runs(
    layout: LayoutRepository, tmp_path: Path
) -> None:
    link = CountingLink()
    stored = sum(layer["size"] for layer in json.loads(layout.manifest("latest").data)["layers"])
    with FakeRegistry(serving={"demo": layout}, link=link) as registry:
        words = [sys.executable, "-m", "pagein.testing.classical_start", f"{registry.host}/demo"]
        words += [str(tmp_path / "run"), "python3", "-c", "print(6 * 7)"]
        started = time_start(words)
    assert started.output == b"42\n"
    assert stored < link.take_count() < stored + 100_000
    shutil.rmtree(tmp_path / "run")


@pytest.fixture
def scratch() -> Iterator[Path]:
    # An overlay needs a file system that holds one; /tmp is a tmpfs on some machines.
    folder = Path(tempfile.mkdtemp(prefix="demo-test-", dir="/var/tmp"))
    yield folder
    shutil.rmtree(folder)


@needs_runtime
@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse")
def test_the_demo_starts_an_image_both_ways_and_leaves_nothing(
    layout: LayoutRepository, scratch: Path
) -> None:
    words = [sys.executable, "-m", "pagein", "demo", f"{layout.name}:latest"]
    words += ["--", "python3", "-c", "print(6 * 7)"]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == ["copied", "converted", "served"]
    assert "different" not in done.stderr
    rows = {row[1].strip(): row[2:4] for row in (line.split("│") for line in lines) if len(row) > 3}
    assert set(rows) == {"fetch all, unpack all, start", "pagein run", "ratio"}
    assert float(rows["ratio"][1].split()[0]) > 1, "lazily, less is fetched"
    assert list(scratch.iterdir()) == []
    assert str(scratch) not in Path("/proc/self/mounts").read_text()


@needs_runtime
def test_bench_times_both_starts_of_a_converted_image_in_turn(
    layout: LayoutRepository, tmp_path: Path
) -> None:
    copy = tmp_path / "layout"
    shutil.copytree(layout.name.removeprefix("oci:"), copy)
    pagein = [sys.executable, "-m", "pagein"]
    env = os.environ | {"PAGEIN_ROOT": str(tmp_path / "root"), "TMPDIR": str(tmp_path)}
    subprocess.run([*pagein, "convert", "--bind", f"oci:{copy}:latest"], check=True, env=env)
    with FakeRegistry(serving={"demo": LayoutRepository(copy)}) as registry:
        words = ["bench", "--runs", "2", "--json", f"{registry.host}/demo:latest", "--"]
        done = subprocess.run(
            [*pagein, *words, "/bin/sh", "-c", "echo up"], env=env, capture_output=True, check=True
        )
    told = json.loads(done.stdout)
    assert told["command"] == ["/bin/sh", "-c", "echo up"]
    assert {kind: len(values) for kind, values in told["seconds"].items()} == {
        "classical": 2,
        "pagein": 2,
    }
    assert all(0 < value < 60 for values in told["seconds"].values() for value in values)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"layout", "root"}
