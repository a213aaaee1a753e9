"""Challenges, token requests and token answers."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.errors import RemoteProtocolError
from pagein.wire.auth import (
    Challenge,
    Credential,
    Scope,
    choose_challenge,
    parse_challenges,
    parse_token,
    token_request,
)

DOCKER_HUB = (
    'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
    'scope="repository:library/python:pull"'
)


def test_a_bearer_challenge_is_read() -> None:
    assert parse_challenges(DOCKER_HUB) == [
        Challenge(
            "bearer",
            {
                "realm": "https://auth.docker.io/token",
                "service": "registry.docker.io",
                "scope": "repository:library/python:pull",
            },
        )
    ]


def test_bearer_goes_before_basic_and_unknown_schemes_are_skipped() -> None:
    header = 'Negotiate abc==, Basic realm="a, \\"b\\"" , Bearer realm="https://t/"'
    found = parse_challenges(header)
    assert [challenge.scheme for challenge in found] == ["negotiate", "basic", "bearer"]
    assert found[1].parameters == {"realm": 'a, "b"'}
    chosen = choose_challenge(found)
    assert chosen is not None
    assert chosen.scheme == "bearer"
    assert choose_challenge(parse_challenges("Digest realm=x")) is None


@given(st.text(alphabet=st.characters(codec="latin-1"), max_size=300))
def test_any_challenge_header_is_read_without_a_crash(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower()


@given(
    st.lists(st.sampled_from(["Bearer ", "realm=", '"', "\\", ",", "=", " ", "x"]), max_size=4000)
)
def test_reading_a_hostile_challenge_is_quick(pieces: list[str]) -> None:
    parse_challenges("".join(pieces))


def test_an_anonymous_token_request_names_service_and_scope() -> None:
    challenge = parse_challenges(DOCKER_HUB)[0]
    wanted = token_request(challenge, [Scope("library/python")], None, plain_http=False)
    assert wanted.method == "GET"
    assert "Authorization" not in wanted.headers
    assert parse_qs(urlsplit(wanted.url).query) == {
        "service": ["registry.docker.io"],
        "scope": ["repository:library/python:pull"],
    }


def test_a_mount_asks_for_two_scopes() -> None:
    scopes = [Scope("a", ("pull", "push")), Scope("b")]
    wanted = token_request(parse_challenges(DOCKER_HUB)[0], scopes, None, plain_http=False)
    asked = parse_qs(urlsplit(wanted.url).query)["scope"]
    assert asked == ["repository:a:pull,push", "repository:b:pull"]


def test_a_login_goes_into_a_header_and_never_into_the_url() -> None:
    login = Credential("ann", "s3cret")
    wanted = token_request(parse_challenges(DOCKER_HUB)[0], [Scope("a")], login, plain_http=False)
    assert wanted.headers["Authorization"] == "Basic YW5uOnMzY3JldA=="
    assert "s3cret" not in wanted.url + repr(wanted) + repr(login)


def test_an_identity_token_goes_into_a_form() -> None:
    login = Credential("ann", "", "refresh-me")
    wanted = token_request(parse_challenges(DOCKER_HUB)[0], [Scope("a")], login, plain_http=False)
    assert wanted.method == "POST"
    assert wanted.body is not None
    form = parse_qs(wanted.body.decode())
    assert form["grant_type"] == ["refresh_token"]
    assert form["refresh_token"] == ["refresh-me"]
    assert "refresh-me" not in wanted.url + repr(wanted) + repr(login)


@pytest.mark.parametrize("realm", ["", "ftp://x/", "https://", "/token", "https://u:p@x/t"])
def test_a_realm_that_is_no_address_is_refused(realm: str) -> None:
    with pytest.raises(RemoteProtocolError, match="no usable realm"):
        token_request(Challenge("bearer", {"realm": realm}), [], None, plain_http=False)


def test_an_encrypted_registry_may_not_lure_a_password_into_the_open() -> None:
    challenge = Challenge("bearer", {"realm": "http://token.example/"})
    with pytest.raises(RemoteProtocolError, match="without encryption"):
        token_request(challenge, [], Credential("a", "b"), plain_http=False)
    assert token_request(challenge, [], Credential("a", "b"), plain_http=True).headers
    assert token_request(challenge, [], None, plain_http=False)


@pytest.mark.parametrize(
    ("answer", "lifetime_s"),
    [
        ({"token": "t"}, 60),
        ({"access_token": "t", "expires_in": 300}, 300),
        ({"token": "t", "expires_in": -5}, 1),
        ({"token": "t", "expires_in": 1e300}, 86400),
    ],
)
def test_a_token_answer_is_read_with_a_lifetime_in_bounds(
    answer: dict[str, object], lifetime_s: float
) -> None:
    token = parse_token(json.dumps(answer).encode())
    assert (token.value, token.lifetime_s) == ("t", lifetime_s)
    assert "'t'" not in repr(token)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"token":"a\\r\\nX: y"}', b'{"token":7}'])
def test_an_answer_without_a_usable_token_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="token server"):
        parse_token(data)


def test_a_wider_token_covers_a_narrower_scope() -> None:
    wide = Scope("a", ("pull", "push"))
    assert wide.covers(Scope("a"))
    assert not Scope("a").covers(wide)
    assert not wide.covers(Scope("b"))
