"""The registry client against Debian's docker-registry: logins, TLS, uploads, other tools' images.

The contract suite covers plain reading and writing.
"""

from __future__ import annotations

import errno
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pagein.errors import (
    NotFoundError,
    RemoteDeniedError,
    RemoteError,
    RemoteProtocolError,
    UsageError,
)
from pagein.store.credentials import Credential, DockerCredentials, StaticCredentials
from pagein.store.registry import RegistryRepository
from pagein.store.registry_session import Clock
from pagein.store.registry_upload import MONOLITHIC
from pagein.testing.certificates import (
    KeyPair,
    make_authority,
    make_server_certificate,
    openssl_installed,
)
from pagein.testing.contract_repository import ARTIFACT, ARTIFACT_TYPE, BLOB, SUBJECT, fill
from pagein.testing.docker_registry import DockerRegistry, HtpasswdAuth, ServerTls
from pagein.testing.token_server import TokenServer
from pagein.transport import Request, Response
from pagein.transport.http import HttpTransport, TlsOptions
from pagein.types import ByteRange, Digest, ImageName
from pagein.wire.registry import OCI_INDEX

pytestmark = pytest.mark.skipif(not DockerRegistry.installed(), reason="needs docker-registry")

D = Digest.of(BLOB)
SPAN = ByteRange(12_345, 100_000)
WANTED = BLOB[SPAN.start : SPAN.stop]
BIG = (BLOB * 6)[: MONOLITHIC + 54_321]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[KeyPair, KeyPair]:
    if not openssl_installed():
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("keys")
    authority = make_authority(folder)
    return authority, make_server_certificate(folder, authority)


@pytest.fixture
def transport() -> Iterator[HttpTransport]:
    made = HttpTransport(timeout_s=10)
    yield made
    made.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("plain")) as registry:
        yield registry


def _at(
    registry: DockerRegistry,
    repository: str,
    transport: Any,
    credential: Credential | None = None,
    **more: Any,
) -> RegistryRepository:
    credentials = StaticCredentials(credential) if credential else None
    return RegistryRepository(
        ImageName.parse(f"{registry.host}/{repository}"), transport, credentials, **more
    )


# -- logins


def test_basic_login(tmp_path: Path, transport: HttpTransport) -> None:
    with DockerRegistry(tmp_path, auth=HtpasswdAuth("ann", "pw")) as registry:
        fill(_at(registry, "a", transport, Credential("ann", "pw")))
        reader = _at(registry, "a", transport, Credential("ann", "pw"))
        before = len(registry.requests())
        assert bytes(reader.read_range(D, SPAN)) == WANTED
        assert bytes(reader.read_range(D, SPAN)) == WANTED
        assert [line.status for line in registry.requests()[before:]] == [401, 206, 206]
        for credential in (None, Credential("ann", "no")):
            with pytest.raises(RemoteDeniedError) as caught:
                _at(registry, "a", transport, credential).manifest("v1")
            assert f"docker login {registry.host}" in str(caught.value.hint)


def test_token_login_with_real_tokens(
    tmp_path: Path, transport: HttpTransport, keys: tuple[KeyPair, KeyPair]
) -> None:
    ann = Credential("ann", "pw")
    with (
        TokenServer(keys[0], users={"ann": "pw"}, refresh_tokens={"R": "ann"}) as tokens,
        DockerRegistry(tmp_path, auth=tokens.auth) as registry,
    ):
        fill(_at(registry, "public/a", transport, ann))
        # One token for pulling (HEAD of the first blob), one for pushing, which then serves all.
        assert [asked.scopes for asked in tokens.asked] == [
            ("repository:public/a:pull",),
            ("repository:public/a:pull,push",),
        ]
        assert bytes(_at(registry, "public/a", transport).read_range(D, SPAN)) == WANTED
        by_identity = _at(registry, "public/a", transport, Credential("", "", "R"))
        assert by_identity.manifest("v1") == SUBJECT
        assert tokens.asked[-1].method == "POST"
        with pytest.raises(RemoteDeniedError, match="401"):
            _at(registry, "public/a", transport).put_blob(Digest.of(b"x"), b"x")
        with pytest.raises(RemoteDeniedError, match="wrong user or password"):
            _at(registry, "public/a", transport, replace(ann, password="no")).manifest("v1")
        target = _at(registry, "b", transport, ann)
        assert target.mount_blob(D, from_repository="public/a")
        assert bytes(target.read_range(D, SPAN)) == WANTED


def test_an_expired_token_is_renewed_in_mid_use(
    tmp_path: Path, transport: HttpTransport, keys: tuple[KeyPair, KeyPair]
) -> None:
    # distribution accepts a token for 60 s past its end, so this one ended long before.
    with (
        TokenServer(keys[0], users={}, lifetime_s=-100) as tokens,
        DockerRegistry(tmp_path, auth=tokens.auth) as registry,
    ):
        repository = _at(registry, "public/a", transport)
        with pytest.raises(RemoteDeniedError, match="401"):
            repository.manifest("v1")
        assert len(tokens.asked) == 1
        tokens.lifetime_s = 60
        with pytest.raises(NotFoundError, match="manifest unknown"):
            repository.manifest("v1")
        assert len(tokens.asked) == 2


