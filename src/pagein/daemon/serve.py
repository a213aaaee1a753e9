"""Serve one mount from a background process.

The process is forked, not started anew: it has the index, the connections and the modules
already, and a mount costs no second start of Python. It forks before the first thread exists.
It ends when the tree is unmounted, by whomever, and takes its folder with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pagein.daemon.images import FoundImage, Images
from pagein.daemon.mount_server import MountOptions, MountServer
from pagein.daemon.mounts import MountFolder, MountRecord
from pagein.errors import DeviceError, PageinError, UsageError


def serve_mount(
    images: Images,
    found: FoundImage,
    options: MountOptions,
    *,
    keep_from_server: Sequence[int] = (),
) -> MountRecord:
    """Mount an image and return once the tree is usable. Raises UsageError or DeviceError.

    The serving process lives longer than this one; descriptors in ``keep_from_server``, which hold
    locks of this one, are closed there.
    """
    if options.target is not None:
        check_target(options.target)
        options = dataclasses.replace(options, target=options.target.resolve())
    check_root()
    folder, lock = MountFolder.create(images.node.paths)
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        for descriptor in (reader, *keep_from_server):
            os.close(descriptor)
        _become_server(images, found, options, folder, writer)
    os.close(writer)
    os.close(lock)  # the serving process has it
    with os.fdopen(reader, "rb") as answers:
        answer = json.loads(answers.readline() or b'{"error": "the serving process died"}')
    os.waitpid(child, 0)
    if "error" in answer:
        _raise(answer, folder)
    record = folder.record()
    assert record is not None
    return record


def check_root() -> None:
    """Raise UsageError for who is not root: better before an image is looked for than after."""
    if os.geteuid() != 0:
        raise UsageError(
            "mounting needs root", hint="sudo, or look inside with pagein ls and pagein cat"
        )


def _raise(answer: Mapping[str, Any], folder: MountFolder) -> NoReturn:
    log = folder.path / "log"
    said = log.read_text(errors="replace").strip() if log.exists() else ""
    folder.remove()
    hint = answer.get("hint") or said[-500:] or None
    if answer.get("errno"):
        raise DeviceError(answer["error"], errno=answer["errno"], hint=hint)
    raise PageinError(answer["error"], hint=hint)


def check_target(target: Path) -> None:
    """Raise UsageError for what nothing can be mounted at."""
    if not target.exists():
        raise UsageError(f"{target} does not exist", hint=f"mkdir {target}")
    if not target.is_dir():
        raise UsageError(f"{target} is not a directory")


def _become_server(
    images: Images, found: FoundImage, options: MountOptions, folder: MountFolder, writer: int
) -> NoReturn:
    """Detach from the terminal and the parent, serve, and end without returning."""
    code = 1
    try:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        log = os.open(folder.path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDWR)
        for number, descriptor in ((0, null), (1, log), (2, log)):
            os.dup2(descriptor, number)
        os.chdir("/")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        MountServer(images, found, options, folder).run(lambda: _tell(writer, {}))
        code = 0
    except PageinError as error:
        _tell(
            writer,
            {"error": str(error), "hint": error.hint, "errno": getattr(error, "errno", 0)},
        )
    except OSError as error:  # the disk of the folder is full, say
        _tell(writer, {"error": f"cannot set up a mount in {folder.path}: {error.strerror}"})
    except BaseException as error:
        traceback.print_exc()
        _tell(writer, {"error": f"unexpected {type(error).__name__}: {error}"})
    finally:
        os._exit(code)


def _tell(writer: int, answer: Mapping[str, Any]) -> None:
    """Answer the parent once; nobody listens to a second answer."""
    with contextlib.suppress(OSError):
        os.write(writer, json.dumps(dict(answer)).encode() + b"\n")
        os.close(writer)
