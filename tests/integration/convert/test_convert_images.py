"""Whole conversions of small images in an OCI layout, read back with fsck.erofs."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flat_device import blob, extract, index_of, write_device
from layout_images import Layout, Member, file, folder, hard_link, noise, symlink, tar, words

from pagein.build.convert import convert
from pagein.build.report import Converted, ConvertOptions, Stage
from pagein.build.verify import compare_with_source, file_segments
from pagein.errors import FormatError
from pagein.format.erofs.read import read_tree
from pagein.format.manifest import ImageManifest, parse_manifest
from pagein.format.tree import Node
from pagein.store.layout import LayoutRepository
from pagein.types import Encoding, Sector

SECTOR = 256 << 10


def run(
    layout: Layout,
    tag: str = "v1",
    *,
    destination: Any = None,
    on_sector: Callable[[Sector], None] | None = None,
    progress: Any = None,
    **options: Any,
) -> Converted:
    source = LayoutRepository(layout.path)
    blob = source.manifest(tag)
    manifest = parse_manifest(blob.data, blob.media_type)
    assert isinstance(manifest, ImageManifest)
    return convert(
        source,
        manifest,
        blob,
        destination or source,
        ConvertOptions(
            sector_size=SECTOR, scratch=layout.path.parent / "scratch", **{"jobs": 2, **options}
        ),
        on_sector=on_sector,
        progress=progress,
    )


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def small_files(seed: str, count: int) -> list[Member]:
    return [file(f"usr/lib/{seed}-{i:03}.py", words(f"{seed}{i}", 97 * i)) for i in range(count)]


def contents(tree: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(tree)): path.read_bytes()
        for path in tree.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def test_every_byte_comes_back_through_fsck_which_knows_no_holes(
    layout: Layout, tmp_path: Path
) -> None:
    base = [
        folder("usr"),
        *small_files("a", 120),
        file("big", noise("big", 3 * SECTOR + 5)),
        file("whole", words("whole", 2 * SECTOR)),
        file("one-less", noise("x", SECTOR - 1)),
        file("empty"),
        file("small-zeros", bytes(9000)),
    ]
    upper = [
        file("usr/lib/.wh.a-007.py"),
        file("usr/lib/a-008.py", b"new"),
        hard_link("usr/lib/again", "big"),
        symlink("link", "big"),
        *small_files("b", 30),
    ]
    layout.image("v1", [tar(base), tar(upper)])
    done = run(layout)
    expected = {info.name: data for info, data in base + upper if info.isreg()}
    expected.update({"usr/lib/again": expected["big"], "link": b""})
    del expected["usr/lib/a-007.py"], expected["usr/lib/.wh.a-007.py"], expected["link"]
    tree = extract(layout.path, done, tmp_path / "out")
    assert contents(tree) == expected
    assert (tree / "link").readlink() == Path("big")
    assert done.files == sum(info.isreg() for info, _ in base + upper) - 1
    assert done.source_size == sum(
        path.stat().st_size
        for path in (layout.path / "blobs/sha256").iterdir()
        if path.read_bytes()[:2] == b"\x1f\x8b"
    )
    assert set(done.stages) == set(Stage)


def test_our_reader_finds_the_tree_of_the_layers_holes_too(layout: Layout, tmp_path: Path) -> None:
    base = [
        folder("etc", mode=0o1777, uid=70000, gid=3),
        *small_files("a", 50),
        file("gap", noise("g", SECTOR) + bytes(3 * SECTOR) + b"end", mode=0o4755),
        file("zeros", bytes(2 * SECTOR + 7), mtime=-5),
        hard_link("etc/zeros", "zeros"),
        symlink("etc/link", "../gap"),
        file("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        file("caps", b"x", pax_headers={"SCHILY.xattr.user.note": "good", "mtime": "1.5"}),
    ]
    layout.image("v1", [tar(base), tar([file("etc/zeros", b"no more")])])
    index = index_of(layout.path, run(layout))
    device = write_device(layout.path, index, tmp_path / "device")
    start = index.metadata_sectors * index.sector_size

    with device.open("rb") as opened:

        def read_body(offset: int, length: int) -> bytes:
            return os.pread(opened.fileno(), length, start + offset)

        source = LayoutRepository(layout.path)
        manifest = parse_manifest(source.manifest("v1").data)
        assert isinstance(manifest, ImageManifest)

        def differences(tree: Node) -> list[str]:
            found = compare_with_source(
                source, manifest, tree, lambda _, node: file_segments(node, read_body)
            )
            return [str(difference).partition(": expected")[0] for difference in found]

        assert differences(read_tree(index.metadata)) == []
        tree = read_tree(index.metadata)
        names = tree.children
        names[b"etc"].mode = 0o777
        names[b"null"].device = (1, 5)
        names[b"caps"].xattrs = {}
        names[b"gap"].uid = 9
        names[b"zeros"].mtime_ns += 1
        names[b"etc"].children[b"link"].target = b"elsewhere"
        names[b"etc"].children[b"zeros"] = names[b"zeros"]
        names[b"new"] = names[b"caps"]
        library = names[b"usr"].children[b"lib"].children
        del library[b"a-003.py"]
        library[b"a-004.py"].layout = library[b"a-005.py"].layout
        assert differences(tree) == [
            "/usr/lib/a-003.py: name",
            "/new: name",
            "/zeros: hard link",
            "/caps: xattrs",
            "/etc: mode",
            "/etc/link: target",
            "/etc/zeros: mtime",
            "/etc/zeros: size",
            "/etc/zeros: content",
            "/gap: owner",
            "/null: device",
            "/usr/lib/a-004.py: content",
            "/zeros: mtime",
        ]


def test_holes_have_no_address_and_zero_files_no_sector(layout: Layout) -> None:
    layout.image("v1", [tar([file("zeros", bytes(40 * SECTOR))])])
    done = run(layout)
    assert done.packs == ()
    assert done.sectors == 0


def test_a_sparse_file_of_a_terabyte_costs_its_map_only(layout: Layout, tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("needs GNU tar")
    with (tmp_path / "disk").open("wb") as disk:
        disk.truncate(1 << 40)
        disk.seek(700 << 30)
        disk.write(b"in the middle")
    packed = subprocess.run(
        ["tar", "-C", str(tmp_path), "--sparse", "--format=pax", "-cf", "-", "disk"],
        check=True,
        capture_output=True,
    ).stdout
    layout.image("v1", [packed])
    done = run(layout)
    assert done.sectors == 1
    assert done.metadata_size < 8 * (1 << 40) // SECTOR + (64 << 10)
    assert done.index_size < 100_000


def test_identical_files_are_stored_once_also_across_layers(layout: Layout) -> None:
    large, little = noise("same", 2 * SECTOR), noise("little", 5000)
    first = [file("a/large", large), file("a/little", little), file("b/little", little)]
    second = [file("c/large", large), file("c/little", little)]
    layout.image("v1", [tar(first), tar(second)])
    done = run(layout)
    assert len(done.packs) == 1
    assert done.sectors == 3


def test_identical_sectors_of_different_files_share_their_place(layout: Layout) -> None:
    common = noise("common", 4 * SECTOR)
    layout.image("v1", [tar([file("a", common + b"1"), file("b", common + b"2")])])
    done = run(layout)
    assert done.sectors == 10
    assert done.stored_sectors == 6


def test_images_that_share_lower_layers_share_their_packs(layout: Layout) -> None:
    base = tar([*small_files("base", 90), file("big", noise("big", 2 * SECTOR))])
    middle = tar(small_files("middle", 40))
    layout.image("v1", [base, middle, tar([file("app", noise(1, 9000))])])
    layout.image("v2", [base, middle, tar([file(".wh.big"), file("app", noise(2, 9000))])])
    one, two = run(layout, "v1"), run(layout, "v2")
    assert [pack.digest for pack in one.packs[:2]] == [pack.digest for pack in two.packs[:2]]
    assert one.packs[2].digest != two.packs[2].digest
    assert [pack.sent for pack in two.packs] == [False, False, True]


def test_one_changed_file_changes_about_one_sector_of_its_layer(layout: Layout) -> None:
    files = [file(f"f{i:04}", noise(i, 1000 + i * 7)) for i in range(700)]
    changed = list(files)
    changed[300] = file("f0300", noise("new", 4321))
    layout.image("v1", [tar(files)])
    layout.image("v2", [tar(changed)])
    before = {ref.digest for ref in index_of(layout.path, run(layout, "v1")).sectors}
    after = {ref.digest for ref in index_of(layout.path, run(layout, "v2")).sectors}
    assert len(before) > 10
    assert 1 <= len(after - before) <= 3


def test_the_order_of_a_layer_s_entries_does_not_move_its_files(layout: Layout) -> None:
    files = small_files("x", 200)
    layout.image("v1", [tar(files)])
    layout.image("v2", [tar(files[::-1])])
    one, two = run(layout, "v1"), run(layout, "v2")
    assert [p.digest for p in one.packs] == [p.digest for p in two.packs]


def test_layers_may_be_empty_or_hold_no_data(layout: Layout, tmp_path: Path) -> None:
    layout.image("v1", [tar([]), tar([folder("etc")]), tar([file("etc/x", b"x")])])
    done = run(layout)
    assert len(done.packs) == 1
    assert contents(extract(layout.path, done, tmp_path / "out")) == {"etc/x": b"x"}
    layout.image("v0", [])
    assert run(layout, "v0").sectors == 0


def test_a_name_twice_in_one_layer_is_the_last_one(layout: Layout, tmp_path: Path) -> None:
    layout.image("v1", [tar([file("x", noise(1, 5000)), file("x", noise(2, SECTOR))])])
    done = run(layout)
    assert contents(extract(layout.path, done, tmp_path / "out")) == {"x": noise(2, SECTOR)}


CONVERT = """
import os, sys
from pathlib import Path
os.umask(int(sys.argv[3], 8))
from pagein.build.convert import convert
from pagein.build.report import ConvertOptions
from pagein.format.manifest import parse_manifest
from pagein.store.layout import LayoutRepository
source = LayoutRepository(Path(sys.argv[1]))
blob = source.manifest("v1")
done = convert(source, parse_manifest(blob.data), blob, source, ConvertOptions(
    sector_size=256 << 10, jobs=int(sys.argv[2]), scratch=Path(sys.argv[1] + "-scratch")),
    on_sector=(lambda _: os.kill(os.getpid(), int(sys.argv[4]))) if len(sys.argv) > 4 else None)
