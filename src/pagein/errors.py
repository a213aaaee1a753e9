"""Every exception that pagein raises.

Rule 1. Retry asks ``error.transient``, nothing else.
Rule 2. A message says what was being done, to what, and why it failed: lower case, no full stop.
Rule 3. ``hint`` says what to do about it.
"""

from __future__ import annotations


class PageinError(Exception):
    """Base of all errors a user may see. ``transient``: the same call may work later."""

    transient = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(PageinError):
    """The caller's mistake; the command line exits with 2."""


class FormatError(PageinError):
    """Bytes that are not what they claim to be. Never retried."""

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        offset: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.field = field
        self.offset = offset


class SectorCorruptError(FormatError):
    """A digest does not match: drop the bytes and ask the next source."""


class NotFoundError(PageinError):
    """Nothing under that name here; the next source may have it."""


class RemoteError(PageinError):
    """The peer could not be asked, or its answer cannot be used."""


class RemoteUnavailableError(RemoteError):
    """Timeouts, resets, 429 and 5xx. ``retry_after`` is in seconds where the peer named a time."""

    transient = True

    def __init__(
        self, message: str, *, retry_after: float | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class RemoteDeniedError(RemoteError):
    """401 or 403: credentials will mend it, time will not."""


class RemoteProtocolError(RemoteError):
    """The peer answered something that the protocol does not allow."""


class CacheError(PageinError):
    """The local disk did not keep a sector; reads go on without it."""


class CacheFullError(CacheError):
    """There is no room left for the sector."""


class DeviceError(PageinError):
    """The kernel refused. ``errno`` is its reason."""

    def __init__(self, message: str, *, errno: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class RuntimeFailedError(PageinError):
    """No container runtime, or the runtime refused the bundle."""


class SnapshotError(PageinError):
    """The snapshotter refuses a call of containerd's."""


class SnapshotNotFoundError(SnapshotError):
    """No snapshot has that key."""


class SnapshotExistsError(SnapshotError):
    """The key is taken; or the layer is here already, and need not be fetched."""


class SnapshotStateError(SnapshotError):
    """The snapshot is there, but not of the kind that this needs, or others stand on it."""


class SnapshotUnavailableError(SnapshotError):
    """The files of a snapshot cannot be shown now."""

    transient = True


class CatalogueDamagedError(SnapshotError):
    """The database of snapshots is not readable; it has been set aside."""
