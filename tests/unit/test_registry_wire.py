"""Addresses, redirects, ranges, Retry-After, errors and lists of referrers, as values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.errors import (
    FormatError,
    NotFoundError,
    PageinError,
    RemoteDeniedError,
    RemoteError,
    RemoteProtocolError,
    RemoteUnavailableError,
)
from pagein.types import ByteRange, Digest
from pagein.wire.referrers import (
    descriptor_of,
    fallback_tag,
    manifest_media_type,
    merge_into_fallback,
    parse_referrers,
    select_referrers,
    subject_of,
    without_referrers,
)
from pagein.wire.registry import (
    MAX_REDIRECTS,
    OCI_INDEX,
    OCI_MANIFEST,
    Endpoint,
    Redirects,
    bytes_to_skip,
    error_of,
    next_page,
    parse_retry_after,
    redact,
    registry_message,
    resolve_location,
    uploaded_bytes,
    with_digest,
)

D = Digest.of(b"d")


@pytest.mark.parametrize(
    ("host", "plain", "origin"),
    [
        ("docker.io", False, "https://registry-1.docker.io"),
        ("ghcr.io", False, "https://ghcr.io"),
        ("ghcr.io", True, "http://ghcr.io"),
        ("127.0.0.1:5000", False, "http://127.0.0.1:5000"),
        ("localhost", False, "http://localhost"),
        ("[::1]:5000", False, "http://[::1]:5000"),
        ("localhost.example", False, "https://localhost.example"),
        ("127.0.0.1.example:80", False, "https://127.0.0.1.example:80"),
    ],
)
def test_plain_http_is_for_loopback_or_on_request(host: str, plain: bool, origin: str) -> None:
    assert Endpoint.of(host, "a/b", plain_http=plain).origin == origin


def test_addresses_follow_the_distribution_spec() -> None:
    at = Endpoint("https://h", "a/b")
    assert at.manifest("v1") == "https://h/v2/a/b/manifests/v1"
    assert at.manifest(D) == f"https://h/v2/a/b/manifests/{D}"
    assert at.blob(D) == f"https://h/v2/a/b/blobs/{D}"
    assert at.mount(D, "c/d") == f"https://h/v2/a/b/blobs/uploads/?mount={D}&from=c/d"
    assert at.referrers(D, "x/y+z") == f"https://h/v2/a/b/referrers/{D}?artifactType=x/y%2Bz"


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/v2/x?a=b#frag", "https://h:1/v2/x?a=b"),
        ("https://other/x", "https://other/x"),
        ("//other/x", "https://other/x"),
        ("up/1", "https://h:1/v2/a/up/1"),
    ],
)
def test_a_location_may_be_relative(location: str, url: str) -> None:
    assert resolve_location("https://h:1/v2/a/b", location) == url


@pytest.mark.parametrize(
    "location", [None, "", "ftp://x/", "http://h/down", "https://h/\r\nX", "https://[x"]
)
def test_a_location_that_cannot_be_used_is_refused(location: str | None) -> None:
    with pytest.raises(RemoteProtocolError):
        resolve_location("https://h/", location)


def test_redirects_end() -> None:
    hops = Redirects("https://h/0")
    for number in range(1, MAX_REDIRECTS + 1):
        assert hops.follow("GET", 307, {"location": f"/{number}"})
    assert not hops.follow("GET", 200, {})
    with pytest.raises(RemoteProtocolError, match="more than 5"):
        hops.follow("GET", 307, {"location": "/6"})


def test_a_circle_of_redirects_is_found() -> None:
    hops = Redirects("https://h/0")
    hops.follow("GET", 302, {"location": "/1"})
    with pytest.raises(RemoteProtocolError, match="circle"):
        hops.follow("GET", 302, {"location": "https://h/0"})


@pytest.mark.parametrize(
    ("target", "left"),
    [
        ("https://h/x", False),
        ("https://H:443/x", False),
        ("https://h:444/x", True),
        ("https://h.evil/x", True),
    ],
)
def test_another_scheme_host_or_port_is_another_origin(target: str, left: bool) -> None:
    hops = Redirects("https://h/0")
    hops.follow("GET", 307, {"location": target})
    assert hops.left_origin is left


def test_a_post_is_not_turned_into_something_else() -> None:
    with pytest.raises(RemoteProtocolError, match="answers POST with 302"):
        Redirects("https://h/0").follow("POST", 302, {"location": "/1"})
    assert Redirects("https://h/0").follow("POST", 307, {"location": "/1"})


SPAN = ByteRange(10, 5)


@pytest.mark.parametrize("total", ["100", "*", "15"])
def test_the_right_partial_answer_is_accepted(total: str) -> None:
    headers = {"content-range": f"bytes 10-14/{total}", "content-length": "5"}
    assert bytes_to_skip(206, headers, SPAN, "blob") == 0


def test_a_whole_answer_is_skipped_into() -> None:
    assert bytes_to_skip(200, {"content-length": "100"}, SPAN, "blob") == 10
    assert bytes_to_skip(200, {}, SPAN, "blob") == 10


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        (206, {}, RemoteProtocolError),
        (206, {"content-range": "bytes 0-4/100"}, RemoteProtocolError),
        (206, {"content-range": "bytes 10-20/100"}, RemoteProtocolError),
        (206, {"content-range": "bytes 10-12/100"}, RemoteProtocolError),
        (206, {"content-range": "bytes 10-12/13"}, FormatError),
        (206, {"content-range": "bytes 10-14/9", "content-length": "4"}, RemoteProtocolError),
        (206, {"content-range": "bytes 10-14/99", "content-length": "x"}, RemoteProtocolError),
        (206, {"content-type": "multipart/byteranges; boundary=x"}, RemoteProtocolError),
        (200, {"content-length": "12"}, FormatError),
        (200, {"content-encoding": "gzip"}, RemoteProtocolError),
    ],
)
def test_a_wrong_answer_to_a_range_is_refused(
    status: int, headers: dict[str, str], error: type[PageinError]
) -> None:
    with pytest.raises(error) as caught:
        bytes_to_skip(status, headers, SPAN, "blob")
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
        ("999999999", 86400.0),
        ("soon", None),
        ("-3", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, now_s=60.0) == seconds


@given(st.text(max_size=100))
def test_any_retry_after_is_a_time_within_a_day_or_nothing(value: str) -> None:
    seconds = parse_retry_after(value, now_s=0.0)
    assert seconds is None or 0 <= seconds <= 86400


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RemoteError),
        (401, RemoteDeniedError),
        (403, RemoteDeniedError),
        (404, NotFoundError),
        (416, FormatError),
        (429, RemoteUnavailableError),
        (503, RemoteUnavailableError),
        (304, RemoteProtocolError),
    ],
)
def test_a_status_becomes_one_kind_of_error(status: int, kind: type[PageinError]) -> None:
    body = b'{"errors":[{"code":"X","message":"says the registry"}]}'
    error = error_of(status, {"retry-after": "3"}, body, what="reading a", host="h", now_s=0)
    assert type(error) is kind
    assert str(error) == f"reading a: h answered {status}: says the registry"
    if isinstance(error, RemoteUnavailableError):
        assert error.retry_after == 3
    if status == 401:
        assert error.hint is not None
        assert "docker login h" in error.hint


def test_a_registrys_words_are_one_line_without_signed_addresses() -> None:
    text = "see\nhttps://s3/x?X-Amz-Signature=abc&y=1 \x1b[31m now"
    body = json.dumps({"errors": [{"message": text}]}).encode()
    assert registry_message(body) == "see https://s3/x [31m now"
    assert len(registry_message(json.dumps({"errors": [{"message": "x" * 999}]}).encode())) == 300
    assert registry_message(b"<html>") == ""
    assert registry_message(b'{"errors":null}') == ""


def test_redaction_drops_user_query_and_fragment() -> None:
    assert redact("https://u:p@h:1/a?sig=1#f") == "https://h:1/a"


@pytest.mark.parametrize(
    ("value", "held"),
    [("0-99", 100), ("bytes=0-99", 100), ("0-0", 0), ("5-9", None), ("", None)],
)
def test_an_uploads_range_says_how_much_it_holds(value: str, held: int | None) -> None:
    assert uploaded_bytes({"range": value}) == held


def test_the_digest_is_added_to_an_uploads_query() -> None:
    assert with_digest("https://h/u", D) == f"https://h/u?digest={D}"
    assert with_digest("https://h/u?s=a%3D", D) == f"https://h/u?s=a%3D&digest={D}"


def test_the_next_page_stays_at_the_same_host() -> None:
    base = "https://h/v2/a/tags/list"
    assert next_page(base, {"link": '</v2/a/tags/list?last=x&n=2>; rel="next"'}) == (
        "https://h/v2/a/tags/list?last=x&n=2"
    )
    assert next_page(base, {}) is None
    with pytest.raises(RemoteProtocolError, match="another host"):
        next_page(base, {"link": '<https://evil/x>; rel="next"'})


def _manifest(**more: Any) -> bytes:
    config = {"mediaType": "application/x.config", "digest": str(D), "size": 1}
    return json.dumps({"schemaVersion": 2, "config": config, "layers": [], **more}).encode()


def test_a_manifests_type_is_the_headers_or_its_own() -> None:
    assert manifest_media_type(_manifest(), f"{OCI_MANIFEST}; charset=utf-8", "m") == OCI_MANIFEST
    assert manifest_media_type(_manifest(mediaType=OCI_MANIFEST), "text/plain", "m") == OCI_MANIFEST
    assert manifest_media_type(_manifest(), "application/json", "m") == OCI_MANIFEST
    index = b'{"schemaVersion":2,"manifests":[]}'
    assert manifest_media_type(index, "application/json", "m") == OCI_INDEX


def test_schema_1_is_named() -> None:
    prettyjws = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    for data, kind in ((b'{"schemaVersion":1}', "application/json"), (b"{}", prettyjws)):
        with pytest.raises(FormatError, match="schema 1"):
            manifest_media_type(data, kind, "manifest a:b")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b"<html>"])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="is not a manifest"):
        manifest_media_type(data, "text/html", "m")


def test_a_manifest_with_two_types_is_refused() -> None:
    with pytest.raises(FormatError, match="its sender says"):
        manifest_media_type(_manifest(mediaType=OCI_INDEX), OCI_MANIFEST, "m")


def test_a_referrers_descriptor_keeps_type_and_annotations() -> None:
    data = _manifest(artifactType="x/a", annotations={"k": "v"})
    assert descriptor_of(data, OCI_MANIFEST) == {
        "mediaType": OCI_MANIFEST,
        "digest": str(Digest.of(data)),
        "size": len(data),
        "artifactType": "x/a",
        "annotations": {"k": "v"},
    }
    assert descriptor_of(_manifest(), OCI_MANIFEST)["artifactType"] == "application/x.config"
    assert subject_of(_manifest(subject={"digest": str(D)})) == D
    assert subject_of(_manifest()) is None
    assert fallback_tag(D) == f"sha256-{D.hex}"


def test_merging_keeps_the_entries_of_others_and_lists_each_digest_once() -> None:
    foreign = {"mediaType": "x", "digest": "sha512:00", "size": 1, "data": "AA==", "urls": ["u"]}
    stale = {"mediaType": OCI_MANIFEST, "digest": str(D), "size": 9}
    ours = {**stale, "artifactType": "x/a"}
    index = json.dumps({"schemaVersion": 2, "manifests": [stale, foreign, stale]}).encode()
    merged = merge_into_fallback(index, ours)
    assert merged is not None
    value = json.loads(merged)
    assert value["manifests"] == [foreign, ours]
    assert value["mediaType"] == OCI_INDEX
    assert merge_into_fallback(merged, ours) is None
    assert json.loads(without_referrers(merged, {str(D)}))["manifests"] == [foreign]


def test_referrers_are_filtered_here_and_ordered_by_age() -> None:
    def entry(name: str, kind: str, created: str = "") -> dict[str, Any]:
        made: dict[str, Any] = {"digest": str(Digest.of(name.encode())), "artifactType": kind}
        if created:
            made["annotations"] = {"org.opencontainers.image.created": created}
        return made

    entries = [
        entry("new", "x/a", "2026-01-02T00:00:00Z"),
        entry("old", "x/a", "2025-01-02T00:00:00Z"),
        entry("other", "x/b"),
        entry("old", "x/a", "2025-01-02T00:00:00Z"),
        {"digest": 7},
    ]
    found = parse_referrers(json.dumps({"manifests": entries}).encode())
    assert select_referrers(found, "x/a") == [Digest.of(b"old"), Digest.of(b"new")]


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"manifests":[7]}', b"[" * 100_000])
def test_a_broken_list_of_referrers_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="list of referrers"):
        parse_referrers(data)
