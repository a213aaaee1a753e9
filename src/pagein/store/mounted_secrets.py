"""Kubernetes' ``dockerconfigjson`` secrets, mounted as files into the daemon's pod.

kubelet renews the files as the secrets change, and they are read when a registry asks. So pagein
needs no access to the cluster's API, and sees no secret but those that it was given.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pagein.store.credentials import DockerCredentials
from pagein.wire.auth import Credential


@dataclass(frozen=True, slots=True)
class MountedSecrets:
    """Looks into every file of some patterns, such as ``/etc/pagein/secrets/*/.dockerconfigjson``.

    The files are of the form of Docker's own configuration; helpers that they name are run.
    """

    patterns: tuple[str, ...]

    def for_repository(self, host: str, repository: str, /) -> Credential | None:
        """Return the first credential. UsageError: a file is broken."""
        return next(self.each_for_repository(host, repository), None)

    def each_for_repository(self, host: str, repository: str, /) -> Iterator[Credential]:
        """Yield the credentials of all files, in the order of the patterns and of their names."""
        for pattern in self.patterns:
            for path in sorted(glob.glob(pattern)):
                found = DockerCredentials((Path(path),)).for_repository(host, repository)
                if found is not None:
                    yield found