# -- TLS


def test_tls_from_a_private_authority(tmp_path: Path, keys: tuple[KeyPair, KeyPair]) -> None:
    authority, server = keys
    tls = ServerTls(server.certificate, server.key)
    with DockerRegistry(tmp_path, tls=tls) as registry:
        request = Request("GET", f"https://{registry.host}/v2/")
        trusting = HttpTransport(tls=TlsOptions(ca_files=(authority.certificate,)))
        with trusting.send(request) as response:
            assert response.status == 200
        careless = HttpTransport(tls=TlsOptions(skip_verify=True))
        with careless.send(request) as response:
            assert response.status == 200
        wary = HttpTransport()
        with (
            pytest.raises(RemoteError, match="certificate is not trusted") as caught,
            wary.send(request),
        ):
            pass
        assert not caught.value.transient
        assert "hosts.toml" in str(caught.value.hint)
        with pytest.raises(RemoteError, match="400"):
            _at(registry, "a", wary).manifest("v1")
        for transport in (trusting, careless, wary):
            transport.close()


def test_a_client_certificate_is_shown(tmp_path: Path, keys: tuple[KeyPair, KeyPair]) -> None:
    authority, server = keys
    options = TlsOptions((authority.certificate,), server.certificate, server.key)
    assert options.context().get_ca_certs()
    with pytest.raises(UsageError, match="certificate file"):
        TlsOptions((tmp_path / "absent.pem",)).context()


def test_https_to_a_plain_registry_names_the_flag(
    plain: DockerRegistry, transport: HttpTransport
) -> None:
    request = Request("GET", f"https://{plain.host}/v2/")
    with pytest.raises(RemoteProtocolError, match="not TLS") as caught, transport.send(request):
        pass
    assert "--registry-http" in str(caught.value.hint)


# -- requests


def test_bringing_up_an_artifact_costs_two_fetches(
    plain: DockerRegistry, transport: HttpTransport
) -> None:
    fill(_at(plain, "count", transport))
    before = len(plain.requests())
    repository = _at(plain, "count", transport)
    assert repository.manifest(ARTIFACT.digest) == ARTIFACT
    assert repository.read_blob(D, limit=len(BLOB)) == BLOB
    assert [line.method for line in plain.requests()[before:]] == ["GET", "GET"]


def test_a_second_push_sends_nothing(plain: DockerRegistry, transport: HttpTransport) -> None:
    repository = _at(plain, "twice", transport)
    fill(repository)
    before = len(plain.requests())
    assert not repository.put_blob(D, BLOB)
    assert [line.method for line in plain.requests()[before:]] == ["HEAD"]


def test_connections_are_kept(plain: DockerRegistry, transport: HttpTransport) -> None:
    repository = _at(plain, "kept", transport)
    fill(repository)
    made: list[Any] = []
    original = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        made.append(address)
        original(self, address)

    socket.socket.connect = connect  # type: ignore[method-assign]
    try:
        for _ in range(5):
            repository.read_range(D, SPAN)
            repository.manifest("v1")
            repository.has_blob(D)
            repository.referrers(SUBJECT.digest, artifact_type=ARTIFACT_TYPE)
    finally:
        socket.socket.connect = original  # type: ignore[method-assign]
    assert made == []


# -- uploads


class BreaksUploads:
    """A transport whose first uploads break off after some bytes of the body."""

    def __init__(self, transport: HttpTransport, *, after: int, times: int) -> None:
        self._transport = transport
        self._after = after
        self._left = times

    def send(self, request: Request, /) -> AbstractContextManager[Response]:
        if request.method == "PATCH" and self._left:
            self._left -= 1
            request = replace(request, body=_Breaking(request.body, self._after))  # type: ignore[arg-type]
        return self._transport.send(request)


class _Breaking:
    def __init__(self, body: Any, after: int) -> None:
        self._body = body
        self._left = after

    def read(self, size: int) -> bytes:
        if self._left <= 0:
            raise OSError(errno.ENETDOWN, "network is down")
        data: bytes = self._body.read(min(size, self._left))
        self._left -= len(data)
        return data

    def tell(self) -> int:
        return int(self._body.tell())


