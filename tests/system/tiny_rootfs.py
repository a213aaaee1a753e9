"""A root file system small enough to build in a test: programs of this machine and their
libraries, account files, and the usual folders. About 4 MB."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

PROGRAMS = ("sh", "cat", "env", "id", "ls", "mkdir", "sleep", "stat", "stty", "touch")

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
alice:x:1000:1000:Alice:/home/alice:/bin/sh
"""

GROUP = """\
root:x:0:
daemon:x:1:
video:x:44:alice
render:x:106:bob,alice
alice:x:1000:
staff:x:50:
"""


def build_tiny_rootfs(path: Path, programs: tuple[str, ...] = PROGRAMS) -> Path:
    """Fill ``path`` (made if absent) and return it. Every program lies in ``/bin``.

    Raises FileNotFoundError for a program that this machine does not have.
    """
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "home/alice", "root"):
        (path / name).mkdir(parents=True, exist_ok=True)
    (path / "tmp").chmod(0o1777)
    (path / "etc/passwd").write_text(PASSWD)
    (path / "etc/group").write_text(GROUP)
    for name in programs:
        found = shutil.which(name, path="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        if found is None:
            raise FileNotFoundError(name)
        shutil.copy(Path(found).resolve(), path / "bin" / name)
        for library in _libraries(found):
            target = path / library.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copy(Path(library).resolve(), target)
    script = path / "bin/not-executable"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o644)
    return path


def _libraries(program: str) -> list[str]:
    """Absolute paths of the libraries and the loader, as ldd names them."""
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return re.findall(r"(?:=> |^\s+)(/\S+) \(", listed, flags=re.MULTILINE)
