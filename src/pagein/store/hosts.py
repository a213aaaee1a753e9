"""Which hosts answer for a registry's name, as containerd is told: ``certs.d/HOST/hosts.toml``.

An operator configures hosts once, for containerd and for us. Read at each use, as containerd reads
them: a change needs no restart.
Sources: containerd docs/hosts.md; core/remotes/docker/config (order of folders, defaults, Docker's
certificate files where there is no hosts.toml). ``proxy``, which containerd has had since 2.3, is
read; keys that are not known are passed over, as containerd passes over them.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pagein.errors import UsageError
from pagein.transport.http import TlsOptions
from pagein.types import ImageName
from pagein.wire.registry import Endpoint, api_host

DEFAULT_FOLDER: Final = "_default"
_MAX_FILE: Final = 1 << 20
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|us|ns|h|m|s))+")
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|us|ns|h|m|s)")
_SECONDS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_PROXIES: Final = frozenset({"http", "https"})


class Capability(StrEnum):
    """What a host is able and trusted to do. Only a trusted one may say what a tag means."""

    PULL = "pull"
    RESOLVE = "resolve"
    PUSH = "push"


ALL: Final = frozenset(Capability)


@dataclass(frozen=True, slots=True)
class RegistryHost:
    """One host that may be asked for a registry's images.

    ``origin`` is scheme and host; ``root`` the path that ``/REPOSITORY/...`` comes after. Headers
    may be secrets, and are in no repr.
    """

    origin: str
    root: str = "/v2"
    capabilities: frozenset[Capability] = ALL
    tls: TlsOptions = field(default_factory=TlsOptions)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    dial_timeout_s: float | None = None
    proxy: str | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        """Host and port."""
        return urlsplit(self.origin).netloc

    def endpoint(self, image: ImageName) -> Endpoint:
        """Return the addresses of an image's repository here.

        A host of another name than the image's is told which registry it stands in for: ``?ns=``.
        """
        stands_in = api_host(self.host) != api_host(image.host)
        namespace = image.host if stands_in else ""
        return Endpoint(self.origin, image.repository, root=self.root, namespace=namespace)


def find_hosts(folder: Path, host: str) -> tuple[RegistryHost, ...] | None:
    """Return the hosts to ask for a registry's name, in order; None: nothing is said of it.

    Raises UsageError, in one line, for a file that cannot be used.
    """
    for name in _folder_names(host):
        place = folder / name
        if place.is_dir():
            return _from_folder(place, host)
    return None


def _folder_names(host: str) -> list[str]:
    """Return the folders looked for: for ``h:5000``, ``h_5000_`` and ``h:5000``, then the rest's.

    The first is for file systems whose names have no colon.
    """
    name, colon, port = host.rpartition(":")
    own = [f"{name}_{port}_", host] if colon and not port.endswith("]") else [host]
    return [*own, DEFAULT_FOLDER]


def _from_folder(place: Path, host: str) -> tuple[RegistryHost, ...]:
    file = place / "hosts.toml"
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_FILE + 1)
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    if not data.strip():
        return (_with_docker_certificates(place, host),)
    if len(data) > _MAX_FILE:
        raise UsageError(f"cannot use {file}: over {_MAX_FILE} bytes")
    try:
        return _parse(tomllib.loads(data.decode()), place, host)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, UsageError) as error:
        raise UsageError(f"cannot use {file}: {error}") from None


def _parse(table: Mapping[str, Any], place: Path, host: str) -> tuple[RegistryHost, ...]:
    """Read the file: its hosts in the order they are written, then its ``server``."""
    hosts = table.get("host", {})
    if not isinstance(hosts, dict) or not all(isinstance(v, dict) for v in hosts.values()):
        raise UsageError("host is not a table of tables")
    server = table.get("server") or _default_origin(host)
    if not isinstance(server, str):
        raise UsageError("server is not text")
    found = [_host(address, values, place) for address, values in hosts.items()]
    return (*found, _host(server, table, place))


def _host(address: str, values: Mapping[str, Any], place: Path) -> RegistryHost:
    if not address.startswith(("http://", "https://")):
        address = f"https://{address}"
    try:
        parts = urlsplit(address)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(f"not a host's address: {address[:200]!r}")
    return RegistryHost(
        f"{parts.scheme}://{api_host(parts.netloc)}",
        _root(parts.path, override=_flag(values, "override_path")),
        _capabilities(values),
        TlsOptions(
            ca_files=tuple(place / name for name in _texts(values, "ca")),
            **_client(values, place),
            skip_verify=_flag(values, "skip_verify"),
        ),
        _headers(values),
        _dial_timeout(values),
        _proxy(values),
    )


def _root(path: str, *, override: bool) -> str:
    """Return where the API begins: below ``/v2`` unless the path is to be taken as it is."""
    clean = posixpath.normpath(path).rstrip("/") if path else ""
    clean = f"/{clean.lstrip('/')}" if clean.strip("/.") else ""
    return clean if override or clean.endswith("/v2") else f"{clean}/v2"


def _capabilities(values: Mapping[str, Any]) -> frozenset[Capability]:
    named = _texts(values, "capabilities")
    try:
        return frozenset(Capability(name.lower()) for name in named) or ALL
    except ValueError as error:
        raise UsageError(f"unknown capability: {error}") from None


def _client(values: Mapping[str, Any], place: Path) -> dict[str, Path | None]:
    """Read ``client``: a path, paths, or pairs of certificate and key."""
    client = values.get("client", [])
    pairs = [client] if isinstance(client, str) else client
    if not isinstance(pairs, list):
        raise UsageError("client is neither a path nor a list")
    if not pairs:
        return {}
    if len(pairs) > 1:
        raise UsageError("more than one client certificate", hint="name the one to show")
    names = [pairs[0], ""] if isinstance(pairs[0], str) else pairs[0]
    if not isinstance(names, list) or len(names) != 2 or not all(type(n) is str for n in names):
        raise UsageError("client is not a pair of paths")
    certificate, key = names
    return {
        "client_certificate": place / certificate,
        "client_key": place / key if key else None,
    }


def _headers(values: Mapping[str, Any]) -> dict[str, str]:
    table = values.get("header", {})
    if not isinstance(table, dict):
        raise UsageError("header is not a table")
    return {name: ", ".join(_texts(table, name)) for name in table}


def _proxy(values: Mapping[str, Any]) -> str | None:
    proxy = values.get("proxy") or None
    if proxy is None:
        return None
    parts = urlsplit(proxy) if isinstance(proxy, str) else None
    if parts is None or parts.scheme not in _PROXIES or not parts.hostname:
        raise UsageError("proxy is not an http or https address")
    return str(proxy)


def _dial_timeout(values: Mapping[str, Any]) -> float | None:
    text = values.get("dial_timeout")
    if text in {None, ""}:
        return None
    seconds = parse_duration(text) if isinstance(text, str) else 0.0
    if seconds <= 0:
        raise UsageError(f"dial_timeout is no time: {text!r}")
    return seconds


def parse_duration(text: str) -> float:
    """Read a duration as Go writes it (``1m30s``), in seconds. Raises UsageError."""
    if text == "0":
        return 0.0
    if not _DURATION.fullmatch(text):
        raise UsageError(f"not a duration: {text[:80]!r}", hint="write for example 1m30s")
    return sum(float(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(text))


def _texts(values: Mapping[str, Any], key: str) -> list[str]:
    """Read text, or a list of texts."""
    found = values.get(key, [])
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{key} is neither text nor a list of texts")
    return texts


def _flag(values: Mapping[str, Any], key: str) -> bool:
    found = values.get(key, False)
    if not isinstance(found, bool):
        raise UsageError(f"{key} is neither true nor false")
    return found


def _default_origin(host: str) -> str:
    return Endpoint.of(host, "", plain_http=False).origin


def _with_docker_certificates(place: Path, host: str) -> RegistryHost:
    """Read Docker's layout: ``*.crt`` are authorities, ``NAME.cert`` and ``NAME.key`` are ours."""
    authorities = tuple(sorted(place.glob("*.crt")))
    certificates = sorted(place.glob("*.cert"))
    if len(certificates) > 1:
        raise UsageError(f"more than one client certificate in {place}")
    certificate = certificates[0] if certificates else None
    key = certificate.with_suffix(".key") if certificate else None
    tls = TlsOptions(
        ca_files=authorities,
        client_certificate=certificate,
        client_key=key if key and key.exists() else None,
    )
    origin = _default_origin(host)
    if authorities or certificate:
        origin = origin.replace("http://", "https://")  # whoever gives certificates means TLS
    return RegistryHost(origin, tls=tls)
