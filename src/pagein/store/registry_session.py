"""One repository's requests: authorization, redirects, bounded repeats of what may be repeated.

Rule 1. A request is sent again after a 401 with a new authorization, and then once more for each
other credential that there is; never twice with the same one.
Rule 2. Authorization goes to the registry's own origin only, whatever a redirect says.
Rule 3. `repeating` is for small idempotent requests; ranges make one attempt (the sector stack
above repeats them).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from pagein.errors import PageinError, RemoteUnavailableError
from pagein.store.credentials import Credentials
from pagein.store.registry_auth import Authenticator, error_body
from pagein.transport import Request, Response, Transport
from pagein.wire.auth import Scope
from pagein.wire.registry import Endpoint, Redirects, error_of

T = TypeVar("T")

_ATTEMPTS: Final = 4
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
"""A registry that asks for a longer pause gets the error handed up instead."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Time as a value, so that tests need not wait. ``pause`` sleeps; ``wall`` is Unix time."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    pause: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class Exchange:
    """A response, the address that gave it, and whether that is outside the registry."""

    response: Response
    url: str
    elsewhere: bool


class RegistrySession:
    """Sends requests for one repository. Safe to call from any thread."""

    def __init__(
        self,
        host: str,
        endpoint: Endpoint,
        transport: Transport,
        credentials: Credentials,
        *,
        clock: Clock,
    ) -> None:
        self.host = host
        self.endpoint = endpoint
        self.transport = transport
        self._clock = clock
        self._auth = Authenticator(
            host,
            endpoint.scope_name,
            transport,
            credentials,
            plain_http=endpoint.plain_http,
            clock=clock.monotonic,
            wall_clock=clock.wall,
        )

    def scopes(self, *actions: str, also: str | None = None) -> frozenset[Scope]:
        """Return the scopes for ``actions`` here, and to pull from the repository ``also``."""
        own = Scope(self.endpoint.scope_name, actions)
        return frozenset({own} if also is None else {own, Scope(also)})

    @contextmanager
    def send(self, request: Request, scopes: frozenset[Scope]) -> Iterator[Exchange]:
        """Send, follow redirects, answer challenges; yield whatever answer that gives."""
        body = request.body
        start = None if body is None or isinstance(body, bytes) else body.tell()
        with ExitStack() as stack:
            authorization = self._auth.header(scopes)
            exchange = self._follow(stack, request, authorization, start)
            renewed = False
            while not exchange.elsewhere:
                another = self._another(exchange.response, scopes, authorization, renewed=renewed)
                if another is None:
                    break
                renewed, authorization = True, another
                stack.close()
                exchange = self._follow(stack, request, authorization, start)
            yield exchange

    def _another(
        self, response: Response, scopes: frozenset[Scope], sent: str | None, *, renewed: bool
    ) -> str | None:
        """Return what to try instead of ``sent``; None where the answer is to be taken.

        Logins that ran out are a 401, or with some registries a 403.
        """
        challenge = response.headers.get("www-authenticate", "")
        if response.status == 401 and challenge and not renewed:
            return self._auth.renew(challenge, scopes, sent)
        if response.status in {401, 403} and sent is not None:
            return self._auth.another(challenge, scopes, sent)
        return None

    def _follow(
        self, stack: ExitStack, request: Request, authorization: str | None, start: int | None
    ) -> Exchange:
        hops = Redirects(request.url)
        while True:
            headers = dict(request.headers)
            if authorization is not None and not hops.left_origin:
                headers["Authorization"] = authorization
            if start is not None and request.body and not isinstance(request.body, bytes):
                request.body.seek(start)
            response = stack.enter_context(
                self.transport.send(replace(request, url=hops.url, headers=headers))
            )
            if not hops.follow(request.method, response.status, response.headers):
                return Exchange(response, hops.url, hops.left_origin)
            stack.close()

    def failure(self, response: Response, what: str) -> PageinError:
        """Return the error that ``response`` stands for, with the registry's own words."""
        return error_of(
            response.status,
            response.headers,
            error_body(response),
            what=what,
            host=self.host,
            now_s=self._clock.wall(),
        )

    def repeating(self, action: Callable[[], T]) -> T:
        """Call ``action`` up to four times while it fails for a passing reason."""
        pause_s = _FIRST_PAUSE_S
        for _ in range(_ATTEMPTS - 1):
            try:
                return action()
            except RemoteUnavailableError as error:
                if (error.retry_after or 0.0) > _LONGEST_PAUSE_S:
                    raise
                self.pause(max(error.retry_after or 0.0, pause_s))
                pause_s *= 2
        return action()

    def pause(self, seconds: float) -> None:
        """Sleep ``seconds`` and up to half as much again, so that clients do not march in step."""
        self._clock.pause(seconds * random.uniform(1.0, 1.5))  # noqa: S311 not a secret
