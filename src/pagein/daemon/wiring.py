"""The one place that names concrete classes: a reference to its repository, and the cache."""

from __future__ import annotations

import os
import platform as host_platform
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from pagein.daemon.config import Config
from pagein.daemon.paths import Paths
from pagein.daemon.registries import Registries
from pagein.errors import UsageError
from pagein.events import Observer, ignore
from pagein.format.index import Index
from pagein.format.platforms import Platform
from pagein.store.captured_credentials import CapturedCredentials
from pagein.store.credentials import ChainedCredentials, Credentials, DockerCredentials
from pagein.store.directory import DirectoryCache
from pagein.store.layout import LayoutRepository
from pagein.store.mounted_secrets import MountedSecrets
from pagein.store.repository import Repository, SingleImage, WritableRepository
from pagein.store.source import SectorCache
from pagein.store.stack import ReadPath, ReadThreads
from pagein.types import Digest, ImageName, Transport


class Node:
    """This machine: its configuration, credentials and cache, and the places it can read from.

    ``captured`` has the logins that came with kubelet's pulls, where there is a daemon.
    """

    def __init__(
        self, paths: Paths, config: Config, *, captured: CapturedCredentials | None = None
    ) -> None:
        self.paths = paths
        self.config = config
        self._captured = captured
        self._registries = Registries(config)

    @cached_property
    def _machine_credentials(self) -> tuple[Credentials, ...]:
        """Return what the machine itself knows: Docker's files, mounted secrets, plugins."""
        found: list[Credentials] = [DockerCredentials.load(os.environ, Path.home())]
        config = self.config
        if config.secret_files:
            found.append(MountedSecrets(config.secret_files))
        if config.credential_provider_config:
            from pagein.store.kubelet_credentials import KubeletCredentials

            file, programs = config.credential_provider_config, config.credential_provider_bin_dir
            found.append(KubeletCredentials(Path(file), Path(programs), os.environ))
        return tuple(found)

    def _credentials(self, name: ImageName) -> Credentials:
        """Return who asks for an image: docs/how-to/kubernetes.md has the order and why."""
        captured = () if self._captured is None else (self._captured.for_image(name),)
        return ChainedCredentials((*captured, *self._machine_credentials))

    def repository(self, name: ImageName) -> Repository:
        """Return the place that a reference names, to read from; of several hosts the last.

        Archives and trees are no start's business, so their modules are imported only here.
        """
        if name.transport is Transport.DOCKER:
            return self.places(name)[-1]
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
                return self._registries.to_write(name, self._credentials(name))
            case Transport.OCI:
                return LayoutRepository(Path(name.path))
        raise UsageError(
            f"{name.transport.prefix} cannot be written to",
            hint="name a destination: docker://HOST/REPOSITORY:TAG or oci:DIR:TAG",
        )

    def places(self, name: ImageName) -> list[Repository]:
        """Return where an image may be read from: its mirrors in order, then its own place."""
        if name.transport is not Transport.DOCKER:
            return [self.repository(name)]
        return [*self._registries.to_read(name, self._credentials(name))]

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
        threads: ReadThreads | None = None,
    ) -> ReadPath:
        """Put together what a read of one image goes through; ``with`` owns its threads.

        ``cache`` takes the place of this machine's, ``threads`` that of threads of its own.
        """
        return ReadPath(
            index.sectors,
            index.sector_size,
            places,
            cache or self.cache(observer),
            workers=self.config.fetch_workers,
            threads=threads,
            read_timeout_s=self.config.read_timeout,
            hot_sectors=index.hot_sectors,
            observer=observer,
        )
