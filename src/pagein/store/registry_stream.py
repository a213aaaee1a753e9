"""A blob as a stream that survives broken connections and checks itself at its end."""

from __future__ import annotations

import hashlib
import io
from contextlib import ExitStack
from typing import Any, Final

from pagein.errors import FormatError, RemoteProtocolError, RemoteUnavailableError
from pagein.store.registry_session import RegistrySession
from pagein.transport import Request, Response
from pagein.types import Digest
from pagein.wire.registry import content_length

_RESUMES: Final = 5
"""Broken connections mended in a row, without a byte in between, before the error is handed up."""


class BlobStream(io.RawIOBase):
    """Reads a blob from its registry. Used by one thread.

    At the end of the blob, and nowhere before, its digest and size have been checked.
    """

    def __init__(
        self, session: RegistrySession, digest: Digest, size: int | None, what: str
    ) -> None:
        super().__init__()
        self._session = session
        self._digest = digest
        self._size = size
        self._what = what
        self._hash = hashlib.sha256()
        self._position = 0
        self._failures = 0
        self._stack = ExitStack()
        self._response: Response | None = None
        self._checked = False

    def open(self) -> None:
        """Send the first request, so that an absent blob is known at once."""
        self._session.repeating(self._connect)

    def readable(self) -> bool:
        """Say yes."""
        return True

    def close(self) -> None:
        """Give the connection back."""
        self._stack.close()
        super().close()

    def readinto(self, buffer: Any, /) -> int:
        """Fill the front of ``buffer``; FormatError at the end if the blob is not itself."""
        view = memoryview(buffer).cast("B")
        if not view or self._checked:
            return 0
        count = self._read_some(view)
        if count == 0:
            self._check()
            return 0
        self._position += count
        if self._size is not None and self._position > self._size:
            raise FormatError(f"{self._what} is over {self._size} bytes", field="size")
        self._hash.update(view[:count])
        return count

    def _read_some(self, view: memoryview) -> int:
        while True:
            try:
                if self._response is None:
                    self._connect()
                if self._response is not None:
                    count = self._response.readinto(view)
                    self._failures = 0 if count else self._failures
                    return count
            except RemoteUnavailableError as error:
                self._failures += 1
                self._stack.close()
                self._response = None
                if self._failures > _RESUMES:
                    raise
                self._session.pause(max(error.retry_after or 0.0, 0.1 * 2**self._failures))

    def _connect(self) -> None:
        headers = {"Range": f"bytes={self._position}-"} if self._position else {}
        request = Request("GET", self._session.endpoint.blob(self._digest), headers)
        exchange = self._stack.enter_context(
            self._session.send(request, self._session.scopes("pull"))
        )
        response = exchange.response
        if response.status not in {200, 206} or (response.status == 206 and not self._position):
            error = self._session.failure(response, f"reading {self._what}")
            self._stack.close()
            raise error
        if response.status == 206:
            first = response.headers.get("content-range", "").partition("-")[0]
            if first != f"bytes {self._position}":
                raise RemoteProtocolError(f"{self._what} went on at another byte than asked for")
        elif self._position:
            self._skip_to_position(response)
        else:
            self._check_length(response)
        self._response = response

    def _check_length(self, response: Response) -> None:
        length = content_length(response.headers)
        if self._size is not None and length is not None and length != self._size:
            raise FormatError(
                f"{self._what} has {length} bytes instead of {self._size}", field="size"
            )

    def _skip_to_position(self, response: Response) -> None:
        """Read again what we had, where the registry ignores ranges; the hash covers the rest."""
        left = self._position
        scratch = memoryview(bytearray(min(left, 1 << 20)))
        while left:
            count = response.readinto(scratch[: min(left, len(scratch))])
            if count == 0:
                raise FormatError(f"{self._what} became shorter", field="size")
            left -= count

    def _check(self) -> None:
        if self._size is not None and self._position != self._size:
            raise FormatError(
                f"{self._what} has {self._position} bytes instead of {self._size}", field="size"
            )
        if self._hash.hexdigest() != self._digest.hex:
            raise FormatError(
                f"{self._what} has digest sha256:{self._hash.hexdigest()}", field="digest"
            )
        self._checked = True
