"""What the benchmarks share: cold caches, time to first output, containerd on the side, medians."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds from the start of a command to its first byte of output, and to its end."""

    first_output: float
    total: float


CLAIMED = 3 << 30


def claim_memory(size: int = CLAIMED) -> None:
    """Touch memory (bytes), and give it back to the kernel.

    A virtual machine may hand free memory back to its host, which dropping caches makes a lot of;
    the first touch of each page then costs about 10 us, 3 s a GiB, of whatever is timed next.
    """
    piece = b"\1" * (1 << 20)
    with mmap.mmap(-1, size) as memory:
        for offset in range(0, size, len(piece)):
            memory[offset : offset + len(piece)] = piece


def drop_caches(*keep_warm: Path) -> None:
    """Empty the page cache; read a server's files back, so that only the client is cold."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    for folder in keep_warm:
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb", buffering=0) as stream:
                    while stream.read(8 << 20):
                        pass
    claim_memory()


def time_command(command: Sequence[str | Path], env: dict[str, str] | None = None) -> Timing:
    """Run a command to its end. Raises RuntimeError with its output when it fails."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | (env or {}),
    )
    assert process.stdout is not None
    head = process.stdout.read(1)
    first = time.perf_counter() - began
    output, errors = process.communicate()
    total = time.perf_counter() - began
    if process.returncode != 0:
        raise RuntimeError(f"{command}: exit {process.returncode}: {head + output!r} {errors!r}")
    return Timing(first, total)


class Containerd:
    """A containerd of our own with an empty root, on a socket of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "containerd.sock"

    def __enter__(self) -> Containerd:
        self.folder.mkdir(parents=True)
        config = self.folder / "config.toml"
        config.write_text(
            f"""version = 2
root = "{self.folder}/root"
state = "{self.folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{self.socket}"
[ttrpc]
address = "{self.folder}/ttrpc.sock"
"""
        )
        self._log = (self.folder / "log").open("wb")
        self.process = subprocess.Popen(
            ["containerd", "--config", config], stdout=self._log, stderr=self._log
        )
        deadline = time.monotonic() + 20
        while subprocess.run(self.ctr("version"), capture_output=True, check=False).returncode:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"containerd did not start: {self.folder / 'log'}")
            time.sleep(0.05)
        return self

    def ctr(self, *words: str) -> list[str]:
        """Return a ctr command line that talks to this containerd."""
        return ["ctr", "--address", str(self.socket), *words]

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        self._log.close()
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith(str(self.folder))), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def workspace(where: Path = Path("/var/tmp")) -> Iterator[Path]:
    """Yield a temporary folder on a real disk."""
    folder = Path(tempfile.mkdtemp(prefix="pagein-bench-", dir=where))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def machine() -> dict[str, str]:
    """Facts that a reader of the numbers needs."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.machine())  # fmt: skip
    memory_kb = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cpu": f"{os.cpu_count()} x {cpu}",
        "memory": f"{memory_kb / 2**20:.0f} GiB",
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
    }


@dataclass
class Series:
    """All runs of one case, in seconds or what else ``unit`` says."""

    name: str
    unit: str = "s"
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    def cell(self) -> str:
        """Write median, and the lowest and highest, for a table."""
        return f"{self.median:.2f} [{min(self.values):.2f} {max(self.values):.2f}]"


def save(name: str, series: Sequence[Series], facts: dict[str, object] | None = None) -> Path:
    """Write all runs and the machine's facts as JSON below ``bench/results``."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {
        "machine": machine(),
        "facts": facts or {},
        "series": [asdict(one) | {"median": one.median} for one in series],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path
