"""Credentials from kubelet's credential provider plugins: programs that a cloud gives its nodes.

Rule 1. Configured with kubelet's own files, read at each use: a node is told once.
Rule 2. A plugin is run when a registry asks, one at a time, and its answer kept for as long as it
says: that is how a login of twelve hours is renewed under an image that runs for weeks.
Rule 3. A secret is in no message and no repr; nothing is written to a disk.
Sources: Kubernetes' reference of kubelet-config.v1 (CredentialProviderConfig: matching) and
kubelet-credentialprovider.v1 (request, response, cache keys); pkg/credentialprovider/keyring.go
(``URLsMatch``).
"""

from __future__ import annotations

import importlib
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from pagein.errors import RemoteDeniedError, UsageError
from pagein.store.hosts import parse_duration
from pagein.wire.auth import Credential

_API: Final = "credentialprovider.kubelet.k8s.io/"
_TIMEOUT_S: Final = 60.0  # as kubelet
_MAX_FILE: Final = 1 << 20
_MAX_KEPT: Final = 1024
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


class _Variable(msgspec.Struct, frozen=True):
    name: str
    value: str = ""


class _Provider(msgspec.Struct, frozen=True, rename="camel"):
    """One entry of the file. ``token_attributes``: it wants a pod's token, which we have not."""

    name: str
    match_images: tuple[str, ...]
    api_version: str
    default_cache_duration: str
    args: tuple[str, ...] | None = None
    env: tuple[_Variable, ...] | None = None
    token_attributes: dict[str, Any] | None = None


class _Config(msgspec.Struct, frozen=True):
    kind: Literal["CredentialProviderConfig"]
    providers: tuple[_Provider, ...] = ()


class _Login(msgspec.Struct, frozen=True):
    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return "_Login(...)"


class _Response(msgspec.Struct, frozen=True, rename="camel"):
    kind: Literal["CredentialProviderResponse"]
    cache_key_type: Literal["Image", "Registry", "Global"]
    cache_duration: str | None = None
    auth: dict[str, _Login] | None = None


@dataclass(frozen=True, slots=True, repr=False)
class _Kept:
    until: float
    auth: Mapping[str, _Login]


@dataclass(slots=True)
class KubeletCredentials:
    """Asks the plugins of ``config`` that lie in ``programs``. Safe to call from any thread.

    kubelet calls the two ``--image-credential-provider-config`` and ``-bin-dir``.
    """

    config: Path
    programs: Path
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    monotonic: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _kept: dict[tuple[str, str], _Kept] = field(default_factory=dict, init=False, repr=False)

    def for_repository(self, host: str, repository: str, /) -> Credential | None:
        """Return the first credential. Raises UsageError and RemoteDeniedError."""
        return next(self.each_for_repository(host, repository), None)

    def each_for_repository(self, host: str, repository: str, /) -> Iterator[Credential]:
        """Yield the credentials of every plugin for this image, in the order of the file."""
        image = f"{'docker.io' if host in _HUB else host}/{repository}"
        for provider in _read(self.config).providers:
            if provider.token_attributes or not _matches_any(provider.match_images, image):
                continue
            with self._lock:
                auth = self._auth(provider, image)
            for pattern in sorted(auth, reverse=True):  # kubelet: the longer one goes first
                if matches(pattern, image) and auth[pattern].username:
                    yield Credential(auth[pattern].username, auth[pattern].password)

    def _auth(self, provider: _Provider, image: str) -> Mapping[str, _Login]:
        now = self.monotonic()
        registry = image.partition("/")[0]
        for key in (("", provider.name), (registry, provider.name), (image, provider.name)):
            kept = self._kept.get(key)
            if kept is not None and kept.until > now:
                return kept.auth
        response = self._run(provider, image)
        auth = response.auth or {}
        duration = response.cache_duration
        lasts_s = parse_duration(provider.default_cache_duration if duration is None else duration)
        if lasts_s > 0:
            names = {"Image": image, "Registry": registry, "Global": ""}
            while len(self._kept) >= _MAX_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[names[response.cache_key_type], provider.name] = _Kept(now + lasts_s, auth)
        return auth

    def _run(self, provider: _Provider, image: str) -> _Response:
        program = self.programs / provider.name
        request = {
            "kind": "CredentialProviderRequest",
            "apiVersion": provider.api_version,
            "image": image,
        }
        more = {one.name: one.value for one in provider.env or ()}
        try:
            done = subprocess.run(
                [program, *(provider.args or ())],
                input=msgspec.json.encode(request),
                capture_output=True,
                timeout=_TIMEOUT_S,
                env={**self.environment, **more},
                check=False,
            )
        except FileNotFoundError:
            raise UsageError(f"credential provider {program} is not installed") from None
        except (subprocess.TimeoutExpired, OSError) as error:
            raise RemoteDeniedError(
                f"credential provider {provider.name} gave no answer: {type(error).__name__}"
            ) from None
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())[-200:]
            raise RemoteDeniedError(f"credential provider {provider.name} failed: {said}")
        try:
            return msgspec.json.decode(done.stdout, type=_Response)
        except msgspec.MsgspecError:  # its text may quote the answer: not shown
            raise RemoteDeniedError(
                f"credential provider {provider.name} answered no CredentialProviderResponse"
            ) from None


def matches(pattern: str, image: str) -> bool:
    """Say whether an image is one of a ``matchImages`` pattern, as kubelet says it.

    A wildcard stands for a part of one label of the host; the port is the same; the path is a
    prefix.
    """
    host, port, path = _split(pattern)
    image_host, image_port, image_path = _split(image)
    labels, image_labels = host.split("."), image_host.split(".")
    return (
        port == image_port
        and len(labels) == len(image_labels)
        and image_path.startswith(path)
        and all(
            re.fullmatch(translate(label), found)
            for label, found in zip(labels, image_labels, strict=True)
        )
    )


def _matches_any(patterns: tuple[str, ...], image: str) -> bool:
    return any(matches(pattern, image) for pattern in patterns)


def _split(text: str) -> tuple[str, str, str]:
    """Return host, port and path; a scheme is dropped."""
    parts = urlsplit(text if "://" in text else f"https://{text}")
    host, colon, port = parts.netloc.rpartition(":")
    if not colon or not port.isdigit():
        host, port = parts.netloc, ""
    return host, port, parts.path


def _read(file: Path) -> _Config:
    """Read the file, which is YAML or JSON. Raises UsageError."""
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_FILE + 1)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    if len(data) > _MAX_FILE:
        raise UsageError(f"{file} is over {_MAX_FILE} bytes")
    try:
        config = msgspec.convert(_document(data, file), _Config)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{file} is no CredentialProviderConfig: {error}") from None
    for provider in config.providers:
        if not _NAME.fullmatch(provider.name):
            raise UsageError(f"{file}: not the name of a program: {provider.name[:80]!r}")
        if not provider.api_version.startswith(_API):
            raise UsageError(f"{file}: apiVersion of {provider.name} does not begin with {_API}")
        parse_duration(provider.default_cache_duration)
    return config


def _document(data: bytes, file: Path) -> object:
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass  # it is YAML
    try:
        yaml = importlib.import_module("yaml")
    except ModuleNotFoundError:
        raise UsageError(
            f"{file} is YAML, which needs a package",
            hint="pip install 'pagein[kubernetes]', or write the file as JSON",
        ) from None
    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UsageError(f"{file} is not YAML") from None
