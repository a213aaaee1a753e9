"""How an image of `images` is built as a tag of an OCI layout, and unpacked beside it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from images import IMAGES, Image

SITE = "usr/local/lib/python3.11/dist-packages"
"""Where Debian 12's own python3 looks for packages that apt did not install."""

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LITTER = ("var/cache/apt/archives", "var/lib/apt/lists")


def run(*command: str | Path) -> None:
    """Run a command and stop at its first failure."""
    subprocess.run([str(word) for word in command], check=True)


def build(name: str, out: Path) -> None:
    """Build one image, and first the one that it stands on."""
    image, done = IMAGES[name], out / f"{name}.done"
    if done.exists():
        return
    print(f"building {name}", flush=True)
    if image.base is None:
        _build_base(name, out)
    else:
        build(image.base, out)
        if image.debian:
            _build_on_bundle(name, image, out)
        else:
            _build_layer(name, image, out)
    done.touch()


def _build_base(name: str, out: Path) -> None:
    """Install a minimal Debian 12 with python3."""
    layout, root = out / "layout", out / f"{name}.root"
    shutil.rmtree(root, ignore_errors=True)
    run("debootstrap", "--variant=minbase", "--include=python3,ca-certificates", "bookworm", root)
    _clear_litter(root)
    for node in ("dev/console", "dev/null"):
        (root / node).unlink(missing_ok=True)
    if not layout.exists():
        run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:{name}")
    run("umoci", "config", "--image", f"{layout}:{name}", "--config.cmd", "/bin/bash",
        "--config.env", PATH)  # fmt: skip
    _add_layer(root, f"{layout}:{name}")
    shutil.rmtree(root)


def _build_layer(name: str, image: Image, out: Path) -> None:
    """Make a layer out of an empty tree."""
    root = out / f"{name}.root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    if image.wheels:
        _install_wheels(root, image.wheels)
    if image.model:
        assert image.base is not None
        _make_model(root, unpack_tree(image.base, out))
    _write_files(root, image)
    _add_layer(root, f"{out / 'layout'}:{image.base}", "--tag", name)
    shutil.rmtree(root)


def _build_on_bundle(name: str, image: Image, out: Path) -> None:
    """Install Debian packages into the image below, and make a layer of what they changed."""
    bundle = out / f"{name}.bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    run("umoci", "unpack", "--image", f"{out / 'layout'}:{image.base}", bundle)
    root = bundle / "rootfs"
    with _able_to_install(root):
        for words in (("update",), ("install", "-y", "--no-install-recommends", *image.debian)):
            run("chroot", root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", *words)
    _clear_litter(root)
    if image.npm:
        run("npm", "install", "--silent", "--ignore-scripts", "--prefix", root / "app", *image.npm)
    _write_files(root, image)
    run("umoci", "repack", "--image", f"{out / 'layout'}:{name}", bundle)
    shutil.rmtree(bundle)


@contextlib.contextmanager
def _able_to_install(root: Path) -> Iterator[None]:
    """Give a tree names of hosts, devices and processes, and keep packages from starting servers.

    All of it is gone afterwards: the layer holds what the packages brought.
    """
    policy, resolver = root / "usr/sbin/policy-rc.d", root / "etc/resolv.conf"
    before = resolver.read_bytes() if resolver.exists() else None
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    resolver.write_bytes(Path("/etc/resolv.conf").read_bytes())
    mounts = [("--bind", "/dev", root / "dev"), ("--bind", "/proc", root / "proc")]
    try:
        for how, source, target in mounts:
            run("mount", how, source, target)
        yield
    finally:
        for _, _, target in mounts:
            subprocess.run(["umount", "-l", target], check=False)
        policy.unlink()
        resolver.unlink()
        if before is not None:
            resolver.write_bytes(before)


def _clear_litter(root: Path) -> None:
    for litter in LITTER:
        shutil.rmtree(root / litter, ignore_errors=True)
        (root / litter).mkdir()


def _install_wheels(root: Path, wheels: tuple[str, ...]) -> None:
    """Install wheels, byte-compiled as pip does."""
    target = root / SITE
    target.mkdir(parents=True)
    run(sys.executable, "-m", "pip", "install", "-q", "--no-cache-dir", "--python-version", "3.11",
        "--only-binary=:all:", "--target", target, *wheels)  # fmt: skip
    # Some wheels ship templates that are no Python 3: what does not compile stays a source file.
    subprocess.run([sys.executable, "-m", "compileall", "-qq", target], check=False)


def _make_model(root: Path, tree: Path) -> None:
    """Let the packages of the image below write the model that this one holds."""
    script, folder = Path(__file__).with_name("make_model.py"), root / "app/model"
    folder.mkdir(parents=True)
    packages = {"PYTHONPATH": str(tree / SITE), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, script, folder], check=True, env=os.environ | packages)


def _write_files(root: Path, image: Image) -> None:
    for name, text in image.files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _add_layer(root: Path, image: str, *words: str) -> None:
    """Pack a tree with owners, times and xattrs as a layer of its own; umoci compresses it."""
    archive = root.with_suffix(".tar")
    run("tar", "--sort=name", "--format=pax", "--xattrs", "--numeric-owner", "-C", root,
        "-cf", archive, ".")  # fmt: skip
    run("umoci", "raw", "add-layer", "--image", image, *words, archive)
    archive.unlink()


def unpack_tree(name: str, out: Path) -> Path:
    """Unpack an image into a folder: hard links to the image below, and its own layers over them.

    Nothing may write there: a container runs on an overlay.
    """
    tree, base = out / "trees" / name, IMAGES[name].base
    if tree.exists():
        return tree
    part = tree.with_name(f".{name}")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(exist_ok=True)
    if base is None:
        part.mkdir()
        below = 0
    else:
        run("cp", "-al", unpack_tree(base, out), part)
        below = len(layers_of(base, out / "layout"))
    for layer in layers_of(name, out / "layout")[below:]:
        _apply(layer, part)
    return part.rename(tree)


def layers_of(name: str, layout: Path) -> list[Path]:
    """Return the files of an image's layers, lowest first."""
    index = json.loads((layout / "index.json").read_text())
    digest = next(
        one["digest"]
        for one in index["manifests"]
        if one["annotations"]["org.opencontainers.image.ref.name"] == name
    )
    blobs = layout / "blobs" / "sha256"
    manifest = json.loads((blobs / digest.partition(":")[2]).read_text())
    return [blobs / layer["digest"].partition(":")[2] for layer in manifest["layers"]]


def _apply(layer: Path, tree: Path) -> None:
    """Put a layer over a tree: first take away what its whiteouts name."""
    listed = subprocess.run(
        ["tar", "--use-compress-program=pigz", "-tf", layer], check=True, capture_output=True
    ).stdout.decode("utf-8", "surrogateescape")
    for line in listed.splitlines():
        path = tree / line.rstrip("/")
        if path.name.startswith(".wh."):
            gone = path.with_name(path.name.removeprefix(".wh."))
            if gone.is_dir() and not gone.is_symlink():
                shutil.rmtree(gone)
            else:
                gone.unlink(missing_ok=True)
    run("tar", "--use-compress-program=pigz", "--xattrs", "--xattrs-include=*",
        "--numeric-owner", "-C", tree, "-xpf", layer, "--exclude=.wh.*")  # fmt: skip
