"""Write ``*_pb2.py`` and ``*_pb2.pyi`` anew: ``python -m pagein.snapshotter.proto.generate``.

Needs grpcio-tools, which only developers have. Generated code asks for a protobuf that is at least
as new as the one that made it, so the version in pyproject.toml moves with it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

PROTOS: Final = ("containerd_api.proto", "cri_images.proto", "mount.proto", "snapshots.proto")
_HERE = Path(__file__).resolve().parent
_SOURCE = _HERE.parents[2]


def generate(into: Path) -> None:
    """Run protoc with ``into`` for the folder that has ``pagein`` in it."""
    folder = _HERE.relative_to(_SOURCE)
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{_SOURCE}"]
    command += [f"--python_out={into}", f"--pyi_out={into}"]
    subprocess.run([*command, *(str(folder / name) for name in PROTOS)], cwd=_SOURCE, check=True)


if __name__ == "__main__":
    generate(_SOURCE)
