"""Who asks a registry: the order of credentials, what follows a refused one, and renewal."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pagein.errors import RemoteDeniedError, UsageError
from pagein.store.captured_credentials import CapturedCredentials, Login
from pagein.store.credentials import ChainedCredentials, DockerCredentials, StaticCredentials
from pagein.store.kubelet_credentials import KubeletCredentials, matches
from pagein.store.mounted_secrets import MountedSecrets
from pagein.store.registry import RegistryRepository
from pagein.testing.certificates import make_authority, openssl_installed
from pagein.testing.docker_registry import DockerRegistry, HtpasswdAuth
from pagein.testing.token_server import TokenServer
from pagein.transport.http import HttpTransport
from pagein.types import Digest, ImageName
from pagein.wire.auth import Credential

RIGHT, WRONG, OTHER = (Credential("kube", word) for word in ("right", "wrong", "other"))
D = Digest.of(b"data")


@pytest.fixture
def transport() -> Iterator[HttpTransport]:
    made = HttpTransport(timeout_s=10)
    yield made
    made.close()


def chain(*credentials: Credential) -> ChainedCredentials:
    return ChainedCredentials(tuple(map(StaticCredentials, credentials)))


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    if not DockerRegistry.installed() or shutil.which("htpasswd") is None:
        pytest.skip("needs docker-registry and htpasswd")
    auth = HtpasswdAuth("kube", "right")
    with DockerRegistry(tmp_path_factory.mktemp("basic"), auth=auth) as registry:
        yield registry


def at(host: str, transport: HttpTransport, credentials: Any) -> RegistryRepository:
    return RegistryRepository(ImageName.parse(f"{host}/a/b:v1"), transport, credentials)


def statuses(registry: DockerRegistry, before: int) -> list[int]:
    return [line.status for line in registry.requests()[before:]]


def test_a_refused_login_is_followed_by_the_next(
    basic: DockerRegistry, transport: HttpTransport
) -> None:
    repository = at(basic.host, transport, chain(WRONG, OTHER, RIGHT))
    before = len(basic.requests())
    assert not repository.has_blob(D)
    assert not repository.has_blob(D)
    # Nobody, wrong, other, right; and the second time right at once.
    assert statuses(basic, before) == [401, 401, 401, 404, 404]


def test_when_all_are_refused_the_registrys_words_are_told_and_all_are_tried_again(
    basic: DockerRegistry, transport: HttpTransport
) -> None:
    repository = at(basic.host, transport, chain(WRONG, OTHER))
    for _ in range(2):
        before = len(basic.requests())
        with pytest.raises(RemoteDeniedError, match="401"):
            repository.manifest("v1")
        assert statuses(basic, before)[-2:] == [401, 401]


def test_a_login_that_ran_out_makes_room_for_a_renewed_one(
    basic: DockerRegistry, transport: HttpTransport
) -> None:
    class Renewed:
        now = WRONG

        def for_repository(self, host: str, repository: str, /) -> Credential:
            return self.now

    login = Renewed()
    repository = at(basic.host, transport, login)
    with pytest.raises(RemoteDeniedError):
        repository.has_blob(D)
    login.now = RIGHT
    assert not repository.has_blob(D)


def test_a_token_server_that_refuses_one_login_is_asked_with_the_next(
    tmp_path: Path, transport: HttpTransport
) -> None:
    if not DockerRegistry.installed() or not openssl_installed():
        pytest.skip("needs docker-registry and openssl")
    with (
        TokenServer(make_authority(tmp_path), users={"kube": "right"}) as tokens,
        DockerRegistry(tmp_path, auth=tokens.auth) as registry,
    ):
        assert not at(registry.host, transport, chain(WRONG, RIGHT)).has_blob(D)
        with pytest.raises(RemoteDeniedError, match="wrong user or password"):
            at(registry.host, transport, chain(WRONG, OTHER)).has_blob(D)


def test_a_login_that_came_with_the_pull_goes_first() -> None:
    captured = CapturedCredentials(None)
    name = ImageName.parse("h.example/a/b:v1")
    credentials = ChainedCredentials((captured.for_image(name), StaticCredentials(OTHER)))
    assert credentials.for_repository("h.example", "a/b") == OTHER
    with captured.pulling("h.example/a/b:v1", Login(RIGHT)):
        assert list(credentials.each_for_repository("h.example", "a/b")) == [RIGHT, OTHER]


def secret(path: Path, **auths: str) -> None:
    path.parent.mkdir(parents=True)
    values = {host: {"username": "kube", "password": word} for host, word in auths.items()}
    path.write_text(json.dumps({"auths": values}))


def test_mounted_secrets_are_found_by_pattern_and_read_when_asked(tmp_path: Path) -> None:
    secrets = MountedSecrets((f"{tmp_path}/*/.dockerconfigjson", f"{tmp_path}/absent/*"))
    assert secrets.for_repository("h", "a") is None
    secret(tmp_path / "2/.dockerconfigjson", h="other")
    secret(tmp_path / "1/.dockerconfigjson", h="right", i="wrong")
    assert list(secrets.each_for_repository("h", "a")) == [RIGHT, OTHER]
    (tmp_path / "1/.dockerconfigjson").write_text("{")
    with pytest.raises(UsageError, match="not the JSON expected"):
        secrets.for_repository("h", "a")


PLUGIN = """\
#!/bin/sh
echo "$WORD $1 $(cat)" >> {folder}/asked
[ -e {folder}/broken ] && {{ echo "no role" >&2; exit 1; }}
cat {folder}/answer
"""


class Plugins:
    """A plugin that says what a file says, and its configuration as kubelet reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        program = folder / "bin/cloud-provider"
        program.write_text(PLUGIN.format(folder=folder))
        program.chmod(0o755)
        self.file = folder / "providers.yaml"
        self.configure()
        self.clock = 0.0
        environment = {"PATH": "/usr/bin:/bin", "WORD": "from-the-node"}
        self.credentials = KubeletCredentials(
            self.file, folder / "bin", environment, monotonic=lambda: self.clock
        )

    def configure(self, more: str = "") -> None:
        text = """\
        apiVersion: kubelet.config.k8s.io/v1
        kind: CredentialProviderConfig
        providers:
          - name: cloud-provider
            matchImages:
              - "*.dkr.cloud.example"
              - "h.example/team"
            defaultCacheDuration: "12h"
            apiVersion: credentialprovider.kubelet.k8s.io/v1
            args: [get]
        """
        self.file.write_text(textwrap.dedent(text) + more)

    def answers(self, key: str = "Registry", duration: str | None = None, **auth: str) -> None:
        values = {
            "kind": "CredentialProviderResponse",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "cacheKeyType": key,
            "auth": {h: {"username": "kube", "password": word} for h, word in auth.items()},
        }
        if duration is not None:
            values["cacheDuration"] = duration
        (self.folder / "answer").write_text(json.dumps(values))

    def asked(self) -> list[str]:
        file = self.folder / "asked"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def plugins(tmp_path: Path) -> Plugins:
    pytest.importorskip("yaml", reason="needs PyYAML")
    return Plugins(tmp_path)


