"""A real image of several layers, made out of what this machine has: no registry, no debootstrap.

Three layers: the shared libraries and a shell, this Python with its standard library, and wheels.
Everything lies where it lies here, so that run paths and prefixes hold.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pagein.errors import UsageError
from pagein.format.media import OCI_MANIFEST
from pagein.format.platforms import Platform
from pagein.store.layout import LayoutRepository
from pagein.store.repository import ManifestBlob
from pagein.testing.parallel_gzip import GzipWriter
from pagein.types import Digest

WHEELS: Final = ("numpy", "scipy", "pandas")
APP: Final = "opt/app"
"""Where the wheels lie in the image; ``PYTHONPATH`` names it."""

_LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
_LEFT_OUT: Final = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})
_LDD_AT_ONCE: Final = 200
_LIBRARY: Final = re.compile(r"(?:=> )?(/\S+) \(0x[0-9a-f]+\)")
_SYSTEM_FILES: Final = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/os-release": 'ID=pagein-demo\nPRETTY_NAME="pagein demo image"\n',
}
_SYSTEM_FOLDERS: Final = {"dev": 0o755, "proc": 0o555, "sys": 0o555, "root": 0o700, "tmp": 0o1777}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Link:
    """A symlink that does not lie on this machine."""

    target: str


Member = tuple[str, Path | bytes | int | Link]
"""A name in the image, and what it is: what lies here, a file's bytes, a folder's mode, a link."""


@dataclass(frozen=True, slots=True)
class DemoImage:
    """What was built; sizes in bytes, of all layers together: as stored, and as tar archives.

    ``command`` says something that needs the wheels.
    """

    digest: Digest
    layers: int
    stored_size: int
    plain_size: int
    files: int
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Layer:
    stored: Digest
    diff_id: Digest
    stored_size: int
    plain_size: int
    files: int


def build_demo_image(
    layout: LayoutRepository,
    scratch: Path,
    say: Say,
    *,
    tag: str = "latest",
    wheels: tuple[str, ...] = WHEELS,
) -> DemoImage:
    """Build the image and put it under ``tag``; ``scratch`` is an empty folder with room for it.

    ``say`` is told what the image holds instead where the package index cannot be reached. Raises
    UsageError where this Python cannot be packed.
    """
    app = scratch / "app"
    _install_wheels(wheels, app, say)
    python = list(_python())
    shell = Path(shutil.which("sh") or "/bin/sh").resolve()
    programs = [shell, *(path for _, path in python if isinstance(path, Path)), *_below(app)]
    contents = (
        _system(shell, _libraries(programs, but_not=scratch)),
        python,
        [(f"{APP}/{path.relative_to(app)}", path) for path in _below(app)],
    )
    layers = []
    for members in contents:
        archive = scratch / "layer"
        layers.append(_write_layer(archive, members))
        layout.put_blob(layers[-1].stored, archive)
        archive.unlink()
    command = _command(app)
    shutil.rmtree(app)
    return DemoImage(
        digest=_put_image(layout, layers, command, tag),
        layers=len(layers),
        stored_size=sum(layer.stored_size for layer in layers),
        plain_size=sum(layer.plain_size for layer in layers),
        files=sum(layer.files for layer in layers),
        command=command,
    )


def _command(app: Path) -> tuple[str, ...]:
    if (app / "numpy").is_dir():
        return ("python3", "-c", "import numpy; print(numpy.__version__)")
    return ("python3", "-c", "import sys; print(sys.version)")


def _install_wheels(wheels: tuple[str, ...], target: Path, say: Say) -> None:
    """Install the wheels; where that fails, copy what this interpreter has."""
    target.mkdir()
    if not wheels:
        return
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input"]
    words += [
        "--disable-pip-version-check",
        "--only-binary=:all:",
        "--target",
        str(target),
        *wheels,
    ]
    done = subprocess.run(words, capture_output=True, text=True, cwd="/", check=False)
    if done.returncode == 0:
        return
    reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1].removeprefix("ERROR: ")
    say(f"cannot install {', '.join(wheels)} ({reason}); taking this interpreter's packages")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(sysconfig.get_path("purelib"), target, symlinks=True)


def _python() -> Iterator[Member]:
    """Yield the interpreter, a link to it on the path, and the standard library without tests."""
    program = Path(getattr(sys, "_base_executable", "") or sys.executable).resolve()
    yield str(program)[1:], program
    yield "bin/python3", Link(str(program))
    variables = {
        "installed_base": sys.base_prefix,
        "base": sys.base_prefix,
        "installed_platbase": sys.base_exec_prefix,
        "platbase": sys.base_exec_prefix,
    }
    folders = {
        Path(sysconfig.get_path(name, "posix_prefix", variables))
        for name in ("stdlib", "platstdlib")
    }
    folders.add(Path(sysconfig.get_config_var("DESTSHARED") or "/nowhere"))
    found = {path for folder in folders for path in _below(folder, leave_out=_LEFT_OUT)}
    if not any(path.name == "os.py" for path in found):
        raise UsageError(f"cannot find the standard library of {program}")
    for path in sorted(found):
        if path.suffix != ".a":  # nothing is linked at run time
            yield str(path)[1:], path


def _below(folder: Path, leave_out: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield every path below ``folder``, in order; nothing where there is no such folder."""
    for inner, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in leave_out)
        for name in sorted([*folders, *files]):
            yield Path(inner, name)


