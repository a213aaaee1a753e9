"""Credential files and helpers."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pagein.errors import RemoteDeniedError, UsageError
from pagein.store.credentials import Anonymous, Credential, DockerCredentials


def _auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def _docker(home: Path, value: dict[str, Any]) -> DockerCredentials:
    folder = home / ".docker"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(value))
    return DockerCredentials.load({"PATH": f"{home}:{os.environ['PATH']}"}, home)


def _helper(home: Path, name: str, script: str) -> None:
    program = home / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    "key", ["h:5000", "https://h:5000", "https://h:5000/v1/", "http://h:5000/v2/"]
)
def test_a_registry_may_be_spelled_in_docker_s_ways(tmp_path: Path, key: str) -> None:
    found = _docker(tmp_path, {"auths": {key: _auth("ann", "a:b")}})
    assert found.for_repository("h:5000", "x/y") == Credential("ann", "a:b")
    assert found.for_repository("h", "x/y") is None


@pytest.mark.parametrize("host", ["docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_is_found_under_its_old_name(tmp_path: Path, host: str) -> None:
    found = _docker(tmp_path, {"auths": {"https://index.docker.io/v1/": _auth("u", "p")}})
    assert found.for_repository(host, "library/python") == Credential("u", "p")


def test_the_most_specific_key_wins(tmp_path: Path) -> None:
    auths = {
        "quay.io": _auth("host", "1"),
        "quay.io/team": _auth("team", "2"),
        "quay.io/team/app": _auth("app", "3"),
        "quay.io/tea": _auth("wrong", "4"),
    }
    found = _docker(tmp_path, {"auths": auths})
    names = {}
    for repository in ("other", "team/x", "team/app", "team/app/sub", "team/apple", "teams/x"):
        credential = found.for_repository("quay.io", repository)
        assert credential is not None
        names[repository] = credential.username
    assert names == {
        "other": "host",
        "team/x": "team",
        "team/app": "app",
        "team/app/sub": "app",
        "team/apple": "team",
        "teams/x": "host",
    }


def test_an_identity_token_and_plain_fields_are_read(tmp_path: Path) -> None:
    auths = {"a": {**_auth("u", ""), "identitytoken": "T"}, "b": {"username": "u", "password": "p"}}
    found = _docker(tmp_path, {"auths": auths})
    assert found.for_repository("a", "x") == Credential("u", "", "T")
    assert found.for_repository("b", "x") == Credential("u", "p")
    assert "T" not in repr(found.for_repository("a", "x")).replace("Token", "")


def test_the_places_are_those_of_docker_and_podman(tmp_path: Path) -> None:
    home, runtime, config = tmp_path / "h", tmp_path / "r", tmp_path / "c"
    (runtime / "containers").mkdir(parents=True)
    config.mkdir()
    (config / "config.json").write_text(json.dumps({"auths": {"a": _auth("docker", "1")}}))
    podman = {"auths": {"a": _auth("podman", "2"), "b": _auth("podman", "3")}}
    (runtime / "containers" / "auth.json").write_text(json.dumps(podman))
    env = {"DOCKER_CONFIG": str(config), "XDG_RUNTIME_DIR": str(runtime)}
    found = DockerCredentials.load(env, home)
    assert found.for_repository("a", "x") == Credential("docker", "1")
    assert found.for_repository("b", "x") == Credential("podman", "3")
    env["REGISTRY_AUTH_FILE"] = str(runtime / "containers" / "auth.json")
    only = DockerCredentials.load(env, home)
    assert only.for_repository("a", "x") == Credential("podman", "2")
    assert DockerCredentials.load({}, tmp_path / "none").for_repository("a", "x") is None
    assert Anonymous().for_repository("a", "x") is None


def test_a_helper_is_asked_for_its_registry_only(tmp_path: Path) -> None:
    _helper(
        tmp_path, "ecr", 'read server; echo "{\\"Username\\":\\"$server\\",\\"Secret\\":\\"s\\"}"'
    )
    found = _docker(tmp_path, {"credHelpers": {"ecr.aws": "ecr"}})
    assert found.for_repository("ecr.aws", "x") == Credential("ecr.aws", "s")
    assert found.for_repository("other", "x") is None


def test_a_store_that_does_not_know_the_registry_is_no_error(tmp_path: Path) -> None:
    _helper(tmp_path, "box", "echo 'credentials not found in native keychain'; exit 1")
    found = _docker(tmp_path, {"credsStore": "box", "auths": {"h": {}}})
    assert found.for_repository("h", "x") is None


def test_a_store_may_hold_an_identity_token(tmp_path: Path) -> None:
    _helper(tmp_path, "box", """echo '{"Username":"<token>","Secret":"T"}'""")
    found = _docker(tmp_path, {"credsStore": "box"})
    assert found.for_repository("h", "x") == Credential(identity_token="T")


def test_errors_say_which_helper_it_was(tmp_path: Path) -> None:
    _helper(tmp_path, "broken", "echo no keychain here >&2; exit 3")
    _helper(tmp_path, "mad", "echo hello")
    helpers = {"a": "broken", "b": "missing", "c": "mad", "d": "../evil"}
    found = _docker(tmp_path, {"credHelpers": helpers})
    with pytest.raises(RemoteDeniedError, match=r"docker-credential-broken failed .* no keychain"):
        found.for_repository("a", "x")
    with pytest.raises(UsageError, match="docker-credential-missing is not installed"):
        found.for_repository("b", "x")
    with pytest.raises(RemoteDeniedError, match="docker-credential-mad answered no JSON"):
        found.for_repository("c", "x")
    with pytest.raises(UsageError, match="not a credential helper"):
        found.for_repository("d", "x")


@pytest.mark.parametrize("text", ["{", '{"auths":[]}', '{"auths":{"h":{"auth":"*"}}}'])
def test_a_broken_file_is_named_and_not_quoted(tmp_path: Path, text: str) -> None:
    (tmp_path / "auth.json").write_text(text)
    found = DockerCredentials.load({"REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")}, tmp_path)
    with pytest.raises(UsageError, match="credentials"):
        found.for_repository("h", "x")
