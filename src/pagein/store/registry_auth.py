"""Keeps the authorization for one registry: asks token servers, shares what it got.

Rule 1. Many threads refused at once make one token request; the others wait for it.
Rule 2. A token is dropped only by the request that it failed, and only if it is still the one.
Rule 3. A credential that is refused makes room for the next one; after the last comes the first
again, with the next request: it may have been renewed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Final

from pagein.errors import PageinError, RemoteDeniedError, RemoteError, RemoteUnavailableError
from pagein.store.credentials import Credentials, offers
from pagein.transport import Request, Response, Transport
from pagein.wire.auth import (
    MAX_TOKEN_ANSWER,
    Challenge,
    Credential,
    Scope,
    TokenRequest,
    choose_challenge,
    parse_challenges,
    parse_token,
    token_request,
)
from pagein.wire.registry import MAX_ERROR_BODY, error_of

_SAFETY: Final = 0.9
"""A token is renewed after this part of its lifetime: the clock starts before we have it."""

_WAIT_S: Final = 60.0
_MAX_MADE: Final = 64

Scopes = frozenset[Scope]


@dataclass(frozen=True, slots=True, repr=False)
class _Held:
    header: str
    expires: float


def read_limited(response: Response, limit: int) -> bytes:
    """Return the body, cut after ``limit`` bytes."""
    parts: list[bytes] = []
    total = 0
    for piece in response.chunks(64 << 10):
        parts.append(piece)
        total += len(piece)
        if total >= limit:
            break
    return b"".join(parts)[:limit]


def error_body(response: Response) -> bytes:
    """Return what a peer said about a refusal; nothing if that breaks off.

    distribution 2.8 announces more bytes for a 416 than it sends.
    """
    try:
        return read_limited(response, MAX_ERROR_BODY)
    except RemoteError:
        return b""


class Authenticator:
    """Authorization headers for one repository's requests. Safe to call from any thread."""

    def __init__(
        self,
        host: str,
        repository: str,
        transport: Transport,
        credentials: Credentials,
        *,
        plain_http: bool,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._host = host
        self._repository = repository
        self._transport = transport
        self._credentials = credentials
        self._plain_http = plain_http
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._held: dict[Scopes, _Held] = {}
        self._basic: str | None = None
        self._flights: dict[Scopes, Future[str]] = {}
        self._made: dict[str, Credential | None] = {}
        self._refused: list[Credential] = []
        self._challenge = ""

    def header(self, scopes: Scopes) -> str | None:
        """Return what is known to serve these scopes, or None: ask without, and be challenged."""
        with self._lock:
            return self._known(scopes)

    def _known(self, scopes: Scopes) -> str | None:
        if self._basic is not None:
            return self._basic
        now = self._clock()
        for held_scopes, held in self._held.items():
            covered = all(any(have.covers(want) for have in held_scopes) for want in scopes)
            if covered and held.expires > now:
                return held.header
        return None

    def renew(self, challenge_header: str, scopes: Scopes, refused: str | None) -> str:
        """Return an authorization other than ``refused``, as the registry's 401 asks for.

        Raises RemoteDeniedError where there is nothing (else) to offer.
        """
        with self._lock:
            self._drop(refused)
            if known := self._known(scopes):
                return known
        return self._once(scopes, lambda: self._obtain(challenge_header, scopes, refused))

    def another(self, challenge_header: str, scopes: Scopes, refused: str) -> str | None:
        """Return an authorization from another credential than gave ``refused``; None: no more.

        Without a challenge, which a 403 need not have, the last one holds.
        """
        with self._lock:
            credential = self._made.get(refused)
            if credential is None:
                return None
            self._refused.append(credential)
            challenge_header = challenge_header or self._challenge
        if next(self._candidates(), None) is None:
            with self._lock:
                self._refused.clear()
            return None
        with self._lock:
            self._drop(refused)
            if known := self._known(scopes):
                return known
        return self._once(scopes, lambda: self._obtain(challenge_header, scopes, refused))

    def _once(self, scopes: Scopes, obtain: Callable[[], str]) -> str:
        """Let the first of several threads that want the same do it, and the others wait."""
        with self._lock:
            flight = self._flights.get(scopes)
            if flight is None:
                mine: Future[str] = Future()
                self._flights[scopes] = mine
        if flight is not None:
            return self._wait(flight)
        try:
            header = obtain()
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(header)
            return header
        finally:
            with self._lock:
                del self._flights[scopes]

    def _drop(self, refused: str | None) -> None:
        if refused is None:
            return
        if self._basic == refused:
            self._basic = None
        for scopes in [s for s, held in self._held.items() if held.header == refused]:
            del self._held[scopes]

    def _wait(self, flight: Future[str]) -> str:
        try:
            return flight.result(_WAIT_S)
        except FutureTimeout:
            raise RemoteUnavailableError(
                f"no token for {self._host}/{self._repository} in {_WAIT_S:.0f} s"
            ) from None

    def _obtain(self, challenge_header: str, scopes: Scopes, refused: str | None) -> str:
        challenge = choose_challenge(parse_challenges(challenge_header))
        if challenge is None:
            raise RemoteDeniedError(
                f"{self._host} wants a login that is neither Basic nor Bearer",
                hint="see what the registry's documentation says about docker login",
            )
        failure: PageinError | None = None
        for credential in self._candidates():
            try:
                header = self._header(challenge, scopes, credential, refused)
            except RemoteDeniedError as error:
                failure = failure or error
                if credential is not None:
                    with self._lock:
                        self._refused.append(credential)
                continue
            with self._lock:
                self._challenge = challenge_header
                while len(self._made) >= _MAX_MADE:
                    del self._made[next(iter(self._made))]
                self._made[header] = credential
            return header
        with self._lock:
            self._refused.clear()
        raise failure or RemoteDeniedError(
            f"{self._host} refused all credentials for {self._repository}",
            hint=f"log in again with 'docker login {self._host}'",
        )

    def _candidates(self) -> Iterator[Credential | None]:
        """Yield the credentials that were not refused; None, once, where there are none at all."""
        with self._lock:
            refused = list(self._refused)
        there = False
        for credential in offers(self._credentials, self._host, self._repository):
            there = True
            if credential not in refused:
                yield credential
        if not there:
            yield None

    def _header(
        self,
        challenge: Challenge,
        scopes: Scopes,
        credential: Credential | None,
        refused: str | None,
    ) -> str:
        if challenge.scheme == "basic":
            header = self._basic_header(credential, refused)
            with self._lock:
                self._basic = header
            return header
        asked = self._clock()
        token = parse_token(self._fetch(self._token_request(challenge, scopes, credential)))
        header = f"Bearer {token.value}"
        with self._lock:
            self._held[scopes] = _Held(header, asked + token.lifetime_s * _SAFETY)
        return header

    def _basic_header(self, credential: Credential | None, refused: str | None) -> str:
        if credential is None or not credential.username:
            raise RemoteDeniedError(
                f"{self._host} wants a login, and there are no credentials for it",
                hint=f"log in with 'docker login {self._host}'",
            )
        if credential.basic == refused:
            raise RemoteDeniedError(
                f"{self._host} refused user {credential.username!r}",
                hint=f"log in again with 'docker login {self._host}'",
            )
        return credential.basic

    def _token_request(
        self, challenge: Challenge, scopes: Scopes, credential: Credential | None
    ) -> TokenRequest:
        return token_request(challenge, scopes, credential, plain_http=self._plain_http)

    def _fetch(self, wanted: TokenRequest) -> bytes:
        what = f"asking for a token for {self._repository}"
        request = Request(
            wanted.method,
            wanted.url,
            wanted.headers,
            body=wanted.body,
            length=None if wanted.body is None else len(wanted.body),
        )
        with self._transport.send(request) as response:
            if response.status == 200:
                return read_limited(response, MAX_TOKEN_ANSWER)
            body = error_body(response)
            error: PageinError = error_of(
                response.status,
                response.headers,
                body,
                what=what,
                host=self._host,
                now_s=self._wall_clock(),
            )
        if response.status == 400:  # RFC 6749 section 5.2: a refused refresh token is a 400
            raise RemoteDeniedError(
                str(error), hint=f"log in again with 'docker login {self._host}'"
            )
        raise error
