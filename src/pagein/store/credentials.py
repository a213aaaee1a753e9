"""Credentials as Docker and Podman keep them: files, credential stores, credential helpers.

Rule 1. Read when a registry asks, not before: an unused helper is never run.
Rule 2. A secret is in no message and no repr.
Sources: containers-auth.json(5) (places, namespaced keys), docker login reference (credsStore,
credHelpers), docker-credential-helpers (the protocol of ``get``).
"""

from __future__ import annotations

import base64
import binascii
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, runtime_checkable
from urllib.parse import urlsplit

import msgspec

from pagein.errors import RemoteDeniedError, UsageError
from pagein.wire.auth import Credential

__all__ = [
    "Anonymous",
    "ChainedCredentials",
    "Credential",
    "Credentials",
    "DockerCredentials",
    "SeveralCredentials",
    "StaticCredentials",
    "offers",
]

_MAX_FILE: Final = 4 << 20
_HELPER_TIMEOUT_S: Final = 30.0
_HUB_KEY: Final = "https://index.docker.io/v1/"
_HUB_HOSTS: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_IDENTITY: Final = "<token>"  # docker-credential-helpers: the secret is an identity token


class Credentials(Protocol):
    """Who asks at a registry. Safe to call from any thread; may run a program."""

    def for_repository(self, host: str, repository: str, /) -> Credential | None:
        """Return the credential for ``host/repository``; None: ask anonymously."""
        ...


@runtime_checkable
class SeveralCredentials(Protocol):
    """Who may know more than one credential for a place: where one is refused, the next is tried.

    A login that came with a pull runs out after hours; the node's own may still be good.
    """

    def each_for_repository(self, host: str, repository: str, /) -> Iterator[Credential]:
        """Yield the credentials, best first; each is asked for when the one before is refused."""
        ...


def offers(credentials: Credentials, host: str, repository: str) -> Iterator[Credential]:
    """Yield what there is to offer, each credential once."""
    if not isinstance(credentials, SeveralCredentials):
        one = credentials.for_repository(host, repository)
        if one is not None:
            yield one
        return
    seen: list[Credential] = []
    for credential in credentials.each_for_repository(host, repository):
        if credential not in seen:
            seen.append(credential)
            yield credential


class Anonymous:
    """No credentials."""

    def for_repository(self, host: str, repository: str, /) -> Credential | None:
        """Return None."""
        del host, repository
        return None


@dataclass(frozen=True, slots=True)
class StaticCredentials:
    """The same credential for every repository of one host; ``host=""``: of any host."""

    credential: Credential
    host: str = ""

    def for_repository(self, host: str, repository: str, /) -> Credential | None:
        """Return the credential if the host is the one it is for."""
        del repository
        return self.credential if self.host in {"", host} else None


@dataclass(frozen=True, slots=True)
class ChainedCredentials:
    """Asks one after the other: where a credential is refused, or nobody knows one."""

    links: tuple[Credentials, ...]

    def for_repository(self, host: str, repository: str, /) -> Credential | None:
        """Return the first credential. Raises what a link raises: none is passed over in error."""
        return next(self.each_for_repository(host, repository), None)

    def each_for_repository(self, host: str, repository: str, /) -> Iterator[Credential]:
        """Yield the credentials of all links, in order."""
        for link in self.links:
            yield from offers(link, host, repository)


