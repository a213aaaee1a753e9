"""A new version of an image: bytes that are sent, and bytes that a warm node fetches.

    python bench/versions.py --images DIR

Two versions of an image are built on DIR's `debian-python`: numpy, scipy, scikit-learn and pandas,
installed anew each time by pip, as a Dockerfile's `RUN pip install` does, with another pandas in
the second. Both are converted into a registry, the second with its default base, and a node that
holds all of the first fetches all of the second. Both counts are held against the files of the new
layer whose content the old layer does not have, compressed as sectors are. Twice: as a build with
`SOURCE_DATE_EPOCH` does it, and as one without, where each `.pyc` file has changed, because the
time of its source is written into it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from harness import Series, save, workspace
from images import SITE, pack_layer, run
from pagein.format.codec import encode_sector
from pagein.testing.docker_registry import DockerRegistry

PAGEIN = [sys.executable, "-m", "pagein"]
STAYS = ("numpy==1.26.4", "scipy==1.13.1", "scikit-learn==1.5.1")
VERSIONS = {"v1": "pandas==2.2.2", "v2": "pandas==2.2.3"}
PIECE = 4 << 20


def install(root: Path, wheels: tuple[str, ...], epoch: int, *, reproducible: bool) -> None:
    """Install wheels as a layer's tree, byte-compiled; files get the time ``epoch``."""
    target = root / SITE
    target.mkdir(parents=True)
    run(sys.executable, "-m", "pip", "install", "-q", "--python-version", "3.11", "--no-compile",
        "--only-binary=:all:", "--target", target, *wheels)  # fmt: skip
    for path in root.rglob("*"):
        os.utime(path, (epoch, epoch), follow_symlinks=False)
    env = {"SOURCE_DATE_EPOCH": str(epoch)} if reproducible else {}
    subprocess.run(
        [sys.executable, "-m", "compileall", "-qq", SITE], cwd=root, check=False,
        env=os.environ | env,
    )  # fmt: skip


def contents(root: Path) -> dict[bytes, Path]:
    """Return the files of a tree by the SHA-256 of their content, in order of their paths."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return {hashlib.sha256(path.read_bytes()).digest(): path for path in files}


def changed(before: Path, after: Path) -> tuple[int, int]:
    """Return how many files are new in ``after``, and their bytes, compressed 4 MiB at a time."""
    old = contents(before)
    new = [path for digest, path in contents(after).items() if digest not in old]
    data = b"".join(path.read_bytes() for path in new)
    pieces = (data[at : at + PIECE] for at in range(0, len(data), PIECE))
    return len(new), sum(len(encode_sector(piece, level=3)[1]) for piece in pieces)


def stored(registry: DockerRegistry) -> int:
    """Return the bytes of all blobs and manifests in a registry."""
    return sum(path.stat().st_size for path in (registry.data / "docker").rglob("blobs/**/data"))


def output(*words: str, root: Path) -> dict[str, object]:
    """Run pagein with a state folder of its own; return its JSON."""
    command = [*PAGEIN, *words, "--json"]
    env = os.environ | {"PAGEIN_ROOT": str(root)}
    done = subprocess.run(command, check=True, capture_output=True, env=env)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def measure(images: Path, work: Path, *, reproducible: bool) -> list[Series]:
    """Build, push, convert and fetch both versions."""
    layout = f"{work}/layout"
    source = f"{images}/layout:debian-python"
    run("skopeo", "copy", "-q", f"oci:{source}", f"oci:{layout}:base")
    for number, (tag, wheel) in enumerate(VERSIONS.items()):
        root, archive = work / tag, work / f"{tag}.tar"
        install(root, (*STAYS, wheel), 1_700_000_000 + (not reproducible) * number * 1000,
                reproducible=reproducible)  # fmt: skip
        pack_layer(root, archive)
        run("umoci", "raw", "add-layer", "--image", f"{layout}:base", "--tag", tag, archive)
        archive.unlink()
    count, wanted = changed(work / "v1", work / "v2")
    node = work / "node"
    with DockerRegistry(work / "registry") as registry:
        references = [f"{registry.host}/app:{tag}" for tag in VERSIONS]
        for tag, reference in zip(VERSIONS, references, strict=True):
            run("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:{tag}",
                f"docker://{reference}")  # fmt: skip
        output("convert", references[0], root=node)
        output("pull", "--full", references[0], root=node)
        before = stored(registry)
        converted = output("convert", references[1], root=node)
        sent = stored(registry) - before
        pulled = output("pull", "--full", references[1], root=node)
    (image,) = converted["images"]  # type: ignore[misc]
    fetched = int(str(pulled["bytes_fetched"])) + image["index_size"] + image["artifact_size"]
    kind = "reproducible build" if reproducible else "build with new times"
    print(f"{kind}: {count} changed files of {wanted / 1e6:.1f} MB; sent {sent / 1e6:.1f} MB, "
          f"{sent / wanted:.2f} x; fetched {fetched / 1e6:.1f} MB, {fetched / wanted:.2f} x; "
          f"index {image['index_size'] / 1e6:.2f} MB; {image['seconds']:.1f} s")  # fmt: skip
    return [
        Series(f"{kind}: changed files, compressed", "MB", [wanted / 1e6]),
        Series(f"{kind}: sent", "MB", [sent / 1e6]),
        Series(f"{kind}: fetched by a warm node", "MB", [fetched / 1e6]),
    ]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=Path("/var/tmp/pagein-bench"))
    parser.add_argument("--keep", type=Path, help="build there, and leave it")
    arguments = parser.parse_args()
    series: list[Series] = []
    for reproducible in (True, False):
        with workspace() as scratch:
            work = arguments.keep / str(reproducible) if arguments.keep else scratch
            if arguments.keep:
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir(parents=True)
            series += measure(arguments.images, work, reproducible=reproducible)
    save("versions", series)


if __name__ == "__main__":
    main()
