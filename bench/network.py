"""A link to a registry: a network namespace, its rate by ``tc tbf``, its delay by a proxy.

The registry runs in the namespace, behind a veth pair. The rate is the kernel's token bucket on the
registry's end, so TCP fills and shares it as it does a real link. This kernel need not have netem:
`delay_proxy`, in the namespace too, adds the round trip. Every client takes the same path, and the
counters of the client's end of the pair are everyone's meter of bytes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pagein.testing.docker_registry import DockerRegistry

CLIENT, SERVER = "10.213.7.1", "10.213.7.2"
QUEUE_MS = 50
"""How long a packet may wait in the token bucket; what waits longer is dropped."""


@dataclass(frozen=True)
class Link:
    """A rate in Mbit/s (None: as fast as it goes) and a round trip in milliseconds."""

    rate_mbit: int | None = None
    rtt_ms: float = 0

    @classmethod
    def parse(cls, text: str) -> Link:
        """Read ``RATE/RTT``, as in ``1000/5`` or ``unlimited/0``."""
        rate, _, rtt = text.partition("/")
        return cls(None if rate == "unlimited" else int(rate), float(rtt or 0))

    def __str__(self) -> str:
        return f"{self.rate_mbit or 'unlimited'}/{self.rtt_ms:g}"

    def words(self) -> str:
        """Say it as a person would."""
        rate = f"{self.rate_mbit} Mbit/s" if self.rate_mbit else "unlimited"
        if self.rate_mbit and self.rate_mbit % 1000 == 0:
            rate = f"{self.rate_mbit // 1000} Gbit/s"
        return f"{rate}, {self.rtt_ms:g} ms"


def _run(*words: str) -> None:
    subprocess.run(words, check=True)


class Network:
    """The namespace and its registry, whose data lies below ``folder`` and stays there.

    Its names carry this process's id, and `__exit__` takes all of it away. ``reached`` is a context
    in which the link is as asked for.
    """

    def __init__(self, folder: Path) -> None:
        self._name = f"pgb{os.getpid()}"
        self._folder = folder
        self.registry = DockerRegistry(folder, address=SERVER, namespace=self._name)

    def __enter__(self) -> Network:
        name, inside = self._name, f"{self._name}n"
        _run("ip", "netns", "add", name)
        try:
            _run("ip", "link", "add", name, "type", "veth", "peer", "name", inside, "netns", name)
            _run("ip", "address", "add", f"{CLIENT}/30", "dev", name)
            _run("ip", "link", "set", name, "up")
            _run("ip", "-n", name, "address", "add", f"{SERVER}/30", "dev", inside)
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", name, "link", "set", inside, "up")
            self.registry.__enter__()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.registry.close()
        self._remove()

    def _remove(self) -> None:
        subprocess.run(["ip", "link", "del", self._name], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", self._name], check=False)

    @contextlib.contextmanager
    def reached(self, link: Link) -> Iterator[str]:
        """Shape the link; yield HOST:PORT of the registry at its other end."""
        inside = f"{self._name}n"
        shape = ["tc", "-n", self._name, "qdisc"]
        if link.rate_mbit:
            # The bucket has to hold what the rate brings in one tick of the kernel's clock (4 ms).
            burst = max(128 << 10, link.rate_mbit * 1_000_000 // 8 // 250)
            _run(*shape, "add", "dev", inside, "root", "tbf", "rate", f"{link.rate_mbit}mbit",
                 "burst", str(burst), "latency", f"{QUEUE_MS}ms")  # fmt: skip
        try:
            with self._delayed(link.rtt_ms) as host:
                yield host
        finally:
            if link.rate_mbit:
                _run(*shape, "del", "dev", inside, "root")

    @contextlib.contextmanager
    def _delayed(self, rtt_ms: float) -> Iterator[str]:
        if not rtt_ms:
            yield self.registry.host
            return
        port = self.registry.host.rpartition(":")[2]
        mine = str(int(port) - 1 if int(port) > 32_768 else int(port) + 1)
        script = str(Path(__file__).with_name("delay_proxy.py"))
        words = [sys.executable, script, SERVER, mine, port, str(rtt_ms)]
        with subprocess.Popen(
            ["ip", "netns", "exec", self._name, *words], stdout=subprocess.PIPE
        ) as proxy:
            assert proxy.stdout is not None
            try:
                if proxy.stdout.readline() != b"ready\n":
                    raise RuntimeError("the delay proxy did not start")
                yield f"{SERVER}:{mine}"
            finally:
                proxy.terminate()

    def meter(self) -> Meter:
        """Return what has come over the link so far."""
        statistics = Path(f"/sys/class/net/{self._name}/statistics/rx_bytes")
        return Meter(int(statistics.read_text()), len(self.registry.requests()))


@dataclass(frozen=True)
class Meter:
    """Bytes that the client received, with the headers of TCP/IP, and requests answered."""

    size: int
    requests: int

    def since(self, before: Meter) -> Meter:
        """Return the difference."""
        return Meter(self.size - before.size, self.requests - before.requests)
