"""containerd's ``hosts.toml``: which hosts are asked, in which order, and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagein.errors import UsageError
from pagein.store.hosts import ALL, Capability, RegistryHost, find_hosts, parse_duration
from pagein.types import Digest, ImageName

D = Digest.of(b"blob")
IMAGE = ImageName.parse("example.org:5000/team/app:v1")


def hosts(folder: Path, text: str, host: str = IMAGE.host) -> tuple[RegistryHost, ...]:
    place = folder / host
    place.mkdir(parents=True, exist_ok=True)
    (place / "hosts.toml").write_text(text)
    found = find_hosts(folder, host)
    assert found is not None
    return found


def test_no_folder_says_nothing(tmp_path: Path) -> None:
    assert find_hosts(tmp_path, "example.org") is None
    assert find_hosts(tmp_path / "absent", "example.org") is None


def test_hosts_keep_the_order_of_the_file_and_the_server_is_last(tmp_path: Path) -> None:
    found = hosts(
        tmp_path,
        """
        server = "https://upstream.example"
        [host."https://z.example"]
        [host."http://a.example:81"]
        capabilities = ["pull"]
        [host."plain.example"]
        capabilities = ["Pull", "resolve"]
        """,
    )
    assert [host.origin for host in found] == [
        "https://z.example",
        "http://a.example:81",
        "https://plain.example",
        "https://upstream.example",
    ]
    assert [sorted(host.capabilities) for host in found] == [
        sorted(ALL),
        [Capability.PULL],
        [Capability.PULL, Capability.RESOLVE],
        sorted(ALL),
    ]


def test_without_a_server_the_registry_itself_is_last(tmp_path: Path) -> None:
    found = hosts(tmp_path, '[host."https://m.example"]\n')
    assert [host.origin for host in found] == ["https://m.example", "https://example.org:5000"]
    (hub,) = hosts(tmp_path, "skip_verify = true", "docker.io")
    assert (hub.origin, hub.tls.skip_verify) == ("https://registry-1.docker.io", True)
    (local,) = hosts(tmp_path, "skip_verify = true", "127.0.0.1:5000")
    assert local.origin == "http://127.0.0.1:5000"


@pytest.mark.parametrize(
    ("there", "host", "chosen"),
    [
        (["h_5000_", "h:5000", "_default"], "h:5000", "h_5000_"),
        (["h:5000", "_default"], "h:5000", "h:5000"),
        (["h", "_default"], "h:5000", "_default"),
        (["h", "_default"], "h", "h"),
        (["_default"], "[::1]:5000", "_default"),
        (["[::1]_5000_"], "[::1]:5000", "[::1]_5000_"),
        (["[::1]"], "[::1]", "[::1]"),
    ],
)
def test_folders_are_looked_for_in_containerds_order(
    tmp_path: Path, there: list[str], host: str, chosen: str
) -> None:
    for name in there:
        (tmp_path / name).mkdir()
        (tmp_path / name / "hosts.toml").write_text(f'server = "https://from{len(name)}.example"')
    found = find_hosts(tmp_path, host)
    assert found is not None
    assert found[0].host == f"from{len(chosen)}.example"


@pytest.mark.parametrize(
    ("address", "override", "root"),
    [
        ("https://m.example", False, "/v2"),
        ("https://m.example/", False, "/v2"),
        ("https://m.example/v2", False, "/v2"),
        ("https://m.example/v2/", False, "/v2"),
        ("https://m.example/a/b", False, "/a/b/v2"),
        ("https://m.example/a//b/", True, "/a/b"),
        ("https://m.example/v2/cache", True, "/v2/cache"),
        ("https://m.example", True, ""),
    ],
)
def test_the_api_is_below_v2_unless_the_path_overrides(
    tmp_path: Path, address: str, override: bool, root: str
) -> None:
    flag = str(override).lower()
    first, _ = hosts(tmp_path, f'[host."{address}"]\noverride_path = {flag}\n')
    assert first.root == root
    url = first.endpoint(IMAGE).blob(D)
    assert url == f"https://m.example{root}/team/app/blobs/{D}?ns=example.org:5000"


def test_only_a_stand_in_is_told_the_namespace(tmp_path: Path) -> None:
    _, own = hosts(tmp_path, '[host."https://m.example"]\n')
    assert own.endpoint(IMAGE).blob(D) == f"https://example.org:5000/v2/team/app/blobs/{D}"
    hub = ImageName.parse("python")
    mirror, own = hosts(tmp_path, '[host."https://m.example"]\n', "docker.io")
    tag = "library/python/manifests/latest"
    assert mirror.endpoint(hub).manifest("latest") == f"https://m.example/v2/{tag}?ns=docker.io"
    assert own.endpoint(hub).manifest("latest") == f"https://registry-1.docker.io/v2/{tag}"


def test_a_token_is_asked_for_the_name_that_the_registry_knows(tmp_path: Path) -> None:
    harbor, own = hosts(tmp_path, '[host."https://m/v2/cache"]\noverride_path = true\n')
    assert harbor.endpoint(IMAGE).scope_name == "cache/team/app"
    assert own.endpoint(IMAGE).scope_name == "team/app"


def test_certificates_are_relative_to_the_file(tmp_path: Path) -> None:
    place = tmp_path / IMAGE.host
    found = hosts(
        tmp_path,
        """
        ca = "server.pem"
        [host."https://one.example"]
        ca = ["/etc/one.pem", "two.pem"]
        client = [["mine.cert", "/etc/mine.key"]]
        [host."https://two.example"]
        client = "both.pem"
        skip_verify = true
        [host."https://three.example"]
        client = ["both.pem"]
        """,
    )
    one, two, three, server = (host.tls for host in found)
    assert one.ca_files == (Path("/etc/one.pem"), place / "two.pem")
    assert (one.client_certificate, one.client_key) == (place / "mine.cert", Path("/etc/mine.key"))
    assert (two.client_certificate, two.client_key, two.skip_verify) == (
        place / "both.pem",
        None,
        True,
    )
    assert three.client_certificate == place / "both.pem"
    assert server.ca_files == (place / "server.pem",)


def test_headers_timeouts_and_proxies_are_read(tmp_path: Path) -> None:
    first, server = hosts(
        tmp_path,
        """
        [host."https://m.example"]
        dial_timeout = "1m1.5s"
        proxy = "http://user:secret@proxy.example:3128"
        [host."https://m.example".header]
        Authorization = "Bearer secret"
        X-Parts = ["a", "b"]
        """,
    )
    assert first.headers == {"Authorization": "Bearer secret", "X-Parts": "a, b"}
    assert first.dial_timeout_s == 61.5
    assert first.proxy == "http://user:secret@proxy.example:3128"
    assert "secret" not in repr(first)
    assert (server.headers, server.dial_timeout_s, server.proxy) == ({}, None, None)


def test_keys_that_nobody_knows_yet_are_passed_over(tmp_path: Path) -> None:
    (server,) = hosts(tmp_path, 'server = "https://s.example"\nfuture = 1\n')
    assert server.host == "s.example"


def test_docker_certificate_files_serve_where_there_is_no_hosts_toml(tmp_path: Path) -> None:
    place = tmp_path / "127.0.0.1:5000"
    place.mkdir()
    for name in ("b.crt", "a.crt", "me.cert", "me.key"):
        (place / name).touch()
    (host,) = find_hosts(tmp_path, "127.0.0.1:5000") or ()
    assert host.origin == "https://127.0.0.1:5000"
    assert host.tls.ca_files == (place / "a.crt", place / "b.crt")
    assert host.tls.client_certificate == place / "me.cert"
    assert host.tls.client_key == place / "me.key"


def test_an_empty_folder_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "h").mkdir()
    assert find_hosts(tmp_path, "h") == (RegistryHost("https://h"),)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("server = ", "Invalid value"),
        ("server = 3", "server is not text"),
        ('server = "https://"', "not a host's address"),
        ('server = "https://user:pw@h"', "not a host's address"),
        ('server = "https://h?x=1"', "not a host's address"),
        ('server = "https://h:0"', "not a host's address"),
        ('server = "https://[h"', "not a host's address"),
        ("host = 3", "host is not a table"),
        ('host = {"https://a" = 3}', "host is not a table"),
        ('capabilities = ["fly"]', "unknown capability"),
        ("capabilities = 3", "neither text nor a list"),
        ("ca = [3]", "neither text nor a list"),
        ("client = 3", "client is neither"),
        ("client = [[3, 4]]", "not a pair"),
        ('client = [["a", "b", "c"]]', "not a pair"),
        ('client = ["a", "b"]', "more than one client"),
        ('skip_verify = "no"', "neither true nor false"),
        ("header = 3", "header is not a table"),
        ("dial_timeout = 3", "dial_timeout is no time"),
        ('dial_timeout = "3 s"', "not a duration"),
        ('dial_timeout = "0s"', "dial_timeout is no time"),
        ('proxy = "socks5://p"', "proxy is not"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(
    tmp_path: Path, text: str, why: str
) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        hosts(tmp_path, text)
    assert str(tmp_path / IMAGE.host / "hosts.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0.0), ("1h2m3s", 3723.0), ("1.5s", 1.5), ("250ms", 0.25)]
)
def test_durations_are_written_as_go_writes_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
