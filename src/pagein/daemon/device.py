"""A device that the daemon serves, as it is known while it lives."""

from __future__ import annotations

from dataclasses import dataclass

from pagein.daemon.images import FoundImage
from pagein.daemon.journal import DeviceEntry
from pagein.daemon.start_up import StartUp
from pagein.daemon.stats import MountStats
from pagein.device.backends import ServedFiles
from pagein.types import Digest, SectorRef


@dataclass(slots=True)
class Device:
    """A device that is served. ``left``: how many of its parts are still in use.

    Its metadata is not kept: the kernel reads it from a file, and it may be tens of megabytes.
    """

    entry: DeviceEntry
    reference: str
    artifact: Digest
    index: Digest
    size: int
    sectors: tuple[SectorRef, ...]
    stats: MountStats
    files: ServedFiles
    start: StartUp
    left: int

    @classmethod
    def of(
        cls,
        entry: DeviceEntry,
        found: FoundImage,
        stats: MountStats,
        files: ServedFiles,
        start: StartUp,
    ) -> Device:
        """Note what will be asked about an image."""
        return cls(
            entry,
            str(found.name),
            found.artifact.digest,
            found.index_digest,
            found.index.device_size,
            found.index.sectors,
            stats,
            files,
            start,
            len(entry.parts),
        )
