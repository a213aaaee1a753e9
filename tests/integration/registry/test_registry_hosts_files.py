"""Pulling through real registries as ``hosts.toml`` says: mirrors, TLS, headers, paths, trust."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pagein.daemon.config import Config, RegistryConfig
from pagein.daemon.registries import Registries
from pagein.errors import NotFoundError, RemoteError, UsageError
from pagein.store.credentials import Anonymous
from pagein.store.registry import RegistryRepository
from pagein.store.repository import ManifestBlob
from pagein.testing.certificates import (
    KeyPair,
    make_authority,
    make_server_certificate,
    openssl_installed,
)
from pagein.testing.docker_registry import DockerRegistry
from pagein.types import Digest, ImageName
from pagein.wire.registry import OCI_MANIFEST

pytestmark = [
    pytest.mark.skipif(not DockerRegistry.installed(), reason="needs docker-registry"),
]
BLOB = b"x" * 5000
D = Digest.of(BLOB)
DATA = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",'
    b'"config":{"mediaType":"a/b","digest":"%s","size":5000},"layers":[]}' % str(D).encode()
)
MANIFEST = ManifestBlob(OCI_MANIFEST, Digest.of(DATA), DATA)
NAME = ImageName.parse("registry.example:5000/team/app:v1")
"""Nobody answers under this name: what is read comes from a host that stands in for it."""

NGINX = """\
daemon off; pid {folder}/pid; error_log stderr; worker_processes 1;
events {{}}
http {{
  access_log {folder}/access.log combined;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {server.certificate}; ssl_certificate_key {server.key};
    ssl_client_certificate {authority.certificate}; ssl_verify_client on;
    location /hub/ {{ proxy_pass http://{upstream}/v2/; }}
    location /v2/ {{
      if ($http_x_pass != "open sesame") {{ return 403; }}
      proxy_pass http://{upstream};
    }}
  }}
}}
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry:
        name = ImageName.parse(f"{registry.host}/team/app:v1")
        repository = Registries(Config(hosts_dir="")).to_write(name, Anonymous())
        repository.put_blob(D, BLOB)
        repository.put_manifest(MANIFEST, tag="v1")
        yield registry


@dataclass(frozen=True, slots=True)
class Gate:
    """nginx before the registry: TLS, a client certificate, and for ``/v2/`` a header."""

    host: str
    authority: KeyPair
    mine: KeyPair
    log: Path

    def paths(self) -> list[str]:
        return [line.split('"')[1].split()[1] for line in self.log.read_text().splitlines()]


