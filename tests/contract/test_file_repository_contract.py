"""The repository contract, for an OCI layout, the same in a tar file, and both as skopeo knows."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pagein.store.archive import OciArchiveRepository
from pagein.store.layout import LayoutRepository
from pagein.store.repository import Repository, WritableRepository
from pagein.testing.contract_repository import RepositoryContract, WritableRepositoryContract, fill


class TestLayout(WritableRepositoryContract):
    @pytest.fixture
    def repository(self, tmp_path: Path) -> WritableRepository:
        return LayoutRepository(tmp_path / "layout")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    fill(LayoutRepository(folder / "layout"))
    path = folder / "image.tar"
    subprocess.run(["tar", "-C", folder / "layout", "-cf", path, "."], check=True)
    return path


class TestOciArchive(RepositoryContract):
    @pytest.fixture
    def filled(self, archive: Path) -> Repository:
        return OciArchiveRepository(archive)
