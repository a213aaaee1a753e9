"""A real ``docker-registry`` (Debian's package, distribution 2.8) on loopback, for tests.

Rule 1. It listens on 127.0.0.1 (or the address of a network namespace that its user made), on a
        port that the kernel picks; nothing is guessed.
Rule 2. ``with`` owns the process and every file below ``root``.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pagein.errors import UsageError

_LISTENING = re.compile(r"listening on (\d+\.\d+\.\d+\.\d+:\d+)")
_ACCESS = re.compile(
    r'^\S+ - \S* ?\[[^\]]*\] "(?P<method>[A-Z]+) (?P<path>\S+) [^"]*" (?P<status>\d+)'
)
_START_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class AccessLine:
    """One request that the registry answered, from its access log."""

    method: str
    path: str
    status: int


@dataclass(frozen=True, slots=True)
class HtpasswdAuth:
    """Basic authentication for one user."""

    user: str
    password: str


@dataclass(frozen=True, slots=True)
class TokenAuth:
    """Bearer tokens: where they come from, who signs them, and the signer's certificate (PEM)."""

    realm: str
    service: str
    issuer: str
    certificate: Path


@dataclass(frozen=True, slots=True)
class ServerTls:
    """The server's certificate chain and key (PEM files)."""

    certificate: Path
    key: Path


class DockerRegistry:
    """Run ``docker-registry`` with its data below ``root``; deletes are enabled.

    ``namespace`` is a network namespace that has ``address``.

    ``host`` (``127.0.0.1:PORT``) is set once the context is entered. Raises UsageError where the
    program is not installed: ask `DockerRegistry.installed` first, to skip by name.
    """

    def __init__(
        self,
        root: Path,
        *,
        auth: HtpasswdAuth | TokenAuth | None = None,
        tls: ServerTls | None = None,
        address: str = "127.0.0.1",
        namespace: str | None = None,
    ) -> None:
        self.root = root
        self.host = ""
        self._auth = auth
        self._tls = tls
        self._address = address
        self._inside = ["ip", "netns", "exec", namespace] if namespace else []
        self._process: subprocess.Popen[bytes] | None = None
        self._log = root / "registry.log"

    @staticmethod
    def installed() -> bool:
        """Whether the program is on PATH."""
        return shutil.which("docker-registry") is not None

    @property
    def url(self) -> str:
        """Scheme and host."""
        return f"{'https' if self._tls else 'http'}://{self.host}"

    @property
    def data(self) -> Path:
        """Where the registry keeps its files."""
        return self.root / "data"

    def log(self) -> str:
        """All that the registry has printed so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def requests(self, *, settle_s: float = 0.05) -> list[AccessLine]:
        """Return the requests answered so far, in order of completion.

        The registry writes a line after it has answered: ``settle_s`` lets the last one arrive.
        """
        time.sleep(settle_s)
        found = (_ACCESS.match(line) for line in self.log().splitlines())
        return [AccessLine(m["method"], m["path"], int(m["status"])) for m in found if m]

    def __enter__(self) -> DockerRegistry:
        if not self.installed():
            raise UsageError("docker-registry is not installed", hint="apt install docker-registry")
        self.data.mkdir(parents=True, exist_ok=True)
        config = self.root / "config.yml"
        config.write_text(json.dumps(self._configuration(), indent=2))  # JSON is YAML
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._inside, "docker-registry", "serve", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
            )
        try:
            self.host = self._wait_until_it_listens(self._process)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process; idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_until_it_listens(self, process: subprocess.Popen[bytes]) -> str:
        deadline = time.monotonic() + _START_TIMEOUT_S
        pause = threading.Event()
        while time.monotonic() < deadline:
            if found := _LISTENING.search(self.log()):
                return found[1]
            if process.poll() is not None:
                break
            pause.wait(0.02)
        raise UsageError(f"docker-registry did not start: {self.log()[-500:]!r}")

    def _configuration(self) -> dict[str, Any]:
        http: dict[str, Any] = {"addr": f"{self._address}:0", "secret": "for tests only"}
        if self._tls:
            http["tls"] = {"certificate": str(self._tls.certificate), "key": str(self._tls.key)}
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.data)},
                "delete": {"enabled": True},
                "cache": {"blobdescriptor": "inmemory"},
            },
            "http": http,
        }
        match self._auth:
            case HtpasswdAuth(user=user, password=password):
                config["auth"] = {
                    "htpasswd": {"realm": "test", "path": str(self._htpasswd(user, password))}
                }
            case TokenAuth() as token:
                config["auth"] = {
                    "token": {
                        "realm": token.realm,
                        "service": token.service,
                        "issuer": token.issuer,
                        "rootcertbundle": str(token.certificate),
                    }
                }
            case None:
                pass
        return config

    def _htpasswd(self, user: str, password: str) -> Path:
        path = self.root / "htpasswd"
        path.write_bytes(
            subprocess.run(
                ["htpasswd", "-nbB", "-C", "4", user, password], check=True, capture_output=True
            ).stdout
        )
        return path
