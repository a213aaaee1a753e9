"""A pack that is sent while it is written: to real and odd registries, and where it goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from layout_images import Layout, file, noise, tar

from pagein.build import pack as pack_module
from pagein.build.growing import AbandonedError, GrowingPack
from pagein.build.publish import publish
from pagein.build.report import Converted, ConvertOptions
from pagein.errors import FormatError
from pagein.store.layout import LayoutRepository
from pagein.store.registry import RegistryRepository
from pagein.testing.docker_registry import DockerRegistry
from pagein.testing.faults import Fault
from pagein.testing.registry import FakeRegistry
from pagein.transport.http import HttpTransport
from pagein.types import Digest, ImageName

SECTOR = 256 << 10


@pytest.fixture(scope="module")
def transport() -> Iterator[HttpTransport]:
    made = HttpTransport(timeout_s=10)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _small_packs_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "_LARGE", 2 * SECTOR)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "layout")
    upper = tar([file("small", b"x" * 5000), file("also", noise("c", 6 * SECTOR))])
    made.image("v1", [tar([file("a", noise("a", 9 * SECTOR))]), upper])
    made.image("bad", [tar([file("a", noise("b", 9 * SECTOR))])], diff_ids=[f"sha256:{'0' * 64}"])
    return made


def convert(layout: Layout, tag: str, target: RegistryRepository) -> Converted:
    options = ConvertOptions(sector_size=SECTOR, jobs=2, scratch=layout.path.parent / "scratch")
    done = publish(LayoutRepository(layout.path), tag, target, options, force=True)
    converted = done.images[0].converted
    assert isinstance(converted, Converted)
    return converted


def repository(host: str, transport: HttpTransport) -> RegistryRepository:
    return RegistryRepository(ImageName.parse(f"{host}/app:v1"), transport)


def read_all(target: RegistryRepository, done: Converted) -> list[int]:
    return [len(target.read_blob(pack.digest, limit=pack.size)) for pack in done.packs]


def test_a_real_registry_takes_packs_as_they_grow(
    layout: Layout, transport: HttpTransport, tmp_path: Path
) -> None:
    if not DockerRegistry.installed():
        pytest.skip("needs docker-registry")
    with DockerRegistry(tmp_path / "registry") as registry:
        target = repository(registry.host, transport)
        done = convert(layout, "v1", target)
        assert read_all(target, done) == [pack.size for pack in done.packs]
        assert all(pack.sent for pack in done.packs)
        patches = [line for line in registry.requests() if line.method == "PATCH"]
    assert len(patches) == 2


@pytest.mark.parametrize(
    "fault",
    [Fault(status=411), Fault(status=503), Fault(read_at_most=300_000)],
    ids=["length-required", "unavailable", "broken"],
)
def test_a_registry_that_wants_a_length_or_breaks_off_gets_the_whole_pack(
    fault: Fault, layout: Layout, transport: HttpTransport
) -> None:
    with FakeRegistry() as registry:
        registry.fault(fault, method="PATCH", path="/blobs/uploads/", times=1)
        target = repository(registry.host, transport)
        done = convert(layout, "v1", target)
        assert read_all(target, done) == [pack.size for pack in done.packs]
        assert all(pack.sent for pack in done.packs)


def test_a_conversion_that_fails_ends_the_upload_and_leaves_no_blob(
    layout: Layout, transport: HttpTransport
) -> None:
    with FakeRegistry() as registry:
        target = repository(registry.host, transport)
        with pytest.raises(FormatError, match="config promises"):
            convert(layout, "bad", target)
        assert registry.content("app").blobs == {}
        assert registry.content("app").manifests == {}
    assert list((layout.path.parent / "scratch").iterdir()) == []


def test_a_reader_waits_for_bytes_and_then_for_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "pack"
    pack = GrowingPack(path)
    seen: list[bytes | Digest] = []

    def follow() -> None:
        at = 0
        while data := pack.read(at, 3):
            seen.append(data)
            at += len(data)
        seen.append(pack.digest())

    reader = threading.Thread(target=follow)
    reader.start()
    for piece, size in ((b"1", 1), (b"2345", 5)):
        with path.open("ab") as file:
            file.write(piece)
        pack.grew(size)
    pack.finish(Digest.of(b"12345"))
    reader.join(5)
    pieces = [one for one in seen if isinstance(one, bytes)]
    assert b"".join(pieces) == b"12345"
    assert seen[-1] == Digest.of(b"12345")


def test_a_reader_of_an_abandoned_pack_is_told(tmp_path: Path) -> None:
    pack = GrowingPack(tmp_path / "pack")
    pack.abandon()
    with pytest.raises(AbandonedError):
        pack.read(0, 1)
    with pytest.raises(AbandonedError):
        pack.digest()


def test_abandoning_a_finished_pack_changes_nothing_but_stopping_does(tmp_path: Path) -> None:
    path = tmp_path / "pack"
    path.write_bytes(b"1")
    pack = GrowingPack(path)
    pack.grew(1)
    pack.finish(Digest.of(b"1"))
    pack.abandon()
    assert pack.read(0, 9) == b"1"
    pack.stop()
    with pytest.raises(AbandonedError):
        pack.read(0, 9)
