"""Pushes a blob while it is being made: its digest is told when the upload is closed.

One PATCH of unknown length, as docker pushes layers that it compresses on the way. Whatever goes
wrong ends it: the blob is a file by then, and `BlobUpload` can push it again from any byte.
"""

from __future__ import annotations

import io
from typing import BinaryIO, cast

from pagein.errors import PageinError
from pagein.store.registry_session import RegistrySession
from pagein.store.registry_upload import OCTETS, BlobUpload, begin_upload, cancel_upload
from pagein.store.repository import GrowingBlob
from pagein.transport import Request
from pagein.wire.registry import resolve_location


class _Following(io.RawIOBase):
    """The blob's bytes from the start, as they come to be there."""

    def __init__(self, blob: GrowingBlob) -> None:
        super().__init__()
        self._blob = blob
        self._position = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("a blob that grows has no end to seek from")
        self._position = position
        return position

    def read(self, size: int = -1, /) -> bytes:
        data = self._blob.read(self._position, size if size > 0 else 1 << 20)
        self._position += len(data)
        return data


def push_growing(session: RegistrySession, blob: GrowingBlob) -> None:
    """Send the blob; returns once the registry has accepted its digest. One attempt."""
    what = f"pushing a blob to {session.host}/{session.endpoint.repository}"
    scopes = session.scopes("pull", "push")
    location = session.repeating(lambda: begin_upload(session, what))
    try:
        body = cast(BinaryIO, _Following(blob))
        request = Request("PATCH", location, {"Content-Type": OCTETS}, body=body)
        with session.send(request, scopes) as exchange:
            if exchange.response.status not in {201, 202, 204}:
                raise session.failure(exchange.response, what)
            where = exchange.response.headers.get("location")
            location = resolve_location(exchange.url, where)
        BlobUpload(session, blob.digest(), chunk_size=1).finish(location)
    except PageinError:
        cancel_upload(session, location)
        raise
