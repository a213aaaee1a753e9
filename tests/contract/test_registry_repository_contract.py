"""The repository contract, for a registry: Debian's own, and the fake with and without an API."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagein.store.registry import RegistryRepository
from pagein.store.repository import Repository, WritableRepository
from pagein.testing.contract_repository import RepositoryContract, WritableRepositoryContract, fill
from pagein.testing.docker_registry import DockerRegistry
from pagein.testing.registry import FakeRegistry
from pagein.transport.http import HttpTransport
from pagein.types import ImageName

_numbers = itertools.count()


@pytest.fixture(scope="module")
def transport() -> Iterator[HttpTransport]:
    made = HttpTransport(timeout_s=10)
    yield made
    made.close()


@pytest.fixture(scope="module")
def real_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not DockerRegistry.installed():
        pytest.skip("needs docker-registry")
    with DockerRegistry(Path(tmp_path_factory.mktemp("registry"))) as registry:
        yield registry.host


@pytest.fixture(scope="module", params=[True, False], ids=["api", "fallback-tag"])
def fake_host(request: pytest.FixtureRequest) -> Iterator[str]:
    with FakeRegistry(referrers_api=request.param) as registry:
        yield registry.host


def _fresh(host: str, transport: HttpTransport) -> RegistryRepository:
    return RegistryRepository(ImageName.parse(f"{host}/team/app{next(_numbers)}"), transport)


class TestDockerRegistry(WritableRepositoryContract):
    @pytest.fixture
    def repository(self, real_host: str, transport: HttpTransport) -> WritableRepository:
        return _fresh(real_host, transport)


class TestFakeRegistry(WritableRepositoryContract):
    @pytest.fixture
    def repository(self, fake_host: str, transport: HttpTransport) -> WritableRepository:
        return _fresh(fake_host, transport)


@pytest.fixture(scope="module", params=[False, True], ids=["fallback tag", "referrers API"])
def served(
    request: pytest.FixtureRequest, transport: HttpTransport
) -> Iterator[RegistryRepository]:
    with FakeRegistry(referrers_api=False) as behind:
        source = _fresh(behind.host, transport)
        fill(source)
        with FakeRegistry(serving={"served": source}, referrers_api=request.param) as front:
            yield RegistryRepository(ImageName.parse(f"{front.host}/served"), transport)


class TestFakeRegistryThatServesAnotherRepository(RepositoryContract):
    @pytest.fixture
    def filled(self, served: RegistryRepository) -> Repository:
        return served