def test_a_plugin_is_asked_as_kubelet_asks_it(plugins: Plugins) -> None:
    plugins.answers(**{"*.dkr.cloud.example": "right"})
    assert plugins.credentials.for_repository("1.dkr.cloud.example", "a/b") == RIGHT
    (line,) = plugins.asked()
    word, argument, request = line.split(" ", 2)
    assert (word, argument) == ("from-the-node", "get")
    assert json.loads(request) == {
        "kind": "CredentialProviderRequest",
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "image": "1.dkr.cloud.example/a/b",
    }
    for host, repository in (("other.example", "a"), ("h.example", "another")):
        assert plugins.credentials.for_repository(host, repository) is None
    assert len(plugins.asked()) == 1
    assert "right" not in repr(plugins.credentials)


def test_the_longest_key_of_an_answer_goes_first(plugins: Plugins) -> None:
    plugins.answers(**{"h.example": "other", "h.example/team": "right", "x.example": "wrong"})
    found = list(plugins.credentials.each_for_repository("h.example", "team/a"))
    assert found == [RIGHT, OTHER]


@pytest.mark.parametrize(("key", "runs"), [("Image", 3), ("Registry", 2), ("Global", 1)])
def test_an_answer_is_kept_for_what_it_says(plugins: Plugins, key: str, runs: int) -> None:
    plugins.answers(key, **{"*.dkr.cloud.example": "right"})
    for _ in range(2):
        for host, repository in (("1", "a"), ("1", "b"), ("2", "a")):
            name = f"{host}.dkr.cloud.example"
            assert plugins.credentials.for_repository(name, repository) == RIGHT
    assert len(plugins.asked()) == runs


@pytest.mark.parametrize(("duration", "seconds"), [(None, 12 * 3600), ("90s", 90)])
def test_a_login_is_renewed_when_its_time_is_over(
    plugins: Plugins, duration: str | None, seconds: float
) -> None:
    plugins.answers(duration=duration, **{"h.example": "other"})
    assert plugins.credentials.for_repository("h.example", "team") == OTHER
    plugins.answers(duration=duration, **{"h.example": "right"})
    plugins.clock = seconds - 1
    assert plugins.credentials.for_repository("h.example", "team") == OTHER
    plugins.clock = seconds + 1
    assert plugins.credentials.for_repository("h.example", "team") == RIGHT