class _Auth(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _Config(msgspec.Struct, rename={"creds_store": "credsStore", "cred_helpers": "credHelpers"}):
    auths: dict[str, _Auth] = msgspec.field(default_factory=dict)
    creds_store: str = ""
    cred_helpers: dict[str, str] = msgspec.field(default_factory=dict)


class _HelperAnswer(msgspec.Struct):
    username: str = msgspec.field(default="", name="Username")
    secret: str = msgspec.field(default="", name="Secret")


@dataclass(frozen=True, slots=True)
class DockerCredentials:
    """Looks in each configuration file in turn; the first that knows the registry decides."""

    files: tuple[Path, ...]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, env: Mapping[str, str], home: Path) -> DockerCredentials:
        """Choose the files: ``$REGISTRY_AUTH_FILE`` alone if it is set, else Docker's and
        Podman's.

        Docker's file goes first, as users of ``docker login`` expect.
        """
        if explicit := env.get("REGISTRY_AUTH_FILE"):
            return cls((Path(explicit),), env)
        folder = Path(env["DOCKER_CONFIG"]) if env.get("DOCKER_CONFIG") else home / ".docker"
        files = [folder / "config.json"]
        if runtime := env.get("XDG_RUNTIME_DIR"):
            files.append(Path(runtime) / "containers" / "auth.json")
        configuration = env.get("XDG_CONFIG_HOME") or str(home / ".config")
        files.append(Path(configuration) / "containers" / "auth.json")
        return cls(tuple(files), env)

    def for_repository(self, host: str, repository: str, /) -> Credential | None:
        """Return the most specific credential. UsageError: a file or a helper is broken."""
        for path in self.files:
            config = _read(path)
            if config is None:
                continue
            found = self._from_config(config, host, repository)
            if found is not None:
                return found
        return None

    def _from_config(self, config: _Config, host: str, repository: str) -> Credential | None:
        server = _HUB_KEY if host in _HUB_HOSTS else host
        for name in (host, server):
            if helper := config.cred_helpers.get(name):
                return self._ask(helper, server)
        if config.creds_store and (found := self._ask(config.creds_store, server)):
            return found  # docker: the store goes before what is left in the file
        best = _most_specific(config.auths, host, repository)
        return _decode(best[0], best[1]) if best is not None else None

    def _ask(self, helper: str, server: str) -> Credential | None:
        """Run ``docker-credential-HELPER get``; the server goes in on standard input."""
        program = f"docker-credential-{helper}"
        if not helper or "/" in helper:
            raise UsageError(f"not a credential helper's name: {helper[:80]!r}")
        try:
            done = subprocess.run(
                [program, "get"],
                input=server.encode(),
                capture_output=True,
                timeout=_HELPER_TIMEOUT_S,
                env=dict(self.environment) or None,
                check=False,
            )
        except FileNotFoundError:
            raise UsageError(
                f"credential helper {program} is not installed",
                hint=f"install it, or log in again: docker login {server}",
            ) from None
        except (subprocess.TimeoutExpired, OSError) as error:
            raise RemoteDeniedError(
                f"credential helper {program} gave no answer: {type(error).__name__}"
            ) from None
        if done.returncode:
            said = (done.stdout + done.stderr).decode(errors="replace")
            if "credentials not found" in said:
                return None
            first = " ".join(said.split())[:200]
            raise RemoteDeniedError(f"credential helper {program} failed for {server}: {first}")
        try:
            answer = msgspec.json.decode(done.stdout, type=_HelperAnswer)
        except msgspec.MsgspecError:
            raise RemoteDeniedError(f"credential helper {program} answered no JSON") from None
        if answer.username == _IDENTITY:
            return Credential(identity_token=answer.secret)
        return Credential(answer.username, answer.secret) if answer.username else None


def _read(path: Path) -> _Config | None:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"cannot read credentials from {path}: {error.strerror}") from None
    if len(data) > _MAX_FILE:
        raise UsageError(f"credentials file {path} is over {_MAX_FILE} bytes")
    if not data.strip():
        return None  # podman's own example: an empty file is no login
    try:
        return msgspec.json.decode(data, type=_Config)
    except msgspec.MsgspecError:  # its text may quote the file: not shown
        raise UsageError(f"credentials file {path} is not the JSON expected") from None


def _normal(key: str) -> str:
    """Reduce a key to ``host`` or ``host/path``: Docker wrote ``https://host/v1/`` once."""
    if "://" not in key:
        return key.rstrip("/")
    parts = urlsplit(key)
    path = parts.path.strip("/")
    return parts.netloc if path in {"", "v1", "v2"} else f"{parts.netloc}/{path}"


def _most_specific(
    auths: Mapping[str, _Auth], host: str, repository: str
) -> tuple[str, _Auth] | None:
    hosts = _HUB_HOSTS if host in _HUB_HOSTS else {host}
    wanted = [f"{name}/{repository}" for name in hosts]
    best: tuple[int, str, _Auth] | None = None
    for key, auth in auths.items():
        normal = _normal(key)
        matches = any(full == normal or full.startswith(normal + "/") for full in wanted)
        if matches and (best is None or len(normal.partition("/")[2]) > best[0]):
            best = (len(normal.partition("/")[2]), key, auth)
    return (best[1], best[2]) if best is not None else None


def _decode(key: str, auth: _Auth) -> Credential | None:
    username, password = auth.username, auth.password
    if auth.auth:
        try:
            text = base64.b64decode(auth.auth, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise UsageError(
                f"the credentials for {key} are not base64", hint="log in again"
            ) from None
        username, _, password = text.partition(":")
        password = password.rstrip("\0")  # docker strips these too
    if auth.identitytoken:
        return Credential(username, password, auth.identitytoken)
    return Credential(username, password) if username else None
