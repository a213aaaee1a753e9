"""Where state lives: ``/var/lib/pagein`` and ``/run/pagein``; ``PAGEIN_ROOT`` moves both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pagein.types import Digest


@dataclass(frozen=True, slots=True)
class Paths:
    """``state`` survives a reboot, ``run`` need not. All folders are made root-only (0700)."""

    state: Path
    run: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Paths:
        """Use ``$PAGEIN_ROOT/lib`` and ``$PAGEIN_ROOT/run`` where it is set."""
        root = environment.get("PAGEIN_ROOT")
        if root:
            base = Path(root).absolute()
            return cls(base / "lib", base / "run")
        return cls(Path("/var/lib/pagein"), Path("/run/pagein"))

    @property
    def cache(self) -> Path:
        """Sectors, one file each, shared by all images."""
        return self.state / "cache"

    @property
    def converted(self) -> Path:
        """OCI layout of the images that this machine converted for itself."""
        return self.state / "converted"

    @property
    def scratch(self) -> Path:
        """Temporary files of conversions."""
        return self.state / "scratch"

    @property
    def containers(self) -> Path:
        """Writable layers of named containers."""
        return self.state / "containers"

    @property
    def mounts(self) -> Path:
        """One folder for each live mount."""
        return self.run / "mounts"

    def image(self, index: Digest) -> Path:
        """Folder of one image's local files, by the digest of its index blob."""
        return self.state / "images" / index.hex

    def make(self, folder: Path) -> Path:
        """Create a folder of ours, root-only, and return it."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder
