"""A small Bearer token server whose tokens Debian's ``docker-registry`` accepts.

Sources: distribution/docs: spec/auth/token.md (the flow), spec/auth/jwt.md (claims; the ``x5c``
header, whose chain must end in the registry's ``rootcertbundle``).
"""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from pagein.testing.certificates import KeyPair
from pagein.testing.docker_registry import TokenAuth


@dataclass(frozen=True, slots=True)
class TokenAsked:
    """One token request. ``granted`` is false where the login was wrong."""

    method: str
    scopes: tuple[str, ...]
    granted: bool


class TokenServer:
    """``with TokenServer(authority, users={"user": "password"}) as server: server.auth``.

    Without a login only ``pull`` is granted, and only in repositories named ``public/...``.
    ``refresh_tokens`` maps identity tokens to users.
    """

    def __init__(
        self,
        signer: KeyPair,
        *,
        users: dict[str, str],
        refresh_tokens: dict[str, str] | None = None,
        lifetime_s: int = 60,
        service: str = "test-registry",
    ) -> None:
        self.users = users
        self.refresh_tokens = dict(refresh_tokens or {})
        self.lifetime_s = lifetime_s
        self.service = service
        self.issuer = "pagein test"
        self.asked: list[TokenAsked] = []
        self._signer = signer
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def auth(self) -> TokenAuth:
        """The configuration of a registry that trusts this server."""
        assert self._server is not None
        realm = f"http://127.0.0.1:{self._server.server_address[1]}/token"
        return TokenAuth(realm, self.service, self.issuer, self._signer.certificate)

    def __enter__(self) -> TokenServer:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _TokenHandler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._server.tokens = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def sign(self, user: str, scopes: list[str]) -> str:
        """Return a signed token with what ``user`` may do of ``scopes``."""
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "sub": user,
            "aud": self.service,
            "iat": now,
            "nbf": now - 5,
            "exp": now + self.lifetime_s,
            "jti": str(time.monotonic_ns()),
            "access": [access for scope in scopes if (access := self._access(user, scope))],
        }
        chain = self._signer.certificate.read_text()
        body = chain.partition("-----BEGIN CERTIFICATE-----")[2].partition("-----END")[0]
        header = {"typ": "JWT", "alg": "RS256", "x5c": ["".join(body.split())]}
        text = f"{_segment(json.dumps(header))}.{_segment(json.dumps(claims))}"
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self._signer.key)],
            input=text.encode(),
            capture_output=True,
            check=True,
        ).stdout
        return f"{text}.{_segment(signature)}"

    def _access(self, user: str, scope: str) -> dict[str, Any] | None:
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        allowed = actions.split(",") if user else ["pull"] if name.startswith("public/") else []
        wanted = [action for action in actions.split(",") if action in allowed]
        return {"type": kind, "name": name, "actions": wanted} if wanted else None


def _segment(data: str | bytes) -> str:
    raw = data.encode() if isinstance(data, str) else data
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class _TokenHandler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the base class's name
        """Print nothing."""

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        given = self.headers.get("Authorization", "").removeprefix("Basic ")
        user, _, password = base64.b64decode(given).decode().partition(":")
        allowed = not given or self._tokens.users.get(user) == password
        self._answer(user, query.get("scope", []), allowed=allowed)

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        user = self._tokens.refresh_tokens.get(form.get("refresh_token", [""])[0])
        scopes = form.get("scope", [""])[0].split()
        self._answer(user or "", scopes, allowed=user is not None)

    @property
    def _tokens(self) -> TokenServer:
        return cast(TokenServer, self.server.tokens)  # type: ignore[attr-defined]

    def _answer(self, user: str, scopes: list[str], *, allowed: bool) -> None:
        self._tokens.asked.append(TokenAsked(self.command, tuple(scopes), allowed))
        if allowed:
            token = self._tokens.sign(user, scopes)
            body = {"access_token": token, "expires_in": self._tokens.lifetime_s}
        else:
            body = {"errors": [{"code": "UNAUTHORIZED", "message": "wrong user or password"}]}
        data = json.dumps(body).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
