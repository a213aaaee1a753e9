"""The registry client against a registry that misbehaves on request. Requests are counted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagein.errors import (
    FormatError,
    PageinError,
    RemoteDeniedError,
    RemoteError,
    RemoteProtocolError,
    RemoteUnavailableError,
)
from pagein.store.credentials import Credential, StaticCredentials
from pagein.store.registry import RegistryRepository
from pagein.store.registry_session import Clock
from pagein.store.registry_upload import MONOLITHIC
from pagein.testing.contract_repository import (
    ABSENT,
    ARTIFACT_TYPE,
    BLOB,
    SUBJECT,
    artifact_for,
    fill,
    manifest_of,
)
from pagein.testing.faults import Fault
from pagein.testing.registry import BasicLogin, BearerLogin, FakeRegistry
from pagein.transport.http import HttpTransport
from pagein.types import ByteRange, Digest, ImageName

D = Digest.of(BLOB)
SPAN = ByteRange(1_000_000, 500_000)
WANTED = BLOB[SPAN.start : SPAN.stop]


class Waits:
    """A clock that is moved by pauses only."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.now_s = 1000.0

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now_s, lambda: self.now_s, self.pause)

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds


@pytest.fixture
def transport() -> Iterator[HttpTransport]:
    made = HttpTransport(timeout_s=5)
    yield made
    made.close()


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as made:
        yield made


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def repository(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits
) -> RegistryRepository:
    made = _repository(registry, transport, waits)
    fill(made)
    registry.forget_requests()
    return made


def _repository(
    registry: FakeRegistry,
    transport: HttpTransport,
    waits: Waits,
    credential: Credential | None = None,
    chunk_size: int = 1 << 40,
) -> RegistryRepository:
    return RegistryRepository(
        ImageName.parse(f"{registry.host}/team/app"),
        transport,
        StaticCredentials(credential) if credential else None,
        chunk_size=chunk_size,
        clock=waits.clock,
    )


# -- ranges


def test_a_range_costs_one_request(registry: FakeRegistry, repository: RegistryRepository) -> None:
    assert bytes(repository.read_range(D, SPAN)) == WANTED
    assert [r.range for r in registry.requests()] == [SPAN.header()]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_server_that_ignores_ranges_is_skipped_into(
    registry: FakeRegistry, repository: RegistryRepository, chunked: bool
) -> None:
    registry.fault(Fault(ignore_range=True, chunked=chunked))
    assert bytes(repository.read_range(D, SPAN)) == WANTED
    assert bytes(repository.read_range(D, SPAN)) == WANTED
    assert len(registry.requests()) == 2


def test_a_range_in_chunks_is_read(registry: FakeRegistry, repository: RegistryRepository) -> None:
    registry.fault(Fault(chunked=True))
    assert bytes(repository.read_range(D, SPAN)) == WANTED


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(truncate_to=1000), RemoteUnavailableError),
        (Fault(truncate_to=1000, chunked=True), RemoteUnavailableError),
        (Fault(truncate_to=0), RemoteUnavailableError),
        (Fault(drop=True), RemoteUnavailableError),
        (Fault(headers={"Content-Range": "bytes 0-499999/3145728"}), RemoteProtocolError),
        (Fault(headers={"Content-Range": ""}), RemoteProtocolError),
        (Fault(headers={"Content-Length": "499999"}), RemoteProtocolError),
        (Fault(headers={"Content-Length": "a"}), RemoteProtocolError),
        (Fault(status=416), FormatError),
        (Fault(status=500), RemoteUnavailableError),
        (Fault(status=206, body=b"x" * 500_000), RemoteProtocolError),
        (Fault(status=200, body=b"short"), FormatError),
        (Fault(status=200, body=b"short", chunked=True), FormatError),
        (Fault(status=307), RemoteProtocolError),
        (Fault(status=403), RemoteDeniedError),
    ],
)
def test_a_bad_answer_to_a_range_is_one_attempt_and_never_bytes(
    registry: FakeRegistry, repository: RegistryRepository, fault: Fault, error: type[PageinError]
) -> None:
    registry.fault(fault)
    with pytest.raises(error) as caught:
        repository.read_range(D, SPAN)
    assert type(caught.value) is error
    assert len(registry.requests()) == 1
    assert bytes(repository.read_range(D, SPAN)) == WANTED


