"""A converted image gets a hot region: what is read and sent, what stays, what is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zstandard
from flat_device import blob, extract, index_of
from layout_images import Layout, file, hard_link, noise, tar, words

from pagein.build.optimize import optimize
from pagein.build.publish import Published, bind_optimized, publish
from pagein.build.report import ConvertOptions, Optimized
from pagein.errors import FormatError, NotFoundError, UsageError
from pagein.format.index import Index
from pagein.format.platforms import Platform
from pagein.format.profile import Profile, ProfiledFile, Touch
from pagein.store.layout import LayoutRepository
from pagein.store.registry import RegistryRepository
from pagein.store.resolve import FoundArtifact, resolve
from pagein.testing.registry import FakeRegistry
from pagein.transport.http import HttpTransport
from pagein.types import Digest, ImageName

SECTOR = 256 << 10
AMD64 = Platform("linux", "amd64")
WEIGHTS = noise("weights", 3 * SECTOR + 9000)
CONTENTS: dict[str, bytes] = {
    "model/weights": WEIGHTS,
    "lib/big.so": words("so", 5 * SECTOR + 1),
    "gap": noise("g", SECTOR) + bytes(2 * SECTOR) + b"end",
    **{f"py/{i:03}.py": words(i, 331 * i + 1) for i in range(60)},
}


def image_layers(**changed: bytes) -> list[bytes]:
    """One layer of `CONTENTS`; a second name and a file of the same content among them."""
    members = [file(name, data) for name, data in (CONTENTS | changed).items()]
    twin = file("py/twin.py", (CONTENTS | changed)["py/050.py"])
    return [tar([*members, twin, hard_link("py/link.py", "py/040.py")])]


def profile_of(*touches: tuple[str, int, int], **facts: Any) -> Profile:
    """A profile of touches of `CONTENTS`: name, offset, length."""
    names = list(dict.fromkeys(name for name, _, _ in touches))
    files = tuple(ProfiledFile.of(name.encode(), len(CONTENTS[name])) for name in names)
    return Profile(
        recorded="2026-01-31T12:00:00Z",
        reference="here/app:v1",
        source=Digest.of(b"source"),
        read_ahead_kb=32,
        seconds=1.0,
        files=files,
        touches=tuple(Touch(names.index(name), at, size, 0) for name, at, size in touches),
        **facts,
    )


def whole(name: str) -> tuple[str, int, int]:
    return name, 0, len(CONTENTS[name])


START = profile_of(
    whole("py/050.py"),
    ("lib/big.so", 2 * SECTOR + 8192, 40960),
    whole("model/weights"),
    ("lib/big.so", 0, 4096),
    *(whole(f"py/{i:03}.py") for i in range(59, 20, -3)),
)


@dataclass(frozen=True, slots=True)
class Site:
    """A layout with the image ``v1``, converted."""

    layout: Layout
    published: Published

    @property
    def repository(self) -> LayoutRepository:
        return LayoutRepository(self.layout.path)

    @property
    def plain(self) -> Index:
        return index_of(self.layout.path, self.published.images[0].converted)

    def found(self, reference: str = "v1") -> FoundArtifact:
        found = resolve(self.repository, reference, AMD64).artifact
        assert found is not None
        return found

    def optimize(self, profile: Profile = START, *, jobs: int = 2, **more: Any) -> Optimized:
        options = ConvertOptions(jobs=jobs, scratch=self.layout.path.parent / "scratch")
        options = replace(options, level=more.pop("level", 3))
        return optimize(self.repository, self.found(), profile, options, **more)


def convert_into(layout: Layout, reference: str = "v1", **more: Any) -> Published:
    scratch = layout.path.parent / "scratch"
    repository = LayoutRepository(layout.path)
    options = ConvertOptions(sector_size=SECTOR, scratch=scratch)
    return publish(repository, reference, repository, options, **more)


@pytest.fixture
def make_site(tmp_path: Path) -> Callable[[str], Site]:
    def made(name: str) -> Site:
        (tmp_path / name).mkdir()
        layout = Layout(tmp_path / name / "layout")
        layout.image("v1", image_layers())
        return Site(layout, convert_into(layout))

    return made


@pytest.fixture
def site(make_site: Callable[[str], Site]) -> Site:
    return make_site("here")


def test_the_layer_data_stays_as_it_is_and_whole_sectors_are_stored_once(site: Site) -> None:
    done = site.optimize()
    plain, index = site.plain, index_of(site.layout.path, done)
    assert index.sectors[index.hot_sectors :] == plain.sectors
    for old, new in zip(plain.sectors, index.sectors[index.hot_sectors :], strict=True):
        assert (old.pack, old.offset, old.stored) == (new.pack, new.offset, new.stored)
    hot = index.sectors[: index.hot_sectors]
    weights = [Digest.of(WEIGHTS[at : at + SECTOR]) for at in range(0, 3 * SECTOR, SECTOR)]
    assert [ref.digest for ref in hot[1:4]] == weights
    assert {ref.pack for ref in hot[1:4]} <= set(plain.packs)
    assert done.whole_sectors == 3
    assert (index.config, index.source, index.read_ahead_kb) == (plain.config, plain.source, 32)


def test_the_manifest_lists_the_same_packs_and_one_more_and_says_what_it_was_made_of(
    site: Site,
) -> None:
    before = json.loads(site.found().data)
    done = site.optimize(level=7)
    after = json.loads(site.found().data)
    assert site.found().digest == done.artifact
    assert after["subject"] == before["subject"]
    assert after["layers"][1:-1] == before["layers"][1:]
    pack = after["layers"][-1]
    assert blob(site.layout.path, pack["digest"]).stat().st_size == pack["size"] == done.pack_size
    assert after["annotations"] == {
        "vnd.pagein.optimized-from": str(done.optimized_from),
        "vnd.pagein.profile": str(done.profile),
        "vnd.pagein.hot-level": "7",
    }


def test_fsck_extracts_every_file_as_it_was(site: Site, tmp_path: Path) -> None:
    done = site.optimize()
    tree = extract(site.layout.path, done, tmp_path / "work")
    found = {
        str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()
    }
    twin = {"py/twin.py": CONTENTS["py/050.py"], "py/link.py": CONTENTS["py/040.py"]}
    del found["gap"]  # fsck.erofs 1.5 fills holes with what it has read before; the kernel does not
    assert found == {name: CONTENTS[name] for name in CONTENTS if name != "gap"} | twin


def test_the_hot_region_is_in_order_of_first_touch_and_a_shared_block_is_there_once(
    site: Site,
) -> None:
    done = site.optimize(profile_of(whole("py/050.py"), whole("gap"), whole("py/010.py")))
    index = index_of(site.layout.path, done)
    region = b"".join(sector_bytes(site, index, number) for number in range(index.hot_sectors))
    small = padded(CONTENTS["py/050.py"])
    assert region.startswith(small + padded(b"end") + padded(CONTENTS["py/010.py"]))
    assert index.hot_sectors == 2  # copies, and the sector of the sparse file that is there
    assert region[SECTOR:] == CONTENTS["gap"][:SECTOR]
    assert done.match.bytes_taken == sum(
        len(CONTENTS[name]) for name in ("py/050.py", "gap", "py/010.py")
    )


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4096)


def sector_bytes(site: Site, index: Index, number: int) -> bytes:
    ref = index.sectors[number]
    with blob(site.layout.path, str(ref.pack)).open("rb") as pack:
        pack.seek(ref.offset)
        stored = pack.read(ref.stored)
    data = stored if ref.stored == SECTOR else zstandard.ZstdDecompressor().decompress(stored)
    assert hashlib.sha256(data).hexdigest() == ref.digest.hex
    return data


def test_the_same_profile_gives_the_same_digests_whatever_the_jobs(
    make_site: Callable[[str], Site],
) -> None:
    one, other = make_site("one").optimize(jobs=1), make_site("other").optimize(jobs=5)
    assert (one.artifact, one.index) == (other.artifact, other.index)
    assert one.pack_size == other.pack_size


def test_an_optimized_image_is_optimized_from_the_plain_one_again(site: Site) -> None:
    first = site.optimize()
    second = site.optimize(profile_of(whole("gap")))
    assert second.optimized_from == first.optimized_from
    assert second.artifact != first.artifact
    assert site.found().digest == second.artifact
    level = site.optimize(profile_of(whole("gap")), level=9)
    assert not level.was_there


def test_where_the_plain_artifact_is_gone_the_error_says_how_to_get_it_back(site: Site) -> None:
    done = site.optimize()
    blob(site.layout.path, str(done.optimized_from)).unlink()
    found = site.found(str_tag(site, done))
    with pytest.raises(NotFoundError, match=str(done.optimized_from)) as error:
        optimize(site.repository, found, profile_of(whole("gap")))
    assert error.value.hint == "convert the image again with --profile"


def str_tag(site: Site, done: Optimized) -> str:
    """Tag the optimized artifact by hand, so that nothing else need be there."""
    entry = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": str(done.artifact),
        "size": done.artifact_size,
        "artifactType": "application/vnd.pagein.image.v1",
        "annotations": {"org.opencontainers.image.ref.name": "by-hand"},
    }
    path = site.layout.path / "index.json"
    path.write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return "by-hand"


def test_a_profile_of_an_older_version_takes_what_is_the_same_and_counts_the_rest(
    site: Site,
) -> None:
    longer = CONTENTS["py/059.py"] + b"#"
    changes = {"py/059.py": longer, "py/056.py": noise("same size", len(CONTENTS["py/056.py"]))}
    gone = profile_of(whole("py/050.py"), whole("py/059.py"), whole("py/056.py"))
    absent = ProfiledFile.of(b"py/gone.py", 5000)
    folder = ProfiledFile.of(b"py", 5000)
    gone = replace_files(gone, (*gone.files, absent, folder))
    site.layout.image("v2", image_layers(**changes))
    convert_into(site.layout, "v2")
    found = resolve(site.repository, "v2", AMD64).artifact
    assert found is not None
    match = optimize(site.repository, found, gone).match
    assert (match.files, match.absent, match.changed) == (2, 2, 1)
    taken = len(CONTENTS["py/050.py"]) + len(CONTENTS["py/056.py"])
    assert (match.bytes_taken, match.bytes_skipped) == (taken, len(CONTENTS["py/059.py"]) + 10000)


def replace_files(profile: Profile, files: tuple[ProfiledFile, ...]) -> Profile:
    more = [
        Touch(number, 0, file.size, 0)
        for number, file in enumerate(files)
        if number >= len(profile.files)
    ]
    facts = {name: getattr(profile, name) for name in profile.__struct_fields__}
    return Profile(**facts | {"files": files, "touches": (*profile.touches, *more)})


def test_a_profile_of_another_image_is_refused_and_nothing_is_published(site: Site) -> None:
    before = sorted(path.name for path in (site.layout.path / "blobs/sha256").iterdir())
    foreign = replace_files(profile_of(), (ProfiledFile.of(b"usr/bin/other", 77),))
    with pytest.raises(UsageError, match="touches nothing of the image"):
        site.optimize(foreign)
    assert sorted(path.name for path in (site.layout.path / "blobs/sha256").iterdir()) == before


def test_touches_that_overlap_beyond_reason_are_refused_in_bounded_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pagein.format.hot._MOST_PIECES", 1000)
    with pytest.raises(FormatError, match="touches more than 1000 pieces"):
        site.optimize(profile_of(*[whole("model/weights")] * 300))


def test_only_sectors_with_copies_are_read_and_each_once(site: Site) -> None:
    read: list[tuple[Digest, int, int]] = []

    class Counting(LayoutRepository):
        def read_range(self, digest, span, /):  # type: ignore[no-untyped-def]
            read.append((digest, span.start, span.stop))
            return super().read_range(digest, span)

    repository = Counting(site.layout.path)
    done = optimize(repository, site.found(), START, ConvertOptions(jobs=1))
    spans = sorted(read)
    assert sum(stop - start for _, start, stop in spans) == done.read_size
    for (pack, _, stop), (after, start, _) in pairwise(spans):
        assert pack != after or stop <= start
    weights = {Digest.of(WEIGHTS[at : at + SECTOR]) for at in range(0, 3 * SECTOR, SECTOR)}
    whole_ones = [ref for ref in site.plain.sectors if ref.digest in weights]
    assert len(whole_ones) == 3
    for ref in whole_ones:
        assert not any(start <= ref.offset < stop for _, start, stop in spans)


def test_a_damaged_sector_of_the_layer_data_is_never_copied(site: Site) -> None:
    ref = site.plain.sectors[-1]
    with blob(site.layout.path, str(ref.pack)).open("r+b") as pack:
        pack.seek(ref.offset + ref.stored // 2)
        byte = pack.read(1)[0]
        pack.seek(-1, 1)
        pack.write(bytes([byte ^ 0xFF]))
    with pytest.raises(FormatError):
        site.optimize()
    assert resolve(site.repository, "v1", AMD64).artifact.digest == site.found().digest  # type: ignore[union-attr]
    assert not site.found().artifact.is_optimized


def test_convert_with_a_profile_publishes_both_and_the_optimized_one_is_found(
    tmp_path: Path,
) -> None:
    layout = Layout(tmp_path / "layout")
    layout.image("v1", image_layers())
    done = convert_into(layout, profile=START, tag="lazy", bind="v1").images[0]
    assert done.optimized is not None
    assert done.optimized.optimized_from == done.converted.artifact
    repository = LayoutRepository(layout.path)
    assert repository.manifest("lazy").digest == done.optimized.artifact
    bound = json.loads(repository.manifest("v1").data)["manifests"]
    assert [entry["digest"] for entry in bound[1:]] == [str(done.optimized.artifact)]
    again = convert_into(layout, profile=START, tag="lazy", bind="v1").images[0]
    assert again.optimized is not None
    assert (again.optimized.artifact, again.optimized.sent_size) == (done.optimized.artifact, 0)


def test_binding_an_optimized_artifact_replaces_the_plain_one(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.image("v1", image_layers())
    repository = LayoutRepository(layout.path)
    source = repository.manifest("v1").digest
    convert_into(layout, bind="v1")
    top = repository.manifest("v1")
    found = resolve(repository, "v1", AMD64).artifact
    assert found is not None
    done = optimize(repository, found, START)
    bind_optimized(repository, "v1", top, source, done)
    entries = json.loads(repository.manifest("v1").data)["manifests"]
    assert [entry["digest"] for entry in entries] == [str(source), str(done.artifact)]
    again = resolve(repository, "v1", AMD64).artifact
    assert again is not None
    assert again.digest == done.artifact


@pytest.fixture
def registry(request: pytest.FixtureRequest) -> Iterator[FakeRegistry]:
    with FakeRegistry(referrers_api=request.param) as made:
        yield made


@pytest.mark.parametrize("registry", [True, False], ids=["api", "fallback-tag"], indirect=True)
def test_the_same_profile_again_sends_nothing_and_asks_little(
    site: Site, registry: FakeRegistry
) -> None:
    transport = HttpTransport(timeout_s=10)
    there = RegistryRepository(ImageName.parse(f"{registry.host}/team/app"), transport)
    for name in (site.layout.path / "blobs/sha256").iterdir():
        there.put_blob(Digest(name.name), name)
    there.put_manifest(site.repository.manifest("v1"), tag="v1")
    plain = site.found()
    there.put_manifest(site.repository.manifest(plain.digest))

    def run() -> Optimized:
        found = resolve(there, "v1", AMD64).artifact
        assert found is not None
        return optimize(there, found, START, tag="hot")

    first = run()
    assert first.sent_size == first.pack_size + first.index_size
    registry.forget_requests()
    again = run()
    asked = [(one.method, one.path) for one in registry.requests() if one.path != "/v2/"]
    assert (again.artifact, again.was_there) == (first.artifact, True)
    assert {method for method, _ in asked} == {"GET"}
    # tag, referrers (or API in vain and fallback tag), optimized, plain, its index, the other tag
    assert len(asked) <= 7
    registry.forget_requests()
    transport.close()
