"""The fake registry's side of the OCI distribution protocol."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any, Final, cast
from urllib.parse import parse_qs, urlsplit

from pagein.errors import FormatError, NotFoundError, PageinError
from pagein.format.media import ARTIFACT_TYPE
from pagein.store.repository import ManifestBlob, Repository
from pagein.testing.faults import Fault
from pagein.testing.link import PIECE
from pagein.testing.memory_repository import MemoryContent, descriptor_of
from pagein.testing.registry import BasicLogin, BearerLogin, FakeRegistry, Recorded, Upload
from pagein.types import ByteRange, Digest
from pagein.wire.registry import OCI_INDEX

_ROUTE: Final = re.compile(
    r"/v2/(?P<name>.+?)/(?P<kind>manifests|blobs/uploads|blobs|referrers|tags)/(?P<rest>.*)"
)
_RANGE: Final = re.compile(r"bytes=(\d+)-(\d*)")
Query = dict[str, list[str]]


class RegistryHandler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = 64 << 10
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the base class's name
        """Print nothing."""

    def finish(self) -> None:
        """Close both directions, also where the client hung up on unsent bytes."""
        with suppress(OSError):
            self.wfile.close()
        self.rfile.close()

    def _handle(self) -> None:
        registry = cast(FakeRegistry, self.server.registry)  # type: ignore[attr-defined]
        parts = urlsplit(self.path)
        registry.record(
            Recorded(
                self.command,
                parts.path,
                parts.query,
                self.headers.get("Range"),
                self.headers.get("Authorization"),
            )
        )
        self._registry = registry
        self._fault = registry.faults.take(self.command, parts.path)
        try:
            self._answer_or_fail(parts.path, parse_qs(parts.query, keep_blank_values=True))
        except OSError:
            self.close_connection = True

    do_GET = _handle  # noqa: N815 the names that http.server looks for
    do_HEAD = _handle  # noqa: N815
    do_POST = _handle  # noqa: N815
    do_PUT = _handle  # noqa: N815
    do_PATCH = _handle  # noqa: N815
    do_DELETE = _handle  # noqa: N815

    def _answer_or_fail(self, path: str, query: Query) -> None:
        fault = self._fault
        if fault.delay_s:
            time.sleep(fault.delay_s)
        if fault.drop:
            self.close_connection = True
            return
        with self._registry.link.answering():
            if fault.status is not None:
                self._read_body()
                self._fault = Fault(truncate_to=fault.truncate_to, chunked=fault.chunked)
                self._reply(fault.status, fault.body, dict(fault.headers))
                return
            try:
                self._route(path, query)
            except NotFoundError as error:
                self._error(404, "NOT_FOUND", str(error))
            except PageinError as error:
                self._error(400, "INVALID", str(error))

    def _route(self, path: str, query: Query) -> None:
        if path == "/token":
            self._token(query)
            return
        if path.startswith("/storage/"):
            self._storage(path, query)
            return
        if not self._allowed(path):
            return
        match = _ROUTE.fullmatch(path)
        if match is None:
            self._reply(200 if path == "/v2/" else 404, b"{}")
            return
        name, kind, rest = match["name"], match["kind"], match["rest"]
        match kind:
            case "manifests":
                self._manifest(name, rest)
            case "blobs/uploads":
                self._upload(name, rest, query)
            case "blobs":
                self._blob(name, Digest.parse(rest))
            case "referrers":
                self._referrers(name, Digest.parse(rest), query)
            case _:
                self._tags(name, query)

    # -- logging in

    def _allowed(self, path: str) -> bool:
        login, given = self._registry.login, self.headers.get("Authorization", "")
        match login:
            case None:
                return True
            case BasicLogin():
                challenge, allowed = 'Basic realm="fake"', given == login.header
            case BearerLogin():
                allowed = given.partition(" ")[2] in login.valid
                name = path.removeprefix("/v2/").partition("/manifests/")[0].partition("/blobs/")[0]
                challenge = (
                    f'Bearer realm="{self._registry.url}/token",service="fake",'
                    f'scope="repository:{name}:pull"'
                )
        if not allowed:
            self._read_body()
            self._error(401, "UNAUTHORIZED", "authentication required", challenge)
        return allowed

    def _token(self, query: Query) -> None:
        login = self._registry.login
        if not isinstance(login, BearerLogin):
            raise NotFoundError("no tokens here")
        body = self._read_body()
        if self.command == "POST":
            query = parse_qs(body.decode())
            allowed = query.get("refresh_token") == [login.refresh_token]
        else:
            wanted = BasicLogin(login.username, login.password).header
            allowed = not login.username or self.headers.get("Authorization") == wanted
        login.scopes += query.get("scope", [])
        if not allowed:
            self._error(401, "UNAUTHORIZED", "incorrect username or password")
            return
        answer = {"token": login.issue(), "expires_in": login.lifetime_s}
        self._reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    # -- content

    def _manifest(self, name: str, reference: str) -> None:
        wanted = Digest.parse(reference) if ":" in reference else reference
        if self.command == "PUT":
            self._put_manifest(name, wanted)
            return
        serving = self._registry.serving.get(name)
        found = (serving or self._registry.content(name)).manifest(wanted)
        headers = {"Content-Type": found.media_type, "Docker-Content-Digest": str(found.digest)}
        self._reply(200, found.data, headers)

    def _put_manifest(self, name: str, reference: str | Digest) -> None:
        data = self._read_body()
        manifest = ManifestBlob(self.headers.get("Content-Type", ""), Digest.of(data), data)
        tag = None if isinstance(reference, Digest) else reference
        self._registry.content(name).put_manifest(manifest, tag)
        headers = {"Docker-Content-Digest": str(manifest.digest), "Location": self.path}
        subject = json.loads(data).get("subject")
        if subject and self._registry.referrers_api:
            headers["OCI-Subject"] = subject["digest"]
        self._reply(201, b"", headers)

    def _blob(self, name: str, digest: Digest) -> None:
        registry = self._registry
        if registry.blob_storage is not None and self.command == "GET":
            target = f"{registry.blob_storage.url}/storage/{name}/{digest}?sig={registry.signature}"
            self._reply(307, b"", {"Location": target})
            return
        if name in registry.serving:
            self._served_blob(registry.serving[name], digest)
            return
        self._memory_blob(registry.content(name), digest)

    def _storage(self, path: str, query: Query) -> None:
        owner = self._registry.storage_owner
        name, _, digest = path.removeprefix("/storage/").rpartition("/")
        if owner is None or query.get("sig") != [owner.signature]:
            self._reply(403, b"<Error>the signature ran out</Error>")
            return
        self._memory_blob(owner.content(name), Digest.parse(digest))

    def _memory_blob(self, content: MemoryContent, digest: Digest) -> None:
        data = content.blobs.get(digest)
        if data is None:
            raise NotFoundError(f"blob unknown: {digest}")
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted is None or self._fault.ignore_range:
            self._reply(200, data, {"Content-Type": "application/octet-stream"})
            return
        start = int(wanted[1])
        stop = min(int(wanted[2] or len(data)) + 1, len(data))
        if start >= stop:
            self._error(416, "RANGE", "range not satisfiable")
            return
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        self._reply(206, memoryview(data)[start:stop], headers)

    def _served_blob(self, source: Repository, digest: Digest) -> None:
        """Serve a blob whose size nobody told: whole ones are chunked, HEAD finds it absent or
        there."""
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted is not None and wanted[2]:
            span = ByteRange(int(wanted[1]), int(wanted[2]) + 1 - int(wanted[1]))
            try:
                data = source.read_range(digest, span)
            except FormatError:
                self._error(416, "RANGE", "range not satisfiable")
                return
            self._reply(206, data, {"Content-Range": f"bytes {span.start}-{span.stop - 1}/*"})
            return
        with source.open_blob(digest) as stream:
            if self.command == "HEAD":
                self._reply(200, b"")
                return
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while piece := stream.read(PIECE):
                self._registry.link.carry(len(piece))
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")

    def _referrers(self, name: str, subject: Digest, query: Query) -> None:
        if not self._registry.referrers_api:
            self._reply(404, b"404 page not found\n", {"Content-Type": "text/plain"})
            return
        serving = self._registry.serving.get(name)
        if serving is None:
            entries = self._registry.content(name).referrers_of(subject)
        else:
            kind = query.get("artifactType", [ARTIFACT_TYPE])[0]
            entries = [
                descriptor_of(serving.manifest(digest))
                for digest in serving.referrers(subject, artifact_type=kind)
            ]
        page, headers = self._page(entries, query)
        body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": page})
        self._reply(200, body.encode(), {"Content-Type": OCI_INDEX, **headers})

    def _tags(self, name: str, query: Query) -> None:
        serving = self._registry.serving.get(name)
        names = sorted(serving.tags() if serving else self._registry.content(name).tagged)
        if not names:
            raise NotFoundError(f"repository name not known to registry: {name}")
        page, headers = self._page(names, query)
        body = json.dumps({"name": name, "tags": page}).encode()
        self._reply(200, body, {"Content-Type": "application/json", **headers})

    def _page(self, entries: list[Any], query: Query) -> tuple[list[Any], dict[str, str]]:
        size = self._registry.page_size
        first = int(query.get("from", ["0"])[0])
        if not size or first + size >= len(entries):
            return entries[first:], {}
        path = urlsplit(self.path).path
        link = f'<{path}?from={first + size}>; rel="next"'
        return entries[first : first + size], {"Link": link}

    # -- uploads

    def _upload(self, name: str, identity: str, query: Query) -> None:
        uploads = self._registry.uploads
        if self.command == "POST":
            self._begin(name, query)
            return
        upload = uploads.get(identity)
        if upload is None:
            self._read_body()
            raise NotFoundError("blob upload unknown to registry")
        if self.command == "DELETE":
            del uploads[identity]
            self._reply(204, b"")
            return
        if self.command == "GET":
            self._upload_status(204, name, identity, upload)
            return
        given = self.headers.get("Content-Range", "")
        if given and int(given.partition("-")[0]) != len(upload.data):
            self._read_body()
            self._error(416, "RANGE", "out of order")
            return
        self._read_body(into=upload.data)
        if self.close_connection:
            return
        if self.command == "PATCH":
            self._upload_status(202, name, identity, upload)
            return
        digest = Digest.parse(query["digest"][0])
        del uploads[identity]
        if Digest.of(upload.data) != digest:
            self._error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
            return
        self._registry.content(name).blobs[digest] = bytes(upload.data)
        self._reply(201, b"", {"Location": f"/v2/{name}/blobs/{digest}"})

    def _begin(self, name: str, query: Query) -> None:
        if "mount" in query and self._registry.mounts:
            digest = Digest.parse(query["mount"][0])
            found = self._registry.content(query["from"][0]).blobs.get(digest)
            if found is not None:
                self._registry.content(name).blobs[digest] = found
                self._reply(201, b"", {"Location": f"/v2/{name}/blobs/{digest}"})
                return
        identity = secrets.token_hex(8)
        upload = self._registry.uploads[identity] = Upload(name)
        self._upload_status(202, name, identity, upload)

    def _upload_status(self, status: int, name: str, identity: str, upload: Upload) -> None:
        headers = {"Location": f"/v2/{name}/blobs/uploads/{identity}?_state=abc"}
        headers["Range"] = f"0-{max(0, len(upload.data) - 1)}"
        self._reply(status, b"", headers)

    # -- bytes

    def _read_body(self, into: bytearray | None = None) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            return self._read_chunks(bytearray() if into is None else into)
        left = int(self.headers.get("Content-Length", "0"))
        allowed = left if self._fault.read_at_most is None else self._fault.read_at_most
        data = bytearray() if into is None else into
        while left and allowed:
            piece = self.rfile.read(min(left, allowed, PIECE))
            if not piece:
                break
            self._registry.link.carry(len(piece))
            data += piece
            left -= len(piece)
            allowed -= len(piece)
        if left:
            self.close_connection = True
        return bytes(data) if into is None else b""

    def _read_chunks(self, data: bytearray) -> bytes:
        """Read a body of unknown length (RFC 9112 section 7.1), as far as the fault lets us."""
        allowed = self._fault.read_at_most
        while size := int(self.rfile.readline() or b"0", 16):
            if allowed is not None and len(data) + size > allowed:
                self.close_connection = True
                return bytes(data)
            self._registry.link.carry(size)
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(data)

    def _error(self, status: int, code: str, message: str, challenge: str = "") -> None:
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        headers = {"Content-Type": "application/json"}
        if challenge:
            headers["WWW-Authenticate"] = challenge
        self._reply(status, body, headers)

    def _reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        fault, length = self._fault, len(body)
        sent = {"Content-Length": str(length), **(headers or {}), **fault.headers}
        if fault.chunked:
            del sent["Content-Length"]
            sent["Transfer-Encoding"] = "chunked"
        self.send_response(status)
        for name, value in sent.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD" or status in {204, 304}:
            self.wfile.flush()
            return
        if fault.corrupt and length:
            body = bytes([body[0] ^ 0xFF]) + bytes(body[1:])
        with suppress(BrokenPipeError, ConnectionResetError):
            self._send_body(memoryview(body), fault)

    def _send_body(self, body: memoryview, fault: Fault) -> None:
        stop = len(body) if fault.truncate_to is None else min(fault.truncate_to, len(body))
        if fault.trickle_s:
            self._trickle(body[:stop], fault.trickle_s)
            return
        for piece in _pieces(body[:stop]):
            self._registry.link.carry(len(piece))
            if fault.chunked:
                self.wfile.write(f"{len(piece):x}\r\n".encode())
            self.wfile.write(piece)
            if fault.chunked:
                self.wfile.write(b"\r\n")
        if fault.truncate_to is not None:
            self.close_connection = True
        elif fault.chunked:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _trickle(self, body: memoryview, pause_s: float) -> None:
        for place in range(len(body)):
            time.sleep(pause_s)
            self.wfile.write(body[place : place + 1])
            self.wfile.flush()


def _pieces(body: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]
