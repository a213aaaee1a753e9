"""Which hosts answer for a registry's name: by our own configuration, else by containerd's.

Rule 1. A ``[registry."HOST"]`` table of ours decides alone; without one, ``hosts.toml`` does.
Rule 2. Files are read at each use, as containerd reads them; connections are shared by all uses.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pagein.daemon.config import Config, RegistryConfig
from pagein.errors import UsageError
from pagein.store.credentials import Credentials
from pagein.store.hosts import Capability, RegistryHost, find_hosts
from pagein.store.registry import RegistryRepository
from pagein.transport import Transport
from pagein.transport.headers import HeadersTransport
from pagein.transport.http import HttpTransport, TlsOptions
from pagein.types import ImageName
from pagein.wire.registry import api_host, is_loopback

_Way = tuple[TlsOptions, float | None, str | None]


class Registries:
    """Makes the repositories that an image is read from or written to. Safe from any thread."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._transports: dict[_Way, HttpTransport] = {}

    def to_read(self, name: ImageName, credentials: Credentials) -> list[RegistryRepository]:
        """Return where an image may be read from, in order; the registry itself comes last.

        Raises UsageError where the configuration cannot be used, or lets nobody be asked.
        """
        found = [
            self._repository(image, host, credentials, resolves=_may(host, Capability.RESOLVE))
            for image, host in self._asked(name)
            if _may(host, Capability.PULL)
        ]
        if not found:
            raise UsageError(f"no host of {name.host} has the capability pull in its hosts.toml")
        return found

    def to_write(self, name: ImageName, credentials: Credentials) -> RegistryRepository:
        """Return where an image is written to: the first host that may be pushed to.

        Raises UsageError where there is none.
        """
        for host in self.hosts(name.host):
            if _may(host, Capability.PUSH):
                return self._repository(name, host, credentials, resolves=True)
        raise UsageError(f"no host of {name.host} has the capability push in its hosts.toml")

    def hosts(self, host: str) -> tuple[RegistryHost, ...]:
        """Return the hosts that answer for one name, in order. Raises UsageError."""
        if host not in self._config.registry:
            for folder in self._config.hosts_dirs:
                if found := find_hosts(folder, host):
                    return found
        return (_configured(host, self._config.for_host(host)),)

    def _asked(self, name: ImageName) -> Iterator[tuple[ImageName, RegistryHost]]:
        for mirror in self._config.for_host(name.host).mirrors:
            for host in self.hosts(mirror):
                yield replace(name, host=mirror), host
        for host in self.hosts(name.host):
            yield name, host

    def _repository(
        self, name: ImageName, host: RegistryHost, credentials: Credentials, *, resolves: bool
    ) -> RegistryRepository:
        transport: Transport = self._transport((host.tls, host.dial_timeout_s, host.proxy))
        if host.headers:
            transport = HeadersTransport(transport, host.origin, host.headers)
        return RegistryRepository(
            name,
            transport,
            credentials,
            endpoint=host.endpoint(name),
            resolves=resolves,
            range_timeout_s=self._config.read_timeout,
        )

    def _transport(self, way: _Way) -> HttpTransport:
        tls, dial_timeout_s, proxy = way
        more: dict[str, Any] = (
            {} if dial_timeout_s is None else {"connect_timeout_s": dial_timeout_s}
        )
        with self._lock:
            if way not in self._transports:
                self._transports[way] = HttpTransport(
                    timeout_s=self._config.request_timeout, tls=tls, proxy=proxy, **more
                )
            return self._transports[way]


def _may(host: RegistryHost, capability: Capability) -> bool:
    return capability in host.capabilities


def _configured(host: str, settings: RegistryConfig) -> RegistryHost:
    """Return the host that our own table describes, or the defaults.

    A table that speaks of certificates means TLS, on this machine, too.
    """
    means_tls = settings.ca or settings.client_cert or settings.skip_verify
    plain = settings.plain_http or (is_loopback(host) and not means_tls)
    return RegistryHost(
        f"{'http' if plain else 'https'}://{api_host(host)}",
        tls=TlsOptions(
            ca_files=(Path(settings.ca),) if settings.ca else (),
            client_certificate=Path(settings.client_cert) if settings.client_cert else None,
            client_key=Path(settings.client_key) if settings.client_key else None,
            skip_verify=settings.skip_verify,
        ),
    )
