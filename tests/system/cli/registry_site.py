"""A registry and what is in it, as the tests of the command line know it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from node_image import NodeImage

from pagein.testing.docker_registry import DockerRegistry


@dataclass(frozen=True, slots=True)
class Site:
    """A registry with ``app:v1`` and ``alice:v1`` converted, and ``app:plain`` as it was built."""

    registry: DockerRegistry
    image: NodeImage

    @property
    def app(self) -> str:
        return f"{self.registry.host}/app:v1"

    def blob(self, digest: str) -> Path:
        """The file in which the registry keeps a blob."""
        name = digest.removeprefix("sha256:")
        return self.registry.data / "docker/registry/v2/blobs/sha256" / name[:2] / name / "data"
