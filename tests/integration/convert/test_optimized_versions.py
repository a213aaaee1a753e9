"""Conversions that meet optimized artifacts: the same image again, and its next version."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from flat_device import blob, extract, index_of
from layout_images import Layout, file, noise, tar

from pagein.build.base import NamedBase, PreviousBase
from pagein.build.optimize import optimize
from pagein.build.publish import PublishedImage, publish
from pagein.build.report import Converted, ConvertOptions, Optimized, Reused
from pagein.errors import NotFoundError
from pagein.format.manifest import ImageManifest, parse_manifest
from pagein.format.platforms import Platform
from pagein.format.profile import Profile, ProfiledFile, Touch
from pagein.store.layout import LayoutRepository
from pagein.store.registry import RegistryRepository
from pagein.store.resolve import resolve
from pagein.testing.registry import FakeRegistry
from pagein.transport.http import HttpTransport
from pagein.types import Digest, ImageName

SECTOR = 256 << 10
SPREAD = ("lib/010.py", "lib/150.py", "lib/290.py")
FILES = {f"lib/{i:03}.py": noise(i, 9000 + 17 * i) for i in range(300)} | {
    "data/large": noise("large", 3 * SECTOR + 99)
}


def profile_of(names: Sequence[str]) -> Profile:
    """A profile of a start of `FILES` that reads these from end to end."""
    return Profile(
        recorded="2026-01-31T12:00:00Z",
        reference="here/app:v1",
        source=Digest.of(b"source"),
        read_ahead_kb=32,
        seconds=1.0,
        files=tuple(ProfiledFile.of(name.encode(), len(FILES[name])) for name in names),
        touches=tuple(Touch(number, 0, len(FILES[name]), 0) for number, name in enumerate(names)),
    )


START = profile_of(["data/large", *SPREAD])
OTHER = profile_of(SPREAD[::-1])


class _NoLayer(LayoutRepository):
    """A source whose layers must not be read."""

    def open_blob(self, digest: Digest, /, *, size: int | None = None) -> Any:
        raise AssertionError(f"{digest} was opened")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "layout")
    made.image("v1", layers(FILES))
    return made


def layers(files: dict[str, bytes]) -> list[bytes]:
    return [tar([file(name, data) for name, data in files.items()])]


def convert(layout: Layout, reference: str = "v1", /, **more: Any) -> PublishedImage:
    options = ConvertOptions(sector_size=SECTOR, jobs=2, scratch=layout.path.parent / "scratch")
    source = more.pop("source", LayoutRepository(layout.path))
    return publish(source, reference, LayoutRepository(layout.path), options, **more).images[0]


def found(layout: Layout, tag: str) -> Digest:
    """The artifact that a node would mount."""
    artifact = resolve(LayoutRepository(layout.path), tag, Platform("linux", "amd64")).artifact
    assert artifact is not None
    return artifact.digest


def contents(tree: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()
    }


# -- the same image again


def test_a_converted_image_is_optimized_without_reading_its_layers(layout: Layout) -> None:
    plain = convert(layout).converted
    again = convert(layout, source=_NoLayer(layout.path), profile=START, tag="hot", bind="v1")
    assert isinstance(again.converted, Reused)
    assert (again.converted.artifact, again.converted.optimized_from) == (plain.artifact, None)
    assert again.optimized is not None
    assert again.optimized.optimized_from == plain.artifact
    hot = again.optimized.artifact
    assert found(layout, "v1") == hot
    repository = LayoutRepository(layout.path)
    assert repository.manifest("hot").digest == hot
    entries = json.loads(repository.manifest("v1").data)["manifests"]
    assert [entry["digest"] for entry in entries] == [str(again.source), str(hot)]


@pytest.mark.parametrize("bind", [None, "v1"])
def test_another_profile_is_for_the_plain_artifact_of_the_optimized_one_that_is_found(
    layout: Layout, bind: str | None
) -> None:
    first = convert(layout, profile=START, bind=bind)
    again = convert(layout, source=_NoLayer(layout.path), profile=OTHER, bind=bind)
    assert isinstance(again.converted, Reused)
    assert first.optimized is not None
    assert again.optimized is not None
    assert again.converted.artifact == first.optimized.artifact
    assert again.converted.optimized_from == first.converted.artifact
    assert again.optimized.optimized_from == first.converted.artifact
    assert found(layout, "v1") == again.optimized.artifact != first.optimized.artifact


def test_without_a_profile_an_optimized_image_stays_optimized(layout: Layout) -> None:
    first = convert(layout, profile=START)
    again = convert(layout, tag="lazy", bind="v1")
    assert first.optimized is not None
    assert isinstance(again.converted, Reused)
    assert again.optimized is None
    assert again.converted.artifact == first.optimized.artifact == found(layout, "v1")
    assert LayoutRepository(layout.path).manifest("lazy").digest == first.optimized.artifact


def test_force_with_a_profile_converts_again_and_makes_the_same(layout: Layout) -> None:
    first = convert(layout, profile=START)
    again = convert(layout, profile=START, force=True)
    assert isinstance(again.converted, Converted)
    assert again.converted.artifact == first.converted.artifact
    assert first.optimized is not None
    assert again.optimized is not None
    assert (again.optimized.artifact, again.optimized.was_there) == (first.optimized.artifact, True)


def test_where_the_plain_artifact_is_gone_the_image_is_converted_again(layout: Layout) -> None:
    first = convert(layout, profile=START)
    blob(layout.path, str(first.converted.artifact)).unlink()
    again = convert(layout, profile=OTHER)
    assert isinstance(again.converted, Converted)
    assert again.converted.artifact == first.converted.artifact
    assert again.optimized is not None
    assert again.optimized.optimized_from == first.converted.artifact


def test_optimized_already_it_costs_ten_requests_and_no_byte_of_a_layer(layout: Layout) -> None:
    transport = HttpTransport(timeout_s=10)
    with FakeRegistry() as registry:
        there = RegistryRepository(ImageName.parse(f"{registry.host}/app:v1"), transport)
        source = LayoutRepository(layout.path)
        image = parse_manifest(source.manifest("v1").data)
        assert isinstance(image, ImageManifest)
        for part in (image.config, *image.layers):
            there.put_blob(part.digest, source.read_blob(part.digest, limit=part.size))
        there.put_manifest(source.manifest("v1"), tag="v1")
        options = ConvertOptions(sector_size=SECTOR, scratch=layout.path.parent / "scratch")

        def run() -> PublishedImage:
            return publish(there, "v1", there, options, profile=START, tag="hot").images[0]

        first = run()
        registry.forget_requests()
        again = run()
        assert again.optimized is not None
        assert first.optimized is not None
        assert again.optimized.was_there
        assert again.optimized.artifact == first.optimized.artifact
        asked = [(one.method, one.path) for one in registry.requests() if one.path != "/v2/"]
        assert {method for method, _ in asked} == {"GET"}
        # image, configuration, referrers, optimized, plain, index; the first two of those again,
        # the plain one's index, the tag
        assert len(asked) == 10
        heavy = {layer.digest for layer in image.layers} | {p.digest for p in first.converted.packs}
        assert not any(str(digest) in path for digest in heavy for _, path in asked)
    transport.close()


# -- the next version


def hot_pack(layout: Layout, first: PublishedImage) -> Digest:
    assert first.optimized is not None
    packs = set(index_of(layout.path, first.optimized).packs)
    [pack] = packs - {pack.digest for pack in first.converted.packs}
    return pack


@pytest.mark.parametrize("named", [True, False], ids=["named", "previous"])
def test_a_base_that_is_optimized_gives_what_its_plain_artifact_has_and_nothing_hot(
    layout: Layout, tmp_path: Path, named: bool
) -> None:
    # Of three small files far from each other, the only sector is that of the copies.
    few = {name: FILES[name] for name in SPREAD} | {"data/large": FILES["data/large"]}
    few["data/new"] = noise("new", SECTOR)
    layout.image("v2", layers(few))
    first = convert(layout, profile=profile_of(SPREAD))
    hot = hot_pack(layout, first)
    repository = LayoutRepository(layout.path)
    base = (NamedBase(repository, "v1"),) if named else PreviousBase("v2")
    done = convert(layout, "v2", base=base).converted
    assert isinstance(done, Converted)
    assert first.optimized is not None
    copies = index_of(layout.path, first.optimized).sectors[0]
    assert copies.pack == hot
    assert copies.digest in {ref.digest for ref in index_of(layout.path, done).sectors}
    assert done.reused_size > 3 * SECTOR, "the large file"
    assert hot not in {pack.digest for pack in done.packs}
    assert {pack.digest for pack in done.packs if not pack.sent} == {
        pack.digest for pack in first.converted.packs
    }
    assert contents(extract(layout.path, done, tmp_path / "out")) == few


def test_an_artifact_named_as_a_base_is_its_plain_one_too(layout: Layout) -> None:
    files = FILES | {"lib/003.py": noise("new", 9000)}
    layout.image("v2", layers(files))
    first = convert(layout, profile=START, tag="hot")
    repository = LayoutRepository(layout.path)
    done = convert(layout, "v2", base=(NamedBase(repository, "hot"),)).converted
    assert isinstance(done, Converted)
    assert hot_pack(layout, first) not in {pack.digest for pack in done.packs}
    assert sum(pack.size for pack in done.packs if pack.sent) < 20_000
    blob(layout.path, str(first.converted.artifact)).unlink()
    with pytest.raises(NotFoundError, match="was optimized from"):
        convert(layout, "v2", base=(NamedBase(repository, "hot"),), force=True)


def test_the_next_version_is_optimized_with_the_old_profile_as_far_as_it_fits(
    layout: Layout, tmp_path: Path
) -> None:
    files = FILES | {"lib/150.py": noise("longer", 20_000), "lib/011.py": noise("new", 9000)}
    del files["lib/290.py"]
    layout.image("v2", layers(files))
    first = convert(layout, profile=START)
    second = convert(layout, "v2", base=PreviousBase("v2"), profile=START)
    assert isinstance(second.converted, Converted)
    done = second.optimized
    assert isinstance(done, Optimized)
    match = done.match
    assert (match.files, match.changed, match.absent) == (2, 1, 1)
    assert match.bytes_skipped == len(FILES["lib/150.py"]) + len(FILES["lib/290.py"])
    assert done.optimized_from == second.converted.artifact
    assert found(layout, "v2") == done.artifact
    packs = index_of(layout.path, done).packs
    assert {pack.digest for pack in first.converted.packs} < set(packs)
    assert hot_pack(layout, first) not in packs
    assert contents(extract(layout.path, done, tmp_path / "out")) == files


def test_a_profile_given_later_finds_the_sectors_in_the_packs_of_the_base(layout: Layout) -> None:
    layout.image("v2", layers(FILES | {"lib/003.py": noise("new", 9000)}))
    first = convert(layout)
    second = convert(layout, "v2", base=PreviousBase("v2"))
    repository = LayoutRepository(layout.path)
    artifact = resolve(repository, "v2", Platform("linux", "amd64")).artifact
    assert artifact is not None
    done = optimize(repository, artifact, START)
    old = {pack.digest for pack in first.converted.packs}
    hot = index_of(layout.path, done).sectors[: done.hot_sectors]
    assert done.whole_sectors == sum(ref.pack in old for ref in hot) == 3
    assert done.optimized_from == second.converted.artifact