@pytest.mark.parametrize("chunk_size", [1 << 40, 4 << 20])
@pytest.mark.parametrize("after", [0, 1 << 20, 3_000_001])
def test_a_broken_upload_is_mended(
    plain: DockerRegistry, transport: HttpTransport, tmp_path: Path, chunk_size: int, after: int
) -> None:
    path = tmp_path / "blob"
    data = f"{chunk_size} {after}".encode() + BIG
    path.write_bytes(data)
    breaking = BreaksUploads(transport, after=after, times=2)
    clock = Clock(pause=lambda _: None)
    repository = _at(plain, "broken", breaking, chunk_size=chunk_size, clock=clock)
    before = len(plain.requests())
    told: list[int] = []
    assert repository.put_blob(Digest.of(data), path, progress=told.append)
    assert sum(told) == len(data)
    assert repository.read_blob(Digest.of(data), limit=len(data)) == data
    statuses = [line for line in plain.requests()[before:] if "/uploads/" in line.path]
    assert [line.status for line in statuses if line.method == "GET"]


def test_mounting_a_blob_sends_none(plain: DockerRegistry, transport: HttpTransport) -> None:
    fill(_at(plain, "mount/from", transport))
    target = _at(plain, "mount/to", transport)
    assert not target.has_blob(D)
    assert target.mount_blob(D, from_repository="mount/from")
    assert target.has_blob(D)
    assert not target.mount_blob(Digest.of(b"nowhere"), from_repository="mount/from")


def test_the_fallback_list_drops_what_was_deleted(
    plain: DockerRegistry, transport: HttpTransport
) -> None:
    repository = _at(plain, "prune", transport)
    fill(repository)
    url = f"{plain.url}/v2/prune/manifests/{ARTIFACT.digest}"
    with transport.send(Request("DELETE", url)) as response:
        assert response.status == 202
    second = json.loads(ARTIFACT.data)
    second["annotations"] = {"n": "2"}
    data = json.dumps(second).encode()
    manifest = replace(ARTIFACT, data=data, digest=Digest.of(data))
    repository.put_manifest(manifest)
    found = repository.referrers(SUBJECT.digest, artifact_type=ARTIFACT_TYPE)
    assert found == [manifest.digest]


# -- other tools


@pytest.mark.skipif(not shutil.which("skopeo"), reason="needs skopeo")
@pytest.mark.parametrize("kind", ["oci", "v2s2"])
def test_an_image_that_skopeo_copied_is_read(
    plain: DockerRegistry, transport: HttpTransport, tmp_path: Path, kind: str
) -> None:
    fill(_at(plain, "skopeo/from", transport))
    copy = ["skopeo", "copy", "--insecure-policy", "--src-tls-verify=false"]
    source = f"docker://{plain.host}/skopeo/from:v1"
    subprocess.run([*copy, "-q", source, f"oci:{tmp_path}/layout:v1"], check=True)
    target = f"docker://{plain.host}/skopeo/{kind}:v2"
    subprocess.run(
        [*copy, "-q", "--dest-tls-verify=false", "-f", kind, f"oci:{tmp_path}/layout:v1", target],
        check=True,
    )
    repository = _at(plain, f"skopeo/{kind}", transport)
    manifest = repository.manifest("v2")
    layer = json.loads(manifest.data)["layers"][0]
    with repository.open_blob(Digest.parse(layer["digest"]), size=layer["size"]) as stream:
        assert len(stream.read()) == layer["size"]
    shown = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", target],
        check=True,
        capture_output=True,
    ).stdout
    assert shown == manifest.data


@pytest.mark.skipif(not shutil.which("skopeo"), reason="needs skopeo")
def test_what_skopeo_logged_in_to_is_ours_too(tmp_path: Path, transport: HttpTransport) -> None:
    file = tmp_path / "auth.json"
    with DockerRegistry(tmp_path, auth=HtpasswdAuth("ann", "pw")) as registry:
        subprocess.run(
            [
                "skopeo",
                "login",
                "--tls-verify=false",
                "--authfile",
                str(file),
                "-u",
                "ann",
                "--password-stdin",
                registry.host,
            ],
            input=b"pw",
            check=True,
            capture_output=True,
        )
        found = DockerCredentials.load({"REGISTRY_AUTH_FILE": str(file)}, tmp_path)
        repository = RegistryRepository(ImageName.parse(f"{registry.host}/a"), transport, found)
        fill(repository)
        assert repository.manifest("v1") == SUBJECT


def test_an_index_pushed_here_is_read_by_skopeo(
    plain: DockerRegistry, transport: HttpTransport
) -> None:
    if not shutil.which("skopeo"):
        pytest.skip("needs skopeo")
    repository = _at(plain, "index", transport)
    fill(repository)
    entry = {"mediaType": SUBJECT.media_type, "digest": str(SUBJECT.digest)}
    entry |= {"size": len(SUBJECT.data), "platform": {"os": "linux", "architecture": "amd64"}}  # type: ignore[dict-item]
    data = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()
    repository.put_manifest(
        replace(SUBJECT, media_type=OCI_INDEX, data=data, digest=Digest.of(data)), tag="all"
    )
    shown = subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", f"docker://{plain.host}/index:all"],
        check=True,
        capture_output=True,
    )
    assert json.loads(shown.stdout)["Architecture"] == "amd64"
