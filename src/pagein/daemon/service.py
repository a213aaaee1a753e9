"""What the daemon answers on its control socket: a request in, a reply out.

``status``, ``mount`` and ``umount``. The command line is the only client; both are of one version,
or the daemon refuses and the command does its work by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from pagein import __version__
from pagein.daemon.attachments import Attachments
from pagein.daemon.config import Config
from pagein.daemon.images import absolute_name
from pagein.daemon.journal import MountEntry
from pagein.daemon.mount_request import MountRequest, fingerprint
from pagein.daemon.mounts import MountRecord
from pagein.daemon.user_mounts import UserMounts, Wanted

_ID: Final = re.compile(r"[0-9a-f]{12}")


class ControlService:
    """Answers requests. ``describe`` says what there is to say of the daemon itself."""

    def __init__(
        self,
        config: Config,
        attachments: Attachments,
        mounts: UserMounts,
        describe: Callable[[], Mapping[str, Any]],
        pid: int,
    ) -> None:
        self._fingerprint = fingerprint(config)
        self._attachments = attachments
        self._mounts = mounts
        self._describe = describe
        self._pid = pid

    def answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer one request. Raises PageinError and ValueError: they are told to who asked."""
        match request.get("op"):
            case "status":
                return self._status()
            case "mount":
                return self._mount(msgspec.convert(dict(request), MountRequest))
            case "umount":
                force = request.get("force") is True
                return {"done": self._mounts.unmount(str(request["target"]), force=force)}
        raise ValueError(f"unknown request {request.get('op')!r}")

    def _status(self) -> Mapping[str, Any]:
        return {
            "daemon": dict(self._describe()),
            "images": [self._attachments.figures(one) for one in self._attachments.devices()],
            "mounts": [
                msgspec.to_builtins(record) | figures
                for record, figures in map(self._described, self._mounts.all())
                if record is not None
            ],
        }

    def _mount(self, request: MountRequest) -> Mapping[str, Any]:
        if request.version != __version__ or request.config != self._fingerprint:
            return {"refused": "the daemon has another version or configuration"}
        if not _ID.fullmatch(request.id):
            raise ValueError(f"not an id: {request.id[:80]!r}")
        wanted = Wanted(
            request.id,
            absolute_name(request.reference),
            request.artifact.encode(),
            None if request.target is None else Path(request.target),
            request.backend,
            request.writable,
            None if request.upper is None else Path(request.upper),
            request.passing,
        )
        record, _ = self._described(self._mounts.mount(wanted))
        return {} if record is None else {"record": msgspec.to_builtins(record)}

    def _described(self, entry: MountEntry) -> tuple[MountRecord | None, Mapping[str, Any]]:
        device = self._attachments.current(entry.image)
        if device is None:
            return None, {}
        record = MountRecord(
            id=entry.id,
            reference=entry.reference,
            target=entry.target,
            artifact=str(device.artifact),
            index=str(device.index),
            backend=device.entry.backend,
            writable=entry.upper is not None,
            pid=self._pid,
            size=device.size,
            started=entry.started,
        )
        return record, device.stats.snapshot()