print(done.artifact, done.index, *(pack.digest for pack in done.packs))
"""


def in_a_process(layout: Layout, *arguments: str, **environment: str) -> Any:
    return subprocess.run(
        [sys.executable, "-c", CONVERT, str(layout.path), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_digests_hang_on_the_input_alone(layout: Layout) -> None:
    members = [*small_files("d", 150), file("big", words("b", 9 * SECTOR) + noise(3, SECTOR))]
    members[40][0].pax_headers = {f"SCHILY.xattr.user.{name}": "1" for name in "zyxwv"}
    layout.image("v1", [tar(members), tar(small_files("e", 50))])
    runs = [
        in_a_process(layout, "1", "022", PYTHONHASHSEED="1", TZ="UTC", LC_ALL="C"),
        in_a_process(layout, "2", "077", PYTHONHASHSEED="2", TZ="Asia/Tokyo", LC_ALL="C.UTF-8"),
        in_a_process(layout, "7", "000", PYTHONHASHSEED="3", TZ="America/Lima"),
    ]
    assert [one.stderr for one in runs] == ["", "", ""]
    assert len({one.stdout for one in runs}) == 1


class Destination:
    """A layout that counts what is put there, and breaks where it is told."""

    def __init__(self, path: Path, fail: dict[str, BaseException] | None = None) -> None:
        self.inner = LayoutRepository(path)
        self.calls: list[str] = []
        self.fail = fail or {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def put_blob(self, digest: Any, source: Any, **options: Any) -> bool:
        kind = "pack" if isinstance(source, Path) else "config" if source == b"{}" else "index"
        sent = self.inner.put_blob(digest, source, **options)
        self.calls.append(f"{kind} {'sent' if sent else 'there'}")
        if kind in self.fail:
            raise self.fail[kind]
        return sent

    def put_manifest(self, manifest: Any, **options: Any) -> None:
        self.calls.append("manifest")
        if "manifest" in self.fail:
            raise self.fail["manifest"]
        self.inner.put_manifest(manifest, **options)


def two_layers(layout: Layout) -> None:
    layout.image("v1", [tar([file("a", noise(1, 3 * SECTOR))]), tar(small_files("s", 60))])


@pytest.mark.parametrize("stage", ["pack", "index", "manifest"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_an_interrupted_conversion_publishes_nothing_and_leaves_no_scratch(
    layout: Layout, stage: str, error: type[BaseException]
) -> None:
    two_layers(layout)
    before = (layout.path / "index.json").read_bytes()
    with pytest.raises(error):
        run(layout, destination=Destination(layout.path, {stage: error()}))
    assert list((layout.path.parent / "scratch").iterdir()) == []
    assert (layout.path / "index.json").read_bytes() == before


def test_a_run_after_an_interrupted_one_sends_only_what_is_missing(layout: Layout) -> None:
    two_layers(layout)
    broken = Destination(layout.path, {"index": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        run(layout, destination=broken)
    assert broken.calls == ["pack sent", "pack sent", "index sent"]
    again = Destination(layout.path)
    done = run(layout, destination=again)
    assert again.calls == ["pack there", "pack there", "index there", "config sent", "manifest"]
    assert [pack.sent for pack in done.packs] == [False, False]


def test_an_observer_that_raises_ends_the_conversion(layout: Layout) -> None:
    two_layers(layout)

    def full(sector: Sector) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(layout, on_sector=full)
    assert list((layout.path.parent / "scratch").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing(layout: Layout, number: signal.Signals) -> None:
    two_layers(layout)
    child = in_a_process(layout, "2", "022", str(int(number)))
    assert child.returncode == (128 + number if number == signal.SIGTERM else -number)
    assert list(Path(f"{layout.path}-scratch").iterdir()) == []


def test_the_run_after_a_killed_one_cleans_up(layout: Layout) -> None:
    two_layers(layout)
    child = in_a_process(layout, "2", "022", str(int(signal.SIGKILL)))
    assert child.returncode == -signal.SIGKILL
    scratch = Path(f"{layout.path}-scratch")
    assert len(list(scratch.iterdir())) == 1
    assert in_a_process(layout, "2", "022").returncode == 0
    assert list(scratch.iterdir()) == []


def test_the_observer_gets_each_different_sector_once(layout: Layout) -> None:
    two_layers(layout)
    seen: list[Sector] = []
    done = run(layout, on_sector=seen.append)
    wanted = {
        ref.digest
        for ref in index_of(layout.path, done).sectors
        if ref.encoding is not Encoding.ZERO
    }
    assert {sector.digest for sector in seen} == wanted
    assert len(seen) == done.stored_sectors


def test_a_layer_that_is_not_what_the_config_promises_is_refused(layout: Layout) -> None:
    layout.image("v1", [tar([file("x", b"x")])], diff_ids=["sha256:" + "0" * 64])
    with pytest.raises(FormatError, match="but the image's config promises"):
        run(layout)


def test_a_config_with_too_few_layers_is_refused(layout: Layout) -> None:
    layout.image("v1", [tar([]), tar([])], diff_ids=["sha256:" + "0" * 64])
    with pytest.raises(FormatError, match="2 layers"):
        run(layout)


def test_a_damaged_layer_blob_is_refused(layout: Layout) -> None:
    data = tar([file("x", noise(1, 100_000))])
    layout.image("v1", [data])
    for path in (layout.path / "blobs/sha256").iterdir():
        if path.read_bytes()[:2] == b"\x1f\x8b":
            other = gzip.compress(tar([file("x", noise(2, 100_000))]), 1, mtime=0)
            path.write_bytes(other)
    with pytest.raises(FormatError):
        run(layout)


def test_progress_adds_up_to_the_source(layout: Layout) -> None:
    two_layers(layout)

    class Watcher:
        total = done = 0
        notes: list[str] = []  # noqa: RUF012

        def start(self, total: int) -> None:
            self.total = total

        def read(self, count: int) -> None:
            self.done += count

        def note(self, text: str) -> None:
            self.notes.append(text)

    watcher = Watcher()
    result = run(layout, progress=watcher)
    assert watcher.done == watcher.total == result.source_size
    assert watcher.notes[0] == "layer 1 of 2"


def test_packs_are_what_the_table_says(layout: Layout) -> None:
    two_layers(layout)
    done = run(layout)
    for pack in done.packs:
        assert blob(layout.path, str(pack.digest)).stat().st_size == pack.size
    assert done.pack_size == sum(pack.size for pack in done.packs)
