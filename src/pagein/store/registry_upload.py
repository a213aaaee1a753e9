"""Pushes one blob: a single PUT while small, a PATCH that can be taken up again when big.

Rule 1. Where a connection broke, the registry says how much it has (GET on the upload); what it
has is not sent again. A registry that forgot the upload gets a new one.
Rule 2. The digest in the closing PUT decides; no offset is trusted beyond it.
Source: OCI distribution-spec 1.1, "Pushing blobs".
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from pagein.errors import (
    FormatError,
    NotFoundError,
    PageinError,
    RemoteDeniedError,
    RemoteError,
    RemoteUnavailableError,
)
from pagein.store.registry_session import RegistrySession
from pagein.store.repository import Progress
from pagein.transport import Request
from pagein.types import Digest
from pagein.wire.registry import resolve_location, uploaded_bytes, with_digest

MONOLITHIC: Final = 16 << 20
"""Blobs of at most this many bytes go in one PUT: a request less, and cheap to send again."""

_RESUMES: Final = 5
OCTETS: Final = "application/octet-stream"


class _Slice(io.RawIOBase):
    """``length`` bytes of a file from ``offset``, told to ``progress`` as they are read.

    Bytes read a second time are told once: ``progress`` never runs past the blob's size.
    """

    def __init__(self, file: BinaryIO, offset: int, length: int, told: _Told) -> None:
        super().__init__()
        self._file = file
        self._offset = offset
        self._length = length
        self._position = 0
        self._told = told

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = max(0, base + position)
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._length - self._position)
        count = left if size < 0 else min(size, left)
        self._file.seek(self._offset + self._position)
        data = self._file.read(count)
        if len(data) < count:
            raise FormatError("the file being pushed became shorter")
        self._position += count
        self._told.reach(self._offset + self._position)
        return data


@dataclass(slots=True)
class _Told:
    progress: Progress
    high: int = 0

    def reach(self, position: int) -> None:
        if position > self.high:
            self.progress(position - self.high)
            self.high = position


@contextmanager
def _opened(source: bytes | Path) -> Iterator[tuple[BinaryIO, int]]:
    if isinstance(source, bytes):
        yield io.BytesIO(source), len(source)
        return
    with source.open("rb") as file:
        yield file, file.seek(0, io.SEEK_END)


class BlobUpload:
    """Pushes one blob through a session. Used by one thread."""

    def __init__(self, session: RegistrySession, digest: Digest, *, chunk_size: int) -> None:
        self._session = session
        self._digest = digest
        self._chunk_size = chunk_size
        self._scopes = session.scopes("pull", "push")
        self._what = f"pushing blob {digest} to {session.host}/{session.endpoint.repository}"

    def push(self, source: bytes | Path, progress: Progress) -> None:
        """Send the blob; returns once the registry has accepted its digest."""
        with _opened(source) as (file, size):
            told = _Told(progress)
            if size <= MONOLITHIC:
                self._session.repeating(lambda: self._put_whole(file, size, told))
            else:
                self._patch_and_put(file, size, told)

    def _begin(self) -> str:
        return begin_upload(self._session, self._what)

    def _put_whole(self, file: BinaryIO, size: int, told: _Told) -> None:
        self._close_upload(self._begin(), _Slice(file, 0, size, told), size)

    def _close_upload(self, location: str, body: _Slice | None, size: int) -> None:
        request = Request(
            "PUT",
            with_digest(location, self._digest),
            {"Content-Type": OCTETS},
            body=None if body is None else _as_file(body),
            length=size,
        )
        with self._session.send(request, self._scopes) as exchange:
            if exchange.response.status not in {201, 204}:
                raise self._session.failure(exchange.response, self._what)

    def _patch_and_put(self, file: BinaryIO, size: int, told: _Told) -> None:
        location, mended = self._patch_all(file, size, told)
        try:
            self.finish(location)
        except (NotFoundError, RemoteError) as error:
            if not mended or _is_final(error):
                raise
            # What was taken up did not fit together: once more, from the beginning.
            location, _ = self._patch_all(file, size, told)
            self.finish(location)

    def _patch_all(self, file: BinaryIO, size: int, told: _Told) -> tuple[str, bool]:
        """Send the blob; return where to close the upload, and whether it had to be mended."""
        location, offset = self._session.repeating(self._begin), 0
        failures = 0
        while offset < size:
            try:
                location, offset = self._patch(location, file, offset, size, told)
            except (NotFoundError, RemoteError, FormatError) as error:
                # A refusal (4xx) of a first attempt is an answer. After a break it may mean that
                # the registry noticed the break only after it told us its state.
                if _is_final(error) or not (failures or error.transient):
                    raise
                failures += 1
                if failures > _RESUMES:
                    raise
                retry_after = getattr(error, "retry_after", None) or 0.0
                self._session.pause(max(retry_after, 0.2 * 2**failures))
                location, offset = self._taken_up(location)
        return location, failures > 0

    def finish(self, location: str) -> None:
        """Close the upload. Where the answer was lost, a blob that is there is the answer."""
        try:
            self._close_upload(location, None, 0)
        except RemoteUnavailableError:
            self._session.repeating(lambda: self._close_or_find(location))

    def _close_or_find(self, location: str) -> None:
        if not blob_exists(self._session, self._digest):
            self._close_upload(location, None, 0)

    def _patch(
        self, location: str, file: BinaryIO, offset: int, size: int, told: _Told
    ) -> tuple[str, int]:
        length = min(self._chunk_size, size - offset)
        headers = {"Content-Type": OCTETS}
        if length != size:  # one PATCH for all is docker's own way, which names no range
            headers["Content-Range"] = f"{offset}-{offset + length - 1}"
        body = _Slice(file, offset, length, told)
        request = Request("PATCH", location, headers, body=_as_file(body), length=length)
        with self._session.send(request, self._scopes) as exchange:
            response = exchange.response
            if response.status not in {201, 202, 204}:
                raise self._session.failure(response, self._what)
            location = resolve_location(exchange.url, response.headers.get("location"))
            held = uploaded_bytes(response.headers)
        reached = offset + length
        return location, held if held is not None and offset < held < reached else reached

    def _taken_up(self, location: str) -> tuple[str, int]:
        """Ask how much the registry has; begin anew where it does not know the upload."""
        return self._session.repeating(lambda: self._status(location))

    def _status(self, location: str) -> tuple[str, int]:
        try:
            with self._session.send(Request("GET", location), self._scopes) as exchange:
                response = exchange.response
                if response.status not in {200, 202, 204}:
                    raise self._session.failure(response, self._what)
                held = uploaded_bytes(response.headers)
                if held is not None:
                    where = response.headers.get("location")
                    return resolve_location(exchange.url, where) if where else location, held
        except (RemoteUnavailableError, RemoteDeniedError):
            raise
        except (NotFoundError, RemoteError):
            pass  # it forgot the upload, or cannot tell: distribution 2.8 after a broken PATCH
        cancel_upload(self._session, location)
        return self._begin(), 0


def _is_final(error: PageinError) -> bool:
    return isinstance(error, RemoteDeniedError)


def _as_file(body: _Slice) -> BinaryIO:
    return body  # type: ignore[return-value]  # a reader, not a writer: all that Request needs


def begin_upload(session: RegistrySession, what: str) -> str:
    """Open an upload; return its address. ``what`` is for messages."""
    url = session.endpoint.uploads()
    with session.send(Request("POST", url, length=0), session.scopes("pull", "push")) as exchange:
        if exchange.response.status != 202:
            raise session.failure(exchange.response, what)
        return resolve_location(exchange.url, exchange.response.headers.get("location"))


def cancel_upload(session: RegistrySession, location: str) -> None:
    """Tell the registry to forget an upload; it forgets by itself later if it does not."""
    scopes = session.scopes("pull", "push")
    with suppress(PageinError), session.send(Request("DELETE", location), scopes):
        pass


def blob_exists(session: RegistrySession, digest: Digest) -> bool:
    """Ask whether the repository has a blob (HEAD)."""
    request = Request("HEAD", session.endpoint.blob(digest))
    with session.send(request, session.scopes("pull")) as exchange:
        if exchange.response.status == 200:
            return True
        if exchange.response.status == 404:
            return False
        raise session.failure(exchange.response, f"looking for blob {digest}")


def mount_blob(session: RegistrySession, digest: Digest, from_repository: str) -> bool:
    """Ask the registry to take a blob from another repository; False if it does not."""
    scopes = session.scopes("pull", "push", also=from_repository)
    url = session.endpoint.mount(digest, from_repository)
    with session.send(Request("POST", url, length=0), scopes) as exchange:
        response = exchange.response
        if response.status == 201:
            return True
        if response.status != 202:
            raise session.failure(response, f"mounting blob {digest} from {from_repository}")
        location = resolve_location(exchange.url, response.headers.get("location"))
    cancel_upload(session, location)
    return False
