"""Build the benchmark images as OCI layouts, out of Debian and PyPI packages.

    python bench/images.py --out DIR debian-python scipy torch-cuda

Each image is a tag of one layout `DIR/layout`; they share their lower layers, as real images do.
Needs root, debootstrap, umoci and pigz. What is there already is not built again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SITE = "usr/local/lib/python3.11/dist-packages"
"""Where Debian 12's own python3 looks for packages that apt did not install."""


@dataclass(frozen=True)
class Image:
    """One image: what it stands on, and the wheels its own layer holds."""

    base: str | None
    wheels: tuple[str, ...] = ()


IMAGES = {
    "debian-python": Image(None),
    "scipy": Image("debian-python", ("numpy", "scipy", "pandas", "scikit-learn")),
    "torch-cuda": Image("debian-python", ("torch", "numpy", "transformers", "safetensors")),
}


def run(*command: str | Path) -> None:
    """Run a command and stop at its first failure."""
    subprocess.run([str(word) for word in command], check=True)


def build_base(root: Path) -> None:
    """Install a minimal Debian 12 with python3."""
    run("debootstrap", "--variant=minbase", "--include=python3,ca-certificates", "bookworm", root)
    for litter in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(root / litter, ignore_errors=True)
        (root / litter).mkdir()
    for node in ("dev/console", "dev/null"):
        (root / node).unlink(missing_ok=True)


def build_wheels(root: Path, wheels: tuple[str, ...]) -> None:
    """Install wheels into an empty tree, as a layer of their own, byte-compiled as pip does."""
    target = root / SITE
    target.mkdir(parents=True)
    run(sys.executable, "-m", "pip", "install", "-q", "--no-cache-dir", "--python-version", "3.11",
        "--only-binary=:all:", "--target", target, *wheels)  # fmt: skip
    # Some wheels ship templates that are no Python 3: what does not compile stays a source file.
    subprocess.run([sys.executable, "-m", "compileall", "-qq", target], check=False)


def pack_layer(root: Path, archive: Path) -> None:
    """Write a tree as a plain tar with owners, times and xattrs; umoci compresses it."""
    run("tar", "--sort=name", "--format=pax", "--xattrs", "--numeric-owner", "-C", root,
        "-cf", archive, ".")  # fmt: skip


def build(name: str, out: Path) -> None:
    """Build one image, and first the one that it stands on."""
    layout, image = out / "layout", IMAGES[name]
    done = out / f"{name}.done"
    if done.exists():
        return
    if image.base is not None:
        build(image.base, out)
    root, archive = out / f"{name}.root", out / f"{name}.tar"
    shutil.rmtree(root, ignore_errors=True)
    if image.base is None:
        build_base(root)
        if not layout.exists():
            run("umoci", "init", "--layout", layout)
        run("umoci", "new", "--image", f"{layout}:{name}")
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        run("umoci", "config", "--image", f"{layout}:{name}", "--config.cmd", "/bin/bash",
            "--config.env", path)  # fmt: skip
        tag: tuple[str, ...] = ()
        source = name
    else:
        build_wheels(root, image.wheels)
        source, tag = image.base, ("--tag", name)
    pack_layer(root, archive)
    run("umoci", "raw", "add-layer", "--image", f"{layout}:{source}", *tag, archive)
    archive.unlink()
    shutil.rmtree(root)
    done.touch()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("/var/tmp/pagein-bench"))
    parser.add_argument("images", nargs="*", default=list(IMAGES), metavar="IMAGE")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.images:
        build(name, arguments.out)


if __name__ == "__main__":
    main()
