"""What the command line asks the daemon for; apart, as neither needs the other's modules."""

from __future__ import annotations

import msgspec

from pagein.daemon.config import Config
from pagein.types import Digest


class MountRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``{"op": "mount", ...}``: paths are absolute; ``artifact`` is the manifest, as stored.

    ``id`` is the caller's to choose: asked for again, it is the same mount.
    """

    id: str
    version: str
    config: str
    reference: str
    artifact: str
    target: str | None = None
    backend: str = "auto"
    writable: bool = False
    upper: str | None = None
    passing: bool = False


def fingerprint(config: Config) -> str:
    """Name a configuration: who has another one cannot be served by this daemon."""
    return Digest.of(msgspec.json.encode(config, order="sorted")).hex[:16]