def _libraries(programs: Iterable[Path], *, but_not: Path) -> set[Path]:
    """Return every shared library that the programs and modules need, as their loader names it."""
    wanted = [str(path) for path in programs if path.is_file() and _is_elf(path)]
    found: set[Path] = set()
    for at in range(0, len(wanted), _LDD_AT_ONCE):
        words = ["ldd", *wanted[at : at + _LDD_AT_ONCE]]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        found |= {Path(os.path.normpath(match[1])) for match in _LIBRARY.finditer(done.stdout)}
    return {path for path in found if not path.is_relative_to(but_not)}


def _is_elf(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"\x7fELF"


def _system(shell: Path, libraries: set[Path]) -> Iterator[Member]:
    yield from _SYSTEM_FOLDERS.items()
    for name, text in _SYSTEM_FILES.items():
        yield name, text.encode()
    cache = Path("/etc/ld.so.cache")
    if cache.is_file():
        yield "etc/ld.so.cache", cache
    yield "bin/sh", shell
    for path in sorted(libraries):
        # Under the name that is asked for, with the bytes of what that links to.
        yield str(path)[1:], path.resolve()


def _write_layer(archive: Path, members: Iterable[Member]) -> _Layer:
    files = 0
    with (
        archive.open("wb") as target,
        GzipWriter(target) as writer,
        tarfile.open(fileobj=writer, mode="w|", bufsize=1 << 20) as tar,  # type: ignore[call-overload]
    ):
        for name, content in members:
            files += _add(tar, name, content)
    return _Layer(writer.stored, writer.plain, writer.stored_size, writer.plain_size, files)


def _add(tar: tarfile.TarFile, name: str, content: Path | bytes | int | Link) -> bool:
    """Add one member, root's; returns whether it is a file. Pipes and sockets are passed over."""
    info = tarfile.TarInfo(name)
    match content:
        case int():
            info.type, info.mode = tarfile.DIRTYPE, content
        case Link(target):
            info.type, info.linkname = tarfile.SYMTYPE, target
        case bytes():
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            return True
        case _:
            return _add_from_disk(tar, info, content)
    tar.addfile(info)
    return False


def _add_from_disk(tar: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> bool:
    status = path.lstat()
    info.mode, info.mtime = stat.S_IMODE(status.st_mode), status.st_mtime_ns // 10**9
    if stat.S_ISREG(status.st_mode):
        info.size = status.st_size
        with path.open("rb") as stream:
            tar.addfile(info, stream)
        return True
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
    else:
        return False
    tar.addfile(info)
    return False


def _put_image(
    layout: LayoutRepository, layers: list[_Layer], command: tuple[str, ...], tag: str
) -> Digest:
    local = Platform.local(platform.machine())
    config = _json(
        {
            "architecture": local.architecture,
            "os": local.os,
            "config": {
                "Cmd": ["python3"],
                "Env": [
                    "PATH=/usr/local/bin:/usr/bin:/bin",
                    f"PYTHONPATH=/{APP}",
                    "LANG=C.UTF-8",
                ],
                "Labels": {"demo.command": " ".join(command)},
            },
            "rootfs": {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in layers]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _descriptor(_CONFIG_TYPE, Digest.of(config), len(config)),
            "layers": [
                _descriptor(_LAYER_TYPE, layer.stored, layer.stored_size) for layer in layers
            ],
        }
    )
    layout.put_blob(Digest.of(config), config)
    blob = ManifestBlob(OCI_MANIFEST, Digest.of(manifest), manifest)
    layout.put_manifest(blob, tag=tag)
    return blob.digest


def _descriptor(media_type: str, digest: Digest, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(digest), "size": size}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