@pytest.fixture(scope="module")
def gate(registry: DockerRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    if shutil.which("nginx") is None or not openssl_installed():
        pytest.skip("needs nginx and openssl")
    folder = tmp_path_factory.mktemp("gate")
    authority = make_authority(folder)
    server = make_server_certificate(folder, authority)
    mine = make_server_certificate(folder, authority, "mine")
    for _ in range(5):  # the port is free when we ask, and may be taken when nginx does
        port = _free_port()
        (folder / "nginx.conf").write_text(
            NGINX.format(
                folder=folder,
                port=port,
                server=server,
                authority=authority,
                upstream=registry.host,
            )
        )
        process = subprocess.Popen(
            ["nginx", "-p", folder, "-e", "stderr", "-c", folder / "nginx.conf"],
            stderr=subprocess.DEVNULL,
        )
        if _listens(port, process):
            break
    else:
        raise AssertionError("nginx does not start")
    yield Gate(f"127.0.0.1:{port}", authority, mine, folder / "access.log")
    process.terminate()
    process.wait()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _listens(port: int, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + 20
    pause = threading.Event()
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            pause.wait(0.02)
        else:
            return True
    return False


def places(folder: Path, text: str, name: ImageName = NAME) -> list[RegistryRepository]:
    """What an image is read from where ``hosts.toml`` has this text."""
    return registries(folder, text, name).to_read(name, Anonymous())


def registries(folder: Path, text: str, name: ImageName = NAME) -> Registries:
    place = folder / "certs.d" / f"{name.host.replace(':', '_')}_"
    place.mkdir(parents=True)
    (place / "hosts.toml").write_text(text)
    return Registries(Config(hosts_dir=f"{folder}/absent:{folder}/certs.d"))


def test_a_mirror_is_read_and_told_whom_it_stands_in_for(
    tmp_path: Path, registry: DockerRegistry
) -> None:
    mirror, own = places(tmp_path, f'[host."http://{registry.host}"]\n')
    before = len(registry.requests())
    assert mirror.manifest("v1") == MANIFEST
    assert mirror.read_blob(D, limit=5000) == BLOB
    assert [line.path for line in registry.requests()[before:]] == [
        "/v2/team/app/manifests/v1?ns=registry.example:5000",
        f"/v2/team/app/blobs/{D}?ns=registry.example:5000",
    ]
    assert (mirror.name, own.name) == (
        f"{registry.host}/team/app",
        "registry.example:5000/team/app",
    )


def test_a_mirror_without_trust_is_not_asked_what_a_name_means(
    tmp_path: Path, registry: DockerRegistry
) -> None:
    mirror, _ = places(tmp_path, f'[host."http://{registry.host}"]\ncapabilities = ["pull"]\n')
    before = len(registry.requests())
    for ask in (
        lambda: mirror.manifest("v1"),
        lambda: mirror.referrers(D, artifact_type="a/b"),
        lambda: list(mirror.tags()),
    ):
        with pytest.raises(NotFoundError, match="no capability to resolve"):
            ask()
    assert len(registry.requests()) == before
    assert mirror.manifest(MANIFEST.digest) == MANIFEST


def test_pushing_goes_to_the_first_host_that_may_be_pushed_to(
    tmp_path: Path, registry: DockerRegistry
) -> None:
    text = f"""
    server = "http://{registry.host}"
    [host."https://mirror.example"]
    capabilities = ["pull", "resolve"]
    """
    writer = registries(tmp_path, text).to_write(NAME, Anonymous())
    assert writer.name == f"{registry.host}/team/app"
    before = len(registry.requests())
    data = b"pushed through hosts.toml"
    assert writer.put_blob(Digest.of(data), data)
    sent = registry.requests()[before:]
    assert all(
        "ns=registry.example:5000" in line.path for line in sent if "_state" not in line.path
    )
    assert writer.read_blob(Digest.of(data), limit=100) == data


def test_a_host_that_may_do_nothing_is_no_place(tmp_path: Path) -> None:
    made = registries(tmp_path, 'capabilities = ["push"]\n')
    with pytest.raises(UsageError, match="capability pull"):
        made.to_read(NAME, Anonymous())
    other = registries(tmp_path / "2", 'capabilities = ["pull"]\n')
    with pytest.raises(UsageError, match="capability push"):
        other.to_write(NAME, Anonymous())


def gate_text(gate: Gate, *lines: str) -> str:
    return "\n".join(
        [
            f'[host."https://{gate.host}"]',
            f'ca = "{gate.authority.certificate}"',
            f'client = [["{gate.mine.certificate}", "{gate.mine.key}"]]',
            *lines,
        ]
    )


def test_an_authority_a_client_certificate_and_a_header_open_the_gate(
    tmp_path: Path, gate: Gate
) -> None:
    text = gate_text(gate, f'[host."https://{gate.host}".header]', 'X-Pass = "open sesame"')
    assert places(tmp_path, text)[0].manifest("v1") == MANIFEST


def test_each_of_these_is_needed(tmp_path: Path, gate: Gate) -> None:
    header = f'[host."https://{gate.host}".header]\nX-Pass = "open sesame"\n'
    cases = {
        "certificate is not trusted": f'[host."https://{gate.host}"]\n{header}',
        "400": f'[host."https://{gate.host}"]\nskip_verify = true\n{header}',  # nginx: no client's
        "403": gate_text(gate),
    }
    for number, (why, text) in enumerate(cases.items()):
        mirror = places(tmp_path / str(number), text)[0]
        with pytest.raises(RemoteError, match=why):
            mirror.manifest("v1")


def test_a_path_may_override_where_the_api_begins(tmp_path: Path, gate: Gate) -> None:
    text = gate_text(gate, "override_path = true").replace(gate.host, f"{gate.host}/hub", 1)
    assert places(tmp_path, text)[0].manifest("v1") == MANIFEST
    assert gate.paths()[-1] == "/hub/team/app/manifests/v1?ns=registry.example:5000"


def test_docker_certificate_folders_serve_as_well(
    tmp_path: Path, registry: DockerRegistry, gate: Gate
) -> None:
    place = tmp_path / f"{gate.host.replace(':', '_')}_"
    place.mkdir()
    for source, name in (
        (gate.authority.certificate, "ca.crt"),
        (gate.mine.certificate, "client.cert"),
        (gate.mine.key, "client.key"),
    ):
        shutil.copy(source, place / name)
    made = Registries(Config(hosts_dir=str(tmp_path)))
    name = ImageName.parse(f"{gate.host}/team/app:v1")
    with pytest.raises(RemoteError, match="403"):  # the gate opened; only the header is missing
        made.to_read(name, Anonymous())[0].manifest("v1")


def test_our_own_table_goes_before_hosts_toml(tmp_path: Path, registry: DockerRegistry) -> None:
    name = ImageName.parse(f"{registry.host}/team/app:v1")
    place = tmp_path / name.host
    place.mkdir()
    (place / "hosts.toml").write_text('server = "https://elsewhere.example"')
    listed = Registries(
        Config(hosts_dir=str(tmp_path), registry={name.host: RegistryConfig(plain_http=True)})
    )
    (own,) = listed.to_read(name, Anonymous())
    assert own.manifest("v1") == MANIFEST
    (other,) = Registries(Config(hosts_dir=str(tmp_path))).to_read(name, Anonymous())
    assert other.name == "elsewhere.example/team/app"


def test_a_changed_file_is_used_without_a_restart(tmp_path: Path, registry: DockerRegistry) -> None:
    made = registries(tmp_path, 'server = "https://old.example"')
    assert made.to_read(NAME, Anonymous())[0].name.startswith("old.example")
    (file,) = tmp_path.rglob("hosts.toml")
    file.write_text(f'server = "http://{registry.host}"')
    assert made.to_read(NAME, Anonymous())[0].manifest("v1") == MANIFEST