def test_a_server_without_ranges_is_not_read_for_ever(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    huge = str(1 << 40)
    registry.fault(Fault(ignore_range=True, truncate_to=10, headers={"Content-Length": huge}))
    with pytest.raises(RemoteProtocolError, match="ignores Range"):
        repository.read_range(D, ByteRange(1 << 30, 4096))


def test_a_slow_server_is_given_up(registry: FakeRegistry, waits: Waits) -> None:
    registry.content("team/app").add_blob(BLOB)
    registry.fault(Fault(delay_s=1.0))
    transport = HttpTransport(timeout_s=0.1)
    with pytest.raises(RemoteUnavailableError, match="no answer in time"):
        _repository(registry, transport, waits).read_range(D, SPAN)
    transport.close()


@pytest.mark.parametrize("sized", [True, False])
def test_a_server_that_trickles_is_given_up_though_it_always_sends(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits, sized: bool
) -> None:
    registry.content("team/app").add_blob(BLOB)
    registry.fault(Fault(trickle_s=0.002, headers={} if sized else {"Content-Length": ""}))
    slow = RegistryRepository(
        ImageName.parse(f"{registry.host}/team/app"),
        transport,
        clock=waits.clock,
        range_timeout_s=0.05,
    )
    with pytest.raises(RemoteUnavailableError, match="no answer in time"):
        slow.read_range(D, SPAN)
    assert bytes(slow.read_range(D, SPAN)) == WANTED


# -- redirects


def test_redirected_blobs_never_see_the_authorization(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits
) -> None:
    registry.login = BasicLogin("ann", "pw")
    registry.content("team/app").add_blob(BLOB)
    with FakeRegistry() as storage:
        registry.redirect_blobs_to(storage)
        repository = _repository(registry, transport, waits, Credential("ann", "pw"))
        for _ in range(3):
            assert bytes(repository.read_range(D, SPAN)) == WANTED
        assert repository.read_blob(D, limit=len(BLOB)) == BLOB
        assert {r.authorization for r in storage.requests()} == {None}
        # 401, then with the login; the target is known for the next ranges; then the whole blob.
        assert len(registry.requests()) == 3
        assert len(storage.requests()) == 4


def test_a_target_that_ran_out_is_resolved_again(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits
) -> None:
    registry.content("team/app").add_blob(BLOB)
    repository = _repository(registry, transport, waits)
    with FakeRegistry() as storage:
        registry.redirect_blobs_to(storage)
        repository.read_range(D, SPAN)
        registry.resign()
        assert bytes(repository.read_range(D, SPAN)) == WANTED
        assert (len(registry.requests()), len(storage.requests())) == (2, 3)
        waits.now_s += 61
        repository.read_range(D, SPAN)
        assert len(registry.requests()) == 3


def test_a_target_that_went_away_is_forgotten(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits
) -> None:
    registry.content("team/app").add_blob(BLOB)
    repository = _repository(registry, transport, waits)
    with FakeRegistry() as storage:
        registry.redirect_blobs_to(storage)
        repository.read_range(D, SPAN)
    with pytest.raises(RemoteUnavailableError):
        repository.read_range(D, SPAN)
    registry.blob_storage = None
    assert bytes(repository.read_range(D, SPAN)) == WANTED


def test_a_refusal_by_the_storage_shows_no_signature(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits
) -> None:
    registry.content("team/app").add_blob(BLOB)
    repository = _repository(registry, transport, waits)
    with FakeRegistry() as storage:
        registry.redirect_blobs_to(storage)
        for status, error in ((403, RemoteDeniedError), (503, RemoteUnavailableError)):
            storage.fault(Fault(status=status))
            with pytest.raises(error) as caught:
                repository.read_range(D, SPAN)
            assert registry.signature not in str(caught.value)
        storage.fault(Fault(drop=True))
        with pytest.raises(RemoteUnavailableError) as dropped:
            repository.read_range(D, SPAN)
        assert registry.signature not in str(dropped.value)


def test_a_circle_of_redirects_ends(registry: FakeRegistry, repository: RegistryRepository) -> None:
    here = f"/v2/team/app/blobs/{D}"
    registry.fault(Fault(status=307, headers={"Location": here + "?again"}), times=2)
    with pytest.raises(RemoteProtocolError, match="circle"):
        repository.read_range(D, SPAN)
    assert len(registry.requests()) == 2


# -- authorization


def test_a_token_is_asked_for_once_and_renewed_once_after_a_401(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits
) -> None:
    login = registry.login = BearerLogin("ann", "pw")
    registry.content("team/app").add_blob(BLOB)
    repository = _repository(registry, transport, waits, Credential("ann", "pw"))
    for _ in range(3):
        repository.read_range(D, SPAN)
    assert len(registry.requests(path="/token")) == 1
    assert len(registry.requests(path="/blobs/")) == 4
    login.expire()
    assert bytes(repository.read_range(D, SPAN)) == WANTED
    assert len(registry.requests(path="/token")) == 2
    assert len(registry.requests(path="/blobs/")) == 6


def test_a_token_near_its_end_is_renewed_before_it_is_refused(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits
) -> None:
    login = registry.login = BearerLogin(lifetime_s=100)
    registry.content("team/app").add_blob(BLOB)
    repository = _repository(registry, transport, waits)
    repository.read_range(D, SPAN)
    waits.now_s += 95
    login.expire()
    repository.read_range(D, SPAN)
    # Challenged without a header, not refused with an old one.
    assert [r.authorization is None for r in registry.requests(path="/blobs/")] == [
        *(True, False),
        *(True, False),
    ]


def test_a_registry_that_refuses_every_token_is_asked_twice(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits
) -> None:
    class Useless(BearerLogin):
        def issue(self) -> str:
            return "useless"

    registry.login = Useless()
    with pytest.raises(RemoteDeniedError, match="401: authentication required") as caught:
        _repository(registry, transport, waits).read_range(D, SPAN)
    assert caught.value.hint is not None
    assert "docker login" in caught.value.hint
    assert len(registry.requests(path="/blobs/")) == 2
    assert len(registry.requests(path="/token")) == 1


def test_many_threads_share_one_token_request(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits
) -> None:
    registry.login = BearerLogin()
    registry.content("team/app").add_blob(BLOB)
    registry.fault(Fault(delay_s=0.3), path="/token")
    repository = _repository(registry, transport, waits)
    got: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: got.append(bytes(repository.read_range(D, SPAN))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [WANTED] * 8
    assert len(registry.requests(path="/token")) == 1


def test_an_identity_token_is_exchanged(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits
) -> None:
    registry.login = BearerLogin("ann", "pw", refresh_token="R")
    registry.content("team/app").add_blob(BLOB)
    credential = Credential("ann", "", "R")
    repository = _repository(registry, transport, waits, credential)
    assert bytes(repository.read_range(D, SPAN)) == WANTED
    assert [r.method for r in registry.requests(path="/token")] == ["POST"]


@pytest.mark.parametrize("login", [BasicLogin("ann", "pw"), BearerLogin("ann", "pw")])
@pytest.mark.parametrize("given", [None, Credential("ann", "wrong")])
def test_a_wrong_login_says_so_and_shows_no_password(
    registry: FakeRegistry,
    transport: HttpTransport,
    waits: Waits,
    login: BasicLogin | BearerLogin,
    given: Credential | None,
) -> None:
    registry.login = login
    with pytest.raises(RemoteDeniedError) as caught:
        _repository(registry, transport, waits, given).manifest("v1")
    assert caught.value.hint is not None
    assert f"docker login {registry.host}" in caught.value.hint
    assert "wrong" not in str(caught.value)
    assert len(registry.requests()) <= 3


def test_a_push_token_serves_reads_and_a_mount_asks_for_both_repositories(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits
) -> None:
    login = registry.login = BearerLogin()
    data = b"shared"
    digest = registry.content("other/app").add_blob(data)
    repository = _repository(registry, transport, waits)
    assert repository.mount_blob(digest, from_repository="other/app")
    assert sorted(login.scopes) == ["repository:other/app:pull", "repository:team/app:pull,push"]
    assert repository.read_blob(digest, limit=10) == data
    assert len(registry.requests(path="/token")) == 1


# -- repeats


def test_a_manifest_is_asked_for_again_after_a_passing_failure(
    registry: FakeRegistry, repository: RegistryRepository, waits: Waits
) -> None:
    registry.fault(Fault(status=503), times=2)
    registry.fault(Fault(drop=True))
    assert repository.manifest("v1") == SUBJECT
    assert len(registry.requests()) == 4
    assert len(waits.pauses) == 3
    assert waits.pauses[0] < waits.pauses[2]


def test_repeats_end(registry: FakeRegistry, repository: RegistryRepository) -> None:
    body = json.dumps({"errors": [{"code": "X", "message": "on fire"}]}).encode()
    registry.fault(Fault(status=500, body=body), times=100)
    with pytest.raises(RemoteUnavailableError, match="500: on fire"):
        repository.manifest("v1")
    assert len(registry.requests()) == 4


def test_retry_after_is_obeyed(
    registry: FakeRegistry, repository: RegistryRepository, waits: Waits
) -> None:
    registry.fault(Fault(status=429, headers={"Retry-After": "7"}))
    assert repository.manifest("v1") == SUBJECT
    assert 7 <= waits.pauses[0] < 11


def test_a_long_retry_after_is_handed_up(
    registry: FakeRegistry, repository: RegistryRepository, waits: Waits
) -> None:
    registry.fault(Fault(status=429, headers={"Retry-After": "3600"}), times=2)
    with pytest.raises(RemoteUnavailableError, match="429") as caught:
        repository.manifest("v1")
    assert caught.value.retry_after == 3600
    with pytest.raises(RemoteUnavailableError) as range_error:
        repository.read_range(D, SPAN)
    assert range_error.value.retry_after == 3600
    assert not waits.pauses


def test_a_refusal_is_not_repeated(
    registry: FakeRegistry, repository: RegistryRepository, waits: Waits
) -> None:
    registry.fault(Fault(status=400), times=9)
    with pytest.raises(RemoteError, match="400"):
        repository.manifest("v1")
    assert len(registry.requests()) == 1
    assert not waits.pauses


# -- manifests and blobs


def test_a_manifest_with_a_wrong_digest_is_refused(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    other = manifest_of(annotations={"evil": "yes"})
    lie = {"Docker-Content-Digest": str(SUBJECT.digest), "Content-Type": other.media_type}
    registry.fault(Fault(status=200, body=other.data, headers=lie))
    with pytest.raises(FormatError, match="has digest"):
        repository.manifest(SUBJECT.digest)


def test_the_digest_that_the_registry_claims_is_not_believed(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    lie = {"Docker-Content-Digest": str(ABSENT), "Content-Type": SUBJECT.media_type}
    registry.fault(Fault(status=200, body=SUBJECT.data, headers=lie))
    assert repository.manifest("v1").digest == SUBJECT.digest


@pytest.mark.parametrize("chunked", [False, True])
def test_a_manifest_over_4_mib_is_refused(
    registry: FakeRegistry, repository: RegistryRepository, chunked: bool
) -> None:
    registry.fault(Fault(status=200, body=b" " * ((4 << 20) + 1), chunked=chunked))
    with pytest.raises(FormatError, match="over 4194304 bytes"):
        repository.manifest("v1")


def test_a_corrupt_blob_is_refused(registry: FakeRegistry, repository: RegistryRepository) -> None:
    registry.fault(Fault(corrupt=True), times=2)
    with pytest.raises(FormatError, match="has digest"):
        repository.read_blob(D, limit=len(BLOB))
    with repository.open_blob(D) as stream, pytest.raises(FormatError, match="has digest"):
        stream.read()


def test_a_broken_stream_goes_on_where_it_broke(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    registry.fault(Fault(truncate_to=1 << 20))
    registry.fault(Fault(truncate_to=1 << 20))
    registry.fault(Fault(status=503))
    with repository.open_blob(D, size=len(BLOB)) as stream:
        assert stream.read() == BLOB
    starts = [int((r.range or "bytes=0-")[6:].partition("-")[0]) for r in registry.requests()]
    assert starts == [0, 1 << 20, 2 << 20, 2 << 20]


def test_a_broken_stream_goes_on_without_ranges_too(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    registry.fault(Fault(truncate_to=1 << 20))
    registry.fault(Fault(ignore_range=True))
    with repository.open_blob(D, size=len(BLOB)) as stream:
        assert stream.read() == BLOB


def test_a_stream_that_never_moves_ends(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    registry.fault(Fault(truncate_to=0), times=1000)
    with repository.open_blob(D) as stream, pytest.raises(RemoteUnavailableError):
        stream.read()
    assert len(registry.requests()) < 10


# -- uploads


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes((BLOB * 6)[: MONOLITHIC + 12345])
    return path


def test_a_broken_upload_goes_on_where_it_broke(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits, big: Path
) -> None:
    repository = _repository(registry, transport, waits)
    registry.fault(Fault(read_at_most=5 << 20), method="PATCH")
    told: list[int] = []
    data = big.read_bytes()
    assert repository.put_blob(Digest.of(data), big, progress=told.append)
    assert registry.content("team/app").blobs[Digest.of(data)] == data
    assert sum(told) == len(data)
    methods = [r.method for r in registry.requests()]
    assert methods == ["HEAD", "POST", "PATCH", "GET", "PATCH", "PUT"]
    assert not registry.uploads


def test_a_forgotten_upload_begins_anew(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits, big: Path
) -> None:
    repository = _repository(registry, transport, waits)
    registry.fault(Fault(read_at_most=5 << 20), method="PATCH")
    registry.fault(Fault(status=404), path="/uploads/")
    data = big.read_bytes()
    assert repository.put_blob(Digest.of(data), big)
    assert registry.content("team/app").blobs[Digest.of(data)] == data
    methods = [r.method for r in registry.requests()]
    assert methods == ["HEAD", "POST", "PATCH", "GET", "DELETE", "POST", "PATCH", "PUT"]


def test_an_upload_in_chunks(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits, big: Path
) -> None:
    repository = _repository(registry, transport, waits, chunk_size=6 << 20)
    registry.fault(Fault(status=503), method="PATCH", skip=1)
    data = big.read_bytes()
    assert repository.put_blob(Digest.of(data), big)
    assert registry.content("team/app").blobs[Digest.of(data)] == data
    assert len(registry.requests("PATCH")) == 4


def test_an_upload_whose_last_answer_was_lost_is_found(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits, big: Path
) -> None:
    repository = _repository(registry, transport, waits)
    data = big.read_bytes()
    registry.content("team/app").add_blob(data)
    registry.fault(Fault(status=404), method="HEAD")
    registry.fault(Fault(drop=True), method="PUT")
    assert repository.put_blob(Digest.of(data), big)
    assert [r.method for r in registry.requests()][-2:] == ["PUT", "HEAD"]


def test_an_upload_that_is_always_broken_ends(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits, big: Path
) -> None:
    repository = _repository(registry, transport, waits)
    registry.fault(Fault(status=503), method="PATCH", times=1000)
    with pytest.raises(RemoteUnavailableError, match="pushing blob"):
        repository.put_blob(Digest.of(big.read_bytes()), big)
    assert len(registry.requests("PATCH")) == 6


def test_a_registry_that_does_not_mount_is_left_clean(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits
) -> None:
    registry.mounts = False
    repository = _repository(registry, transport, waits)
    assert not repository.mount_blob(D, from_repository="other/app")
    assert not registry.uploads


# -- referrers


def test_pages_of_referrers_and_tags_are_followed(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    registry.page_size = 2
    more = [artifact_for(SUBJECT, annotations={"n": str(n)}) for n in range(5)]
    for number, manifest in enumerate(more):
        repository.put_manifest(manifest, tag=f"t{number}")
    found = repository.referrers(SUBJECT.digest, artifact_type=ARTIFACT_TYPE)
    assert found[1:] == [manifest.digest for manifest in more]
    assert list(repository.tags()) == ["t0", "t1", "t2", "t3", "t4", "v1"]
    assert not any("sha256-" in r.path for r in registry.requests())


def test_a_registry_without_the_api_is_asked_for_it_once(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    registry.referrers_api = False
    repository.put_manifest(artifact_for(SUBJECT, annotations={"n": "2"}))
    for _ in range(3):
        assert len(repository.referrers(SUBJECT.digest, artifact_type=ARTIFACT_TYPE)) == 1
    assert len(registry.requests(path="/referrers/")) == 1


def test_two_writers_of_the_fallback_list_do_not_lose_each_other(
    registry: FakeRegistry, transport: HttpTransport, waits: Waits
) -> None:
    registry.referrers_api = False
    fill(_repository(registry, transport, waits))
    artifacts = [artifact_for(SUBJECT, annotations={"n": str(n)}) for n in range(3)]
    threads = [
        threading.Thread(
            target=_repository(registry, transport, waits).put_manifest, args=(artifact,)
        )
        for artifact in artifacts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = _repository(registry, transport, waits).referrers(
        SUBJECT.digest, artifact_type=ARTIFACT_TYPE
    )
    # Read, merge, write has no lock in the protocol: the last writer's own entry is always there.
    assert set(found) & {artifact.digest for artifact in artifacts}


def test_nobody_listens(transport: HttpTransport, waits: Waits) -> None:
    with FakeRegistry() as gone:
        repository = _repository(gone, transport, waits)
    with pytest.raises(RemoteUnavailableError, match="connection refused"):
        repository.read_range(D, SPAN)
