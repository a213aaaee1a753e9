"""Registry authentication as values: challenges, scopes, token requests, token answers.

Rule 1. No secret is in a repr, a message or a URL; only in a header or a form body.
Rule 2. Everything that a peer sent is bounded before it is read.
Sources: RFC 9110 section 11.6 (challenges); the Docker token specifications (distribution/docs:
auth/token.md, auth/oauth.md).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode, urlsplit, urlunsplit

import msgspec

from pagein.errors import RemoteProtocolError

MAX_TOKEN_ANSWER: Final = 1 << 20
"""Largest token answer read, in bytes; real ones have a few KiB."""

_MAX_CHALLENGE: Final = 16 << 10
_DEFAULT_LIFETIME_S: Final = 60.0  # token.md: "defaults to 60 seconds" where expires_in is absent
_MAX_LIFETIME_S: Final = 24 * 3600.0
_CLIENT_ID: Final = "pagein"

_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PARAMETER = re.compile(rf'[\s,]*({_NAME})\s*=\s*("(?:[^"\\]|\\.)*"|[^\s,"]+)')
_SCHEME = re.compile(rf"[\s,]*({_NAME})(?=[\s,]|$)")


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """Who asks. ``identity_token`` is an OAuth2 refresh token and goes before the password.

    ``registry_token`` is a bearer token to show the registry as it is: no token server is asked.
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        return f"Credential(username={self.username!r}, ...)"

    @property
    def basic(self) -> str:
        """Value of an ``Authorization`` header (RFC 7617)."""
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of a ``WWW-Authenticate`` header; names are lower case."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, order=True)
class Scope:
    """What a token is for: actions on one repository."""

    repository: str
    actions: tuple[str, ...] = ("pull",)

    def __str__(self) -> str:
        return f"repository:{self.repository}:{','.join(self.actions)}"

    def covers(self, other: Scope) -> bool:
        """Whether a token for this scope also serves ``other``."""
        return self.repository == other.repository and set(other.actions) <= set(self.actions)


@dataclass(frozen=True, slots=True, repr=False)
class TokenRequest:
    """How to ask for a token: GET with Basic (or nothing), or POST with a form."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes | None = None

    def __repr__(self) -> str:
        return f"TokenRequest({self.method} {urlsplit(self.url).netloc})"


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """A bearer token and its lifetime in seconds from now."""

    value: str
    lifetime_s: float

    def __repr__(self) -> str:
        return f"Token(lifetime_s={self.lifetime_s})"


class _TokenAnswer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None


def parse_challenges(header: str) -> list[Challenge]:
    """Read a ``WWW-Authenticate`` header with any number of challenges.

    What cannot be read ends the list: a client must skip schemes that it does not know.
    """
    found: list[Challenge] = []
    position = 0
    header = header[:_MAX_CHALLENGE]
    while position < len(header):
        if found and (match := _PARAMETER.match(header, position)):
            value = match[2]
            if value.startswith('"'):
                value = re.sub(r"\\(.)", r"\1", value[1:-1])
            found[-1].parameters.setdefault(match[1].lower(), value)
        elif match := _SCHEME.match(header, position):
            found.append(Challenge(match[1].lower()))
        else:
            break
        position = match.end()
    return found


def choose_challenge(challenges: Iterable[Challenge]) -> Challenge | None:
    """Return the challenge to answer: Bearer before Basic; None if neither is offered."""
    by_scheme = {challenge.scheme: challenge for challenge in reversed(list(challenges))}
    return by_scheme.get("bearer") or by_scheme.get("basic")


def token_request(
    challenge: Challenge,
    scopes: Iterable[Scope],
    credential: Credential | None,
    *,
    plain_http: bool,
) -> TokenRequest:
    """Make the request that a Bearer challenge asks for.

    Raises RemoteProtocolError for a realm that is no URL, or that would carry credentials
    unencrypted although the registry itself is encrypted.
    """
    realm = urlsplit(challenge.parameters.get("realm", ""))
    if realm.scheme not in {"http", "https"} or not realm.netloc or "@" in realm.netloc:
        raise RemoteProtocolError("the registry's token challenge has no usable realm")
    if realm.scheme == "http" and credential is not None and not plain_http:
        raise RemoteProtocolError(
            f"the registry wants credentials sent to {realm.netloc} without encryption"
        )
    wanted = sorted({str(scope) for scope in scopes})
    service = challenge.parameters.get("service", "")
    if credential is not None and credential.identity_token:
        form = {"grant_type": "refresh_token", "service": service, "client_id": _CLIENT_ID}
        form |= {"scope": " ".join(wanted), "refresh_token": credential.identity_token}
        return TokenRequest(
            "POST",
            urlunsplit(realm._replace(fragment="")),
            {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"},
            urlencode(form).encode(),
        )
    query = [("service", service)] if service else []
    query += [("scope", scope) for scope in wanted]
    headers = {"Accept": "application/json"}
    if credential is not None:
        query.append(("account", credential.username))
        headers["Authorization"] = credential.basic
    joined = "&".join(part for part in (realm.query, urlencode(query)) if part)
    return TokenRequest("GET", urlunsplit(realm._replace(query=joined, fragment="")), headers)


def parse_token(data: bytes) -> Token:
    """Read a token server's answer; RemoteProtocolError where there is no token in it."""
    try:
        answer = msgspec.json.decode(data, type=_TokenAnswer)
    except msgspec.MsgspecError:
        raise RemoteProtocolError("the token server's answer is not the JSON expected") from None
    value = answer.token or answer.access_token or ""
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise RemoteProtocolError("the token server's answer has no token")
    lifetime = answer.expires_in or _DEFAULT_LIFETIME_S
    return Token(value, min(max(lifetime, 1.0), _MAX_LIFETIME_S))
