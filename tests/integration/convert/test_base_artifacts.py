"""New versions of an image: what is stored again, what is not, and how the old version is found."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zstandard
from flat_device import extract, index_of
from layout_images import Layout, Member, file, noise, tar

from pagein.build.base import BaseWish, NamedBase, PreviousBase
from pagein.build.publish import publish
from pagein.build.report import Converted, ConvertOptions, Reused
from pagein.errors import NotFoundError, UsageError
from pagein.format.manifest import ImageManifest, parse_manifest
from pagein.store.layout import LayoutRepository
from pagein.store.registry import RegistryRepository
from pagein.store.repository import WritableRepository
from pagein.testing.docker_registry import DockerRegistry
from pagein.testing.registry import FakeRegistry
from pagein.transport.http import HttpTransport
from pagein.types import ImageName

SECTOR = 256 << 10


def library(changed: frozenset[int] = frozenset(), count: int = 300) -> list[Member]:
    """About 3.6 MB of small files; those in ``changed`` have another content."""
    return [
        file(f"lib/module{i:03}.py", noise(f"{i}{'new' if i in changed else ''}", 9000 + 17 * i))
        for i in range(count)
    ]


def large(name: str, seed: str) -> Member:
    return file(f"data/{name}", noise(seed, 3 * SECTOR + 99))


V1 = [*library(), large("same", "same"), large("other", "old"), file("gone", noise("gone", 5000))]
CHANGED = frozenset({3, 77, 78, 150, 299})
V2 = [
    *library(CHANGED),
    large("same", "same"),
    large("other", "new"),
    file("lib/module077a.py", noise("added", 4000)),
]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "layout")
    made.image("v1", [tar([file("etc/os", b"debian" * 900)]), tar(V1)])
    made.image("v2", [tar([file("etc/os", b"debian" * 900)]), tar(V2)])
    return made


def make(
    layout: Layout,
    version: str,
    destination: WritableRepository | None = None,
    base: BaseWish = (),
    **options: Any,
) -> Converted | Reused:
    source = LayoutRepository(layout.path)
    conversion = ConvertOptions(
        **{"sector_size": SECTOR, "jobs": 2, **options.pop("options", {})},
        scratch=layout.path.parent / "scratch",
    )
    done = publish(source, version, destination or source, conversion, base=base, **options)
    return done.images[0].converted


def converted(*arguments: Any, **options: Any) -> Converted:
    done = make(*arguments, **options)
    assert isinstance(done, Converted)
    return done


def sent(done: Converted) -> int:
    return sum(pack.size for pack in done.packs if pack.sent)


def changed_bytes() -> int:
    """What the contents that only V2 has take with zstd, by themselves."""
    old = {data for _, data in V1}
    data = b"".join(data for _, data in V2 if data not in old)
    return len(zstandard.ZstdCompressor(level=3).compress(data))


def contents(tree: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()
    }


# -- what is stored again


def test_a_new_version_stores_what_changed_and_every_byte_comes_back(
    layout: Layout, tmp_path: Path
) -> None:
    first = converted(layout, "v1")
    plain = sent(first)
    second = converted(layout, "v2", base=PreviousBase("v2"))
    assert plain > 4_000_000
    assert sent(second) < 1.2 * changed_bytes()
    old, new = (
        {ref.digest for ref in index_of(layout.path, done).sectors} for done in (first, second)
    )
    fetched = sum(
        ref.stored for ref in index_of(layout.path, second).sectors if ref.digest in new - old
    )
    assert fetched < 1.2 * changed_bytes(), "a node that has the first version"
    tree = extract(layout.path, second, tmp_path / "out")
    assert contents(tree) == {info.name: data for info, data in V2} | {"etc/os": b"debian" * 900}


def test_the_artifact_lists_the_packs_of_its_base_that_it_uses_and_no_other(
    layout: Layout,
) -> None:
    layout.image("other", [tar([large("else", "else")])])
    unrelated = converted(layout, "other")
    first = converted(layout, "v1")
    source = LayoutRepository(layout.path)
    bases = (NamedBase(source, "other"), NamedBase(source, "v1"))
    second = converted(layout, "v2", base=bases)
    digests = [pack.digest for pack in second.packs]
    assert index_of(layout.path, second).packs == tuple(digests)
    assert {pack.digest for pack in first.packs} < set(digests)
    assert not {pack.digest for pack in unrelated.packs} & set(digests)
    assert [pack.layer is None for pack in second.packs].count(False) == 1
    assert second.reused_size + sent(second) == sum(
        {ref.digest: ref.stored for ref in index_of(layout.path, second).sectors}.values()
    )


def test_an_image_that_only_adds_a_layer_gives_the_same_digests_with_its_base_and_without(
    layout: Layout, tmp_path: Path
) -> None:
    lower = [tar([file("etc/os", b"debian" * 900)]), tar(V1)]
    layout.image("v3", [*lower, tar([*library(frozenset({9}), 20), file("lib/.wh.module100.py")])])
    converted(layout, "v1")
    based = converted(layout, "v3", base=PreviousBase("v3"))
    elsewhere = LayoutRepository(tmp_path / "elsewhere")
    assert converted(layout, "v3", elsewhere).artifact == based.artifact


def test_the_digests_hang_on_the_source_and_the_base_alone(layout: Layout, tmp_path: Path) -> None:
    digests = set()
    for jobs in (1, 2, 5):
        copy = LayoutRepository(tmp_path / f"copy{jobs}")
        converted(layout, "v1", copy, tag="v1")
        done = converted(layout, "v2", copy, PreviousBase("v2"), options={"jobs": jobs})
        digests.add(done.artifact)
    assert len(digests) == 1
    without = converted(layout, "v2", LayoutRepository(tmp_path / "without"), ())
    assert without.artifact not in digests


def test_versions_that_follow_each_other_keep_sectors_of_the_first(layout: Layout) -> None:
    tags = [f"r{number}" for number in range(1, 9)]
    for number, tag in enumerate(tags):
        members = [*library(frozenset({number * 30})), large("same", "same")]
        layout.image(tag, [tar([file("etc/os", b"debian" * 900)]), tar(members)])
    repository = LayoutRepository(layout.path)
    converted(layout, "r1")
    for before, tag in pairwise(tags):
        done = converted(layout, tag, base=(NamedBase(repository, before),))
        # Two files of 14 KB, and at most a quarter of a sector that the deltas before have filled.
        assert sent(done) < 28_000 + SECTOR // 4
    assert len(done.packs) <= 2 + len(tags)


def test_a_sector_of_which_little_is_left_is_not_kept(layout: Layout) -> None:
    keep = frozenset(range(300)) - frozenset(range(0, 300, 12))
    layout.image("v3", [tar(library(keep))])
    converted(layout, "v1")
    done = converted(layout, "v3", base=PreviousBase("v3"))
    assert done.reused_size == 0


def test_a_base_with_a_damaged_pack_costs_bytes_and_no_file_is_wrong(
    layout: Layout, tmp_path: Path
) -> None:
    first = converted(layout, "v1")
    for pack in first.packs:
        path = layout.path / "blobs/sha256" / pack.digest.hex
        path.write_bytes(bytes(path.stat().st_size))
    layout.image("v3", [tar(library(frozenset(range(0, 300, 15))))])
    done = converted(layout, "v3", base=PreviousBase("v3"))
    assert done.reused_size == 0
    assert len(contents(extract(layout.path, done, tmp_path / "out"))) == 300


def test_of_too_many_packs_those_that_give_most_are_used(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pagein.build.base.MAX_BASE_PACKS", 1)
    first = converted(layout, "v1")
    largest = max(first.packs, key=lambda pack: pack.size)
    done = converted(layout, "v2", base=PreviousBase("v2"))
    assert [pack.digest for pack in done.packs if pack.layer is None] == [largest.digest]
    assert len(done.packs) == 3, "the lowest layer's pack is made again"


def some_files(chance: random.Random, names: list[str]) -> dict[str, bytes]:
    sizes = (1, 4096, 9000, 60_000, 130_000, SECTOR - 1, SECTOR + 7)
    return {
        name: noise(chance.random(), chance.choices(sizes, (9, 9, 9, 4, 2, 1, 1))[0])
        for name in names
    }


@pytest.mark.parametrize("seed", range(6))
def test_whatever_changes_every_byte_of_the_new_version_comes_back(
    seed: int, tmp_path: Path
) -> None:
    """Files change, go, come, move and take another's content; in an order of the tar's own."""
    chance = random.Random(seed)
    layout = Layout(tmp_path / "layout")
    names = [f"d{i % 7}/f{i:02}" for i in range(80)]
    files = some_files(chance, names)
    trees: list[dict[str, bytes]] = []
    for version in range(4):
        trees.append(dict(files))
        members = [file(name, data) for name, data in files.items()]
        chance.shuffle(members)
        half = chance.randrange(len(members))
        layout.image(f"v{version}", [tar(members[:half]), tar(members[half:])])
        files.update(some_files(chance, chance.sample(names, 5)))
        for name in chance.sample(sorted(files), 3):
            files[f"moved/{version}-{name[-3:]}"] = files.pop(name)
        one, two = chance.sample(sorted(files), 2)
        files[one] = files[two]
        files.update(some_files(chance, [f"new/{version}-{i}" for i in range(4)]))
    repository = LayoutRepository(layout.path)
    converted(layout, "v0")
    for version in range(1, 4):
        named = [NamedBase(repository, f"v{one}") for one in range(version)]
        base = tuple(chance.sample(named, chance.randint(1, len(named))))
        done = converted(layout, f"v{version}", base=base)
        tree = extract(layout.path, done, tmp_path / f"out{version}")
        assert contents(tree) == trees[version]


# -- how the base is found


def test_a_named_base_must_be_converted_and_have_the_same_sectors(layout: Layout) -> None:
    source = LayoutRepository(layout.path)
    named = (NamedBase(source, "v1"),)
    with pytest.raises(NotFoundError, match=r"base v1 in oci:.* has not been converted"):
        converted(layout, "v2", base=named)
    converted(layout, "v1", options={"sector_size": 512 << 10})
    with pytest.raises(UsageError, match="has sectors of 524288 bytes, not 262144"):
        converted(layout, "v2", base=named)


def test_a_previous_version_of_other_sectors_or_none_at_all_is_no_base(layout: Layout) -> None:
    converted(layout, "v1", options={"sector_size": 512 << 10})
    done = converted(layout, "v2", base=PreviousBase("v2"))
    assert done.reused_size == 0


def test_the_artifact_that_has_the_wanted_tag_is_the_previous_version(
    layout: Layout, tmp_path: Path
) -> None:
    target = LayoutRepository(tmp_path / "target")
    converted(layout, "v1", target, PreviousBase("latest"), tag="latest")
    done = converted(layout, "v2", target, PreviousBase("latest"), tag="latest")
    assert done.reused_size > 3_000_000


class Places:
    """Repositories of one registry, with the two versions in ``app``."""

    def __init__(self, host: str, layout: Layout, transport: HttpTransport) -> None:
        self.host = host
        self._transport = transport
        self.app = self["app"]
        source = LayoutRepository(layout.path)
        for tag in ("v1", "v2"):
            self.push(source, tag, self.app)

    def __getitem__(self, name: str) -> RegistryRepository:
        return RegistryRepository(ImageName.parse(f"{self.host}/{name}:v1"), self._transport)

    def push(self, source: LayoutRepository, tag: str, target: RegistryRepository) -> None:
        blob = source.manifest(tag)
        manifest = parse_manifest(blob.data)
        assert isinstance(manifest, ImageManifest)
        for part in (manifest.config, *manifest.layers):
            target.put_blob(part.digest, source.read_blob(part.digest, limit=part.size))
        target.put_manifest(blob, tag=tag)


@pytest.fixture(scope="module")
def transport() -> Iterator[HttpTransport]:
    made = HttpTransport(timeout_s=10)
    yield made
    made.close()


@pytest.fixture(params=["fake", "fake-old", "real"])
def places(
    request: pytest.FixtureRequest, layout: Layout, tmp_path: Path, transport: HttpTransport
) -> Iterator[Places]:
    if request.param == "real":
        if not DockerRegistry.installed():
            pytest.skip("needs docker-registry")
        with DockerRegistry(tmp_path / "registry") as real:
            yield Places(real.host, layout, transport)
    else:
        with FakeRegistry(referrers_api=request.param == "fake") as fake:
            yield Places(fake.host, layout, transport)


def test_in_a_registry_the_version_before_is_found_and_not_sent_again(
    layout: Layout, places: Places
) -> None:
    options = {"options": {"sector_size": SECTOR}}
    first = converted(layout, "v1", places.app, PreviousBase("v1"), **options)
    assert first.reused_size == 0
    second = converted(layout, "v2", places.app, PreviousBase("v2"), **options)
    assert sent(second) < 1.2 * changed_bytes()
    assert second.reused_size > 3_000_000


def test_a_base_in_another_repository_of_the_registry_is_mounted(
    layout: Layout, places: Places
) -> None:
    converted(layout, "v1", places.app)
    other = places["team/other"]
    done = converted(layout, "v2", other, (NamedBase(places.app, "v1"),))
    assert sent(done) < 1.2 * changed_bytes()
    for pack in done.packs:
        assert other.has_blob(pack.digest)


def test_a_base_that_cannot_be_mounted_is_stored_again(
    layout: Layout, transport: HttpTransport, tmp_path: Path
) -> None:
    with FakeRegistry(mounts=False) as registry, FakeRegistry() as another:
        places = Places(registry.host, layout, transport)
        converted(layout, "v1", places.app)
        for other in (places["team/other"], Places(another.host, layout, transport)["app"]):
            done = converted(layout, "v2", other, (NamedBase(places.app, "v1"),))
            assert done.reused_size == 0
            assert all(pack.sent for pack in done.packs)


def test_a_repository_of_many_tags_costs_a_bounded_number_of_requests(
    layout: Layout, transport: HttpTransport
) -> None:
    with FakeRegistry() as registry:
        places = Places(registry.host, layout, transport)
        converted(layout, "v1", places.app, tag="v1-lazy")
        image = places.app.manifest("v1")
        for number in range(50):
            registry.content("app").put_manifest(image, f"v0.{number}")
        registry.forget_requests()
        done = converted(layout, "v2", places.app, PreviousBase("v2"))
        assert done.reused_size > 3_000_000
        asked = [one.path for one in registry.requests("GET") if "/blobs/" not in one.path]
        assert len(asked) <= 1 + 1 + 4 + 2, "referrers, tags, four images, the first one's artifact"


# -- what is converted already


def test_what_is_converted_is_tagged_and_bound_but_not_read(layout: Layout) -> None:
    first = converted(layout, "v1")
    repository = LayoutRepository(layout.path)
    image = repository.manifest("v1")
    layers = parse_manifest(image.data)
    assert isinstance(layers, ImageManifest)
    for layer in layers.layers:
        (layout.path / "blobs/sha256" / layer.digest.hex).unlink()
    again = make(layout, "v1", tag="lazy", bind="v1")
    assert isinstance(again, Reused)
    assert again.artifact == first.artifact == repository.manifest("lazy").digest
    assert again.index == first.index
    assert again.packs == tuple(
        type(pack)(pack.digest, pack.size, None, sent=False) for pack in first.packs
    )
    assert isinstance(make(layout, "v1", bind="v1"), Reused)
    assert repository.manifest("v1").digest != image.digest


def test_other_sectors_and_force_convert_again(layout: Layout) -> None:
    first = converted(layout, "v1")
    assert converted(layout, "v1", force=True).artifact == first.artifact
    other = converted(layout, "v1", options={"sector_size": 512 << 10})
    assert other.artifact != first.artifact


def test_an_artifact_bound_elsewhere_is_not_taken_for_one_here(
    layout: Layout, tmp_path: Path
) -> None:
    converted(layout, "v1", bind="v1")
    target = LayoutRepository(tmp_path / "target")
    converted(layout, "v1", target, tag="v1")
    assert isinstance(make(layout, "v1", target, tag="v1"), Reused)
