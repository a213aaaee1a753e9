"""The one place that names concrete classes: a reference to its repository, and the cache."""

from __future__ import annotations

import dataclasses
import os
import platform as host_platform
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from pagein.daemon.config import Config
from pagein.daemon.paths import Paths
from pagein.errors import UsageError
from pagein.events import Observer, ignore
from pagein.format.index import Index
from pagein.format.platforms import Platform
from pagein.store.credentials import DockerCredentials
from pagein.store.directory import DirectoryCache
from pagein.store.layout import LayoutRepository
from pagein.store.registry import RegistryRepository
from pagein.store.repository import Repository, SingleImage, WritableRepository
from pagein.store.source import SectorCache
from pagein.store.stack import ReadPath
from pagein.transport.http import HttpTransport, TlsOptions
from pagein.types import Digest, ImageName, Transport


class Node:
    """This machine: its configuration, credentials and cache, and the places it can read from."""

    def __init__(self, paths: Paths, config: Config) -> None:
        self.paths = paths
        self.config = config

    @cached_property
    def _credentials(self) -> DockerCredentials:
        return DockerCredentials.load(os.environ, Path.home())

    def repository(self, name: ImageName) -> Repository:
        """Return the place that a reference names, to read from.

        Archives and trees are no start's business, so their modules are imported only here.
        """
        if name.transport in (Transport.OCI_ARCHIVE, Transport.DOCKER_ARCHIVE):
            from pagein.store.archive import DockerArchiveRepository, OciArchiveRepository

            if name.transport is Transport.OCI_ARCHIVE:
                return OciArchiveRepository(Path(name.path))
            return DockerArchiveRepository(Path(name.path))
        if name.transport is Transport.DIR:
            from pagein.store.rootfs import RootfsRepository

            return RootfsRepository(Path(name.path))
        return self.writable(name)

    def writable(self, name: ImageName) -> WritableRepository:
        """Return the place that a reference names, to write to. Raises UsageError."""
        match name.transport:
            case Transport.DOCKER:
                return self._registry(name)
            case Transport.OCI:
                return LayoutRepository(Path(name.path))
        raise UsageError(
            f"{name.transport.prefix} cannot be written to",
            hint="name a destination: docker://HOST/REPOSITORY:TAG or oci:DIR:TAG",
        )

    def _registry(self, name: ImageName) -> RegistryRepository:
        settings = self.config.for_host(name.host)
        tls = TlsOptions(
            ca_files=(Path(settings.ca),) if settings.ca else (),
            client_certificate=Path(settings.client_cert) if settings.client_cert else None,
            client_key=Path(settings.client_key) if settings.client_key else None,
            skip_verify=settings.skip_verify,
        )
        transport = HttpTransport(timeout_s=self.config.request_timeout, tls=tls)
        return RegistryRepository(
            name, transport, self._credentials, plain_http=settings.plain_http
        )

    def places(self, name: ImageName) -> list[Repository]:
        """Return where an image may be read from: its mirrors in order, then its own place."""
        mirrors: tuple[str, ...] = ()
        if name.transport is Transport.DOCKER:
            mirrors = self.config.for_host(name.host).mirrors
        return [
            *(self._registry(dataclasses.replace(name, host=host)) for host in mirrors),
            self.repository(name),
        ]

    @staticmethod
    def reference(name: ImageName, place: Repository) -> str | Digest:
        """Return what to ask a place for: a digest, a tag, or the only image there."""
        found = name.digest or name.tag
        if found is not None:
            return found
        return place.only_manifest().digest if isinstance(place, SingleImage) else "latest"

    def platform(self, text: str | None) -> Platform:
        """Read a platform; by default it is this machine's."""
        return Platform.parse(text) if text else Platform.local(host_platform.machine())

    def cache(self, observer: Observer = ignore) -> DirectoryCache:
        """Open the cache of this machine."""
        folder = self.paths.make(self.paths.cache)
        return DirectoryCache(folder, limit_bytes=self.config.cache_bytes, observer=observer)

    def read_path(
        self,
        index: Index,
        places: Sequence[Repository],
        observer: Observer = ignore,
        *,
        cache: SectorCache | None = None,
    ) -> ReadPath:
        """Put together what a read of one image goes through; ``with`` owns its threads.

        ``cache`` takes the place of this machine's.
        """
        return ReadPath(
            index.sectors,
            index.sector_size,
            places,
            cache or self.cache(observer),
            workers=self.config.fetch_workers,
            read_timeout_s=self.config.read_timeout,
            observer=observer,
        )