def test_an_answer_that_lasts_no_time_is_not_kept(plugins: Plugins) -> None:
    plugins.answers(duration="0s", **{"h.example": "right"})
    for _ in range(2):
        assert plugins.credentials.for_repository("h.example", "team") == RIGHT
    assert len(plugins.asked()) == 2


def test_a_plugin_that_fails_is_named_with_its_words(plugins: Plugins) -> None:
    (plugins.folder / "broken").touch()
    with pytest.raises(RemoteDeniedError, match="cloud-provider failed: no role"):
        plugins.credentials.for_repository("h.example", "team")
    (plugins.folder / "broken").unlink()
    (plugins.folder / "answer").write_text('{"secret": "x"}')
    with pytest.raises(RemoteDeniedError, match="no CredentialProviderResponse") as caught:
        plugins.credentials.for_repository("h.example", "team")
    assert "secret" not in str(caught.value)
    (plugins.folder / "bin/cloud-provider").unlink()
    with pytest.raises(UsageError, match="not installed"):
        plugins.credentials.for_repository("h.example", "team")


def test_a_plugin_that_wants_a_pods_token_is_left_to_kubelet(plugins: Plugins) -> None:
    plugins.configure(
        "    tokenAttributes: {serviceAccountTokenAudience: a, requireServiceAccount: true}\n"
    )
    assert plugins.credentials.for_repository("h.example", "team") is None
    assert plugins.asked() == []


def test_the_configuration_may_be_json(plugins: Plugins) -> None:
    import yaml

    plugins.file.write_text(json.dumps(yaml.safe_load(plugins.file.read_text())))
    plugins.answers(**{"h.example": "right"})
    assert plugins.credentials.for_repository("h.example", "team") == RIGHT


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("kind: Other", "no CredentialProviderConfig"),
        ("a: [", "not YAML"),
        ("kind: CredentialProviderConfig\nproviders: [{name: x}]", "matchImages"),
        (
            "kind: CredentialProviderConfig\nproviders: [{name: ../x, matchImages: [],"
            " apiVersion: credentialprovider.kubelet.k8s.io/v1, defaultCacheDuration: 1h}]",
            "not the name of a program",
        ),
    ],
)
def test_a_broken_configuration_is_one_line(plugins: Plugins, text: str, why: str) -> None:
    plugins.file.write_text(text)
    with pytest.raises(UsageError, match=why):
        plugins.credentials.for_repository("h.example", "team")


@pytest.mark.parametrize(
    ("pattern", "image", "yes"),
    [
        # From the reference of kubelet-config.v1 and the cases of its keyring's own tests.
        ("1.dkr.ecr.us-east-1.amazonaws.com", "1.dkr.ecr.us-east-1.amazonaws.com/a", True),
        ("*.azurecr.io", "mine.azurecr.io/a/b", True),
        ("*.azurecr.io", "azurecr.io/a", False),
        ("gcr.io", "gcr.io/project/a", True),
        ("*.*.registry.io", "a.b.registry.io/x", True),
        ("*.*.registry.io", "a.registry.io/x", False),
        ("registry.io:8080/path", "registry.io:8080/path/a", True),
        ("registry.io:8080/path", "registry.io:8080/other", False),
        ("registry.io:8080/path", "registry.io/path/a", False),
        ("registry.io", "registry.io:5000/a", False),
        ("k8s.*", "k8s.io/a", True),
        ("app*.k8s.io", "app1.k8s.io/a", True),
        ("*.io", "a.k8s.io/a", False),
        ("https://gcr.io", "gcr.io/a", True),
        ("docker.io/library", "docker.io/library/python", True),
    ],
)  # fmt: skip
def test_images_match_as_kubelet_matches_them(pattern: str, image: str, yes: bool) -> None:
    assert matches(pattern, image) == yes


def test_docker_hub_is_named_as_kubelet_names_it(plugins: Plugins) -> None:
    plugins.file.write_text(plugins.file.read_text().replace("h.example/team", "docker.io"))
    plugins.answers(**{"docker.io": "right"})
    found = plugins.credentials.for_repository("registry-1.docker.io", "library/python")
    assert found == RIGHT
    assert '"image":"docker.io/library/python"' in plugins.asked()[0]


def test_docker_files_are_a_link_as_any_other(tmp_path: Path) -> None:
    secret(tmp_path / "d/config.json", h="right")
    docker = DockerCredentials((tmp_path / "d/config.json",))
    found = ChainedCredentials((docker, StaticCredentials(OTHER)))
    assert list(found.each_for_repository("h", "a")) == [RIGHT, OTHER]
