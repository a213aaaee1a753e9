"""The configuration file: TOML, frozen, checked once. One place owns each default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from pagein.errors import UsageError
from pagein.store.hosts import parse_duration

DEFAULT_FILE = Path("/etc/pagein/config.toml")

_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Read ``4MiB``, ``20G``, ``512k`` or a plain number of bytes; units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"not a size: {text!r}", hint="write for example 4MiB or 20GiB")
    return int(float(match[1]) * (1 << _UNITS[match[2].lower()]))


class RegistryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One ``[registry."HOST"]`` table. Mirrors are hosts, asked in order before HOST itself."""

    plain_http: bool = False
    skip_verify: bool = False
    ca: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    mirrors: tuple[str, ...] = ()


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings. Sizes are text such as ``20GiB``; times are in seconds.

    ``prefetch``: what is fetched unasked once an image is mounted, its hot region or also the rest
    of it; with ``hydrate_after`` (a time such as ``10s``) the rest follows that long after the
    mount. The two rates are sizes a second; empty: as fast as the link is.

    ``hosts_dir`` is spelled as containerd's ``config_path``: folders of ``HOST/hosts.toml``, with
    ``:`` between them. It says nothing of a host that has a ``[registry."HOST"]`` table here.

    ``secret_files`` are patterns of mounted ``dockerconfigjson`` secrets; the two settings after it
    are kubelet's ``--image-credential-provider-config`` and ``-bin-dir``, both or none.

    For the daemon: ``metrics_address`` is HOST:PORT or ``unix:PATH`` (empty: no metrics are
    served); ``cri_image_service`` is containerd's socket, to which kubelet's image calls are passed
    on from ``cri.sock`` (empty: there is no such socket); with ``persist_credentials`` the logins
    that come with those calls are kept through restarts. The first ``record_starts`` starts of each
    image are recorded, for ``record_seconds`` each; the profiles are kept in the state folder, and
    with ``record_to = "registry"`` also put beside the image.
    """

    cache_size: str = "20GiB"
    read_timeout: float = 60.0
    request_timeout: float = 20.0
    fetch_workers: int = 4
    read_ahead_kb: int = 256
    prefetch: Literal["none", "hot", "all"] = "hot"
    prefetch_rate: str = ""
    hydrate_after: str = ""
    hydrate_rate: str = ""
    hosts_dir: str = "/etc/containerd/certs.d"
    secret_files: tuple[str, ...] = ()
    credential_provider_config: str = ""
    credential_provider_bin_dir: str = ""
    metrics_address: str = ""
    cri_image_service: str = ""
    persist_credentials: bool = True
    record_starts: int = 0
    record_seconds: float = 60.0
    record_to: Literal["folder", "registry"] = "folder"
    registry: dict[str, RegistryConfig] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        parse_size(self.cache_size)
        if not 0 < self.read_timeout <= 3600 or not 0 < self.request_timeout <= 3600:
            raise ValueError("timeouts are between 0 and 3600 seconds")
        if not 1 <= self.fetch_workers <= 64:
            raise ValueError("fetch_workers is between 1 and 64")
        if bool(self.credential_provider_config) != bool(self.credential_provider_bin_dir):
            raise ValueError("credential_provider_config and _bin_dir go together")
        if self.cri_image_service and not self.cri_image_service.startswith("/"):
            raise ValueError("cri_image_service is the path of containerd's socket")
        parse_size(self.prefetch_rate or "0")
        parse_size(self.hydrate_rate or "0")
        if self.hydrate_after:
            parse_duration(self.hydrate_after)
        if not 0 <= self.read_ahead_kb <= 16384:
            raise ValueError("read_ahead_kb is between 0 and 16384")
        if not 0 <= self.record_starts <= 1000:
            raise ValueError("record_starts is between 0 and 1000")
        if not 0 < self.record_seconds <= 3600:
            raise ValueError("record_seconds is between 0 and 3600")

    @property
    def cache_bytes(self) -> int:
        """``cache_size`` in bytes."""
        return parse_size(self.cache_size)

    @property
    def prefetch_bytes_per_s(self) -> int | None:
        """``prefetch_rate`` in bytes a second; None: no limit."""
        return parse_size(self.prefetch_rate) if self.prefetch_rate else None

    @property
    def hydrate_after_s(self) -> float | None:
        """``hydrate_after`` in seconds; None: never."""
        return parse_duration(self.hydrate_after) if self.hydrate_after else None

    @property
    def hydrate_bytes_per_s(self) -> int | None:
        """``hydrate_rate`` in bytes a second; None: no limit."""
        return parse_size(self.hydrate_rate) if self.hydrate_rate else None

    @property
    def hosts_dirs(self) -> tuple[Path, ...]:
        """The folders of ``hosts_dir``, in the order they are looked into."""
        return tuple(Path(folder) for folder in self.hosts_dir.split(":") if folder)

    def for_host(self, host: str) -> RegistryConfig:
        """Return the settings of one registry host, or the defaults."""
        return self.registry.get(host, RegistryConfig())


def load_config(
    path: Path | None,
    *,
    plain_http: tuple[str, ...] = (),
    changes: Mapping[str, Any] | None = None,
) -> Config:
    """Read the file (none: ``/etc/pagein/config.toml`` if there is one).

    ``plain_http`` names further registry hosts that speak plain HTTP; ``changes`` are settings by
    name that go before the file's. Raises UsageError.
    """
    file = path or DEFAULT_FILE
    try:
        config = msgspec.toml.decode(file.read_bytes(), type=Config)
    except FileNotFoundError:
        if path is not None:
            raise UsageError(f"no configuration file {path}") from None
        config = Config()
    except (msgspec.DecodeError, OSError) as error:
        raise UsageError(f"cannot read the configuration {file}: {error}") from None
    if plain_http:
        tables: dict[str, Any] = dict(config.registry)
        for host in plain_http:
            tables[host] = msgspec.structs.replace(config.for_host(host), plain_http=True)
        config = msgspec.structs.replace(config, registry=tables)
    try:
        return msgspec.structs.replace(config, **(changes or {}))
    except ValueError as error:
        raise UsageError(str(error)) from None
