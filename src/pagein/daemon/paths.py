"""Where state lives: ``/var/lib/pagein`` and ``/run/pagein``; ``PAGEIN_ROOT`` moves both.

Who is not root has folders of their own, as the XDG Base Directory Specification names them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pagein.errors import PageinError
from pagein.types import Digest


@dataclass(frozen=True, slots=True)
class Paths:
    """``state`` survives a reboot, ``run`` need not. All folders are made private (0700)."""

    state: Path
    run: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, root: bool = True) -> Paths:
        """Use ``$PAGEIN_ROOT/lib`` and ``$PAGEIN_ROOT/run`` where it is set.

        Otherwise the machine's folders, or without ``root`` the user's: ``$XDG_STATE_HOME`` (or
        ``~/.local/state``) and ``$XDG_RUNTIME_DIR``. Relative ones are ignored, as specified.
        """
        own = environment.get("PAGEIN_ROOT")
        if own:
            base = Path(own).absolute()
            return cls(base / "lib", base / "run")
        if root:
            return cls(Path("/var/lib/pagein"), Path("/run/pagein"))
        home = Path(environment.get("HOME") or "/nonexistent")
        state = _absolute(environment.get("XDG_STATE_HOME")) or home / ".local/state"
        run = _absolute(environment.get("XDG_RUNTIME_DIR"))
        return cls(state / "pagein", run / "pagein" if run else state / "pagein/run")

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
    def profiles(self) -> Path:
        """Recorded starts: a folder for each image, by the digest of its manifest."""
        return self.state / "profiles"

    @property
    def mounts(self) -> Path:
        """One folder for each live mount."""
        return self.run / "mounts"

    @property
    def snapshots(self) -> Path:
        """The snapshotter's database and directories."""
        return self.state / "snapshotter"

    @property
    def attached(self) -> Path:
        """Where the daemon mounts images: a folder for each."""
        return self.run / "images"

    @property
    def control(self) -> Path:
        """The daemon's control socket."""
        return self.run / "control.sock"

    @property
    def snapshotter_socket(self) -> Path:
        """Where the daemon listens for containerd."""
        return self.run / "snapshotter.sock"

    @property
    def cri_socket(self) -> Path:
        """Where the daemon listens for kubelet, if it is to pass its calls on."""
        return self.run / "cri.sock"

    @property
    def holder_socket(self) -> Path:
        """Where the daemon's holder listens, on machines without systemd."""
        return self.run / "holder.sock"

    def image(self, index: Digest) -> Path:
        """Folder of one image's local files, by the digest of its index blob."""
        return self.state / "images" / index.hex

    def make(self, folder: Path) -> Path:
        """Create a folder of ours, for its owner alone, and return it. Raises PageinError.

        Its parents too: ``mkdir(parents=True)`` would leave those open to everyone.
        """
        try:
            if not folder.parent.is_dir():
                self.make(folder.parent)
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise PageinError(
                f"cannot make the folder {folder}: {error.strerror}",
                hint="set PAGEIN_ROOT to a folder that you may write to",
            ) from None
        return folder


def _absolute(path: str | None) -> Path | None:
    return Path(path) if path and path.startswith("/") else None
