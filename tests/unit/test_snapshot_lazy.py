"""Lazy layers, placeholders and classical ones, in every mix, over images that are directories."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pagein.errors import (
    PageinError,
    RemoteUnavailableError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    SnapshotStateError,
    SnapshotUnavailableError,
)
from pagein.events import (
    Event,
    LayerMaterialised,
    PulledClassically,
    PulledLazily,
    SnapshotterProblem,
)
from pagein.snapshotter.overlay import OverlayChoices
from pagein.snapshotter.service import Snapshotter
from pagein.snapshotter.values import Kind, Usage
from pagein.testing.directory_images import DirectoryImages, Layer, apply, chain_id, seen

L1: Layer = {"a": "1", "b": "1"}
L2: Layer = {"b": "2", "c": "2"}
L3: Layer = {"a": None, "d": "3"}
APP = "host/app:1"
SHORT = "host/short:1"


class Site:
    """A snapshotter, its images, and a containerd that pulls as containerd does."""

    def __init__(self, root: Path, images: DirectoryImages) -> None:
        self.root = root
        self.images = images
        self.events: list[Event] = []
        self.snapshotter = self.open()
        self._number = 0

    def open(self) -> Snapshotter:
        return Snapshotter(
            self.root,
            self.images,
            observer=self.events.append,
            image_usage=lambda image: Usage(len(image.layers), 1),
            choices=OverlayChoices(index_off=False),
        )

    def restart(self) -> None:
        self.snapshotter.close()
        self.snapshotter = self.open()

    def pull(self, reference: str, *layers: Layer) -> list[str]:
        """Pull as the unpacker does; return the chain IDs that had to be downloaded."""
        downloaded = []
        parent = ""
        for number in range(1, len(layers) + 1):
            name = chain_id(layers[:number])
            if not self.has(name):
                self._number += 1
                key = f"extract-{self._number} {name}"
                labels = self.images.pull_labels(reference, number, *layers)
                try:
                    mounts = self.snapshotter.prepare(key, parent, labels)
                except SnapshotExistsError:
                    assert self.snapshotter.stat(name).parent == parent
                else:
                    apply(layers[number - 1], mounts)
                    self.snapshotter.commit(name, key, labels)
                    downloaded.append(name)
            parent = name
        return downloaded

    def has(self, name: str) -> bool:
        try:
            self.snapshotter.stat(name)
        except SnapshotNotFoundError:
            return False
        return True

    def container(self, *layers: Layer) -> dict[str, str]:
        """Return what a container of these layers sees."""
        self._number += 1
        key = f"container-{self._number}"
        return seen(self.snapshotter.prepare(key, chain_id(layers), {}))

    def view(self, *layers: Layer) -> dict[str, str]:
        self._number += 1
        return seen(self.snapshotter.view(f"view-{self._number}", chain_id(layers), {}))

    def remove_all(self) -> None:
        """Remove leaf by leaf, as the garbage collector does, and clean up."""
        while infos := self.snapshotter.walk([]):
            for info in infos:
                try:
                    self.snapshotter.remove(info.name)
                except SnapshotStateError:
                    continue
        self.snapshotter.cleanup()

    def classical(self) -> list[PulledClassically]:
        return [event for event in self.events if isinstance(event, PulledClassically)]


@pytest.fixture
def images(tmp_path: Path) -> DirectoryImages:
    return DirectoryImages(tmp_path / "mounts")


@pytest.fixture
def site(tmp_path: Path, images: DirectoryImages) -> Iterator[Site]:
    site = Site(tmp_path / "root", images)
    yield site
    site.snapshotter.close()


WHOLE = {"b": "2", "c": "2", "d": "3"}


def test_a_converted_image_is_pulled_without_a_download(site: Site) -> None:
    site.images.convert(APP, L1, L2, L3)
    assert site.pull(APP, L1, L2, L3) == []
    names = [chain_id(part) for part in ([L1], [L1, L2], [L1, L2, L3])]
    infos = site.snapshotter.walk([])
    assert [(i.name, i.parent, i.kind) for i in infos] == [
        (name, parent, Kind.COMMITTED) for name, parent in zip(names, ["", *names], strict=False)
    ]
    assert infos[0].labels == site.images.pull_labels(APP, 1, L1, L2, L3)
    assert site.container(L1, L2, L3) == WHOLE
    assert site.view(L1, L2, L3) == WHOLE
    assert site.images.calls["materialise"] == 0
    (event,) = site.events
    assert isinstance(event, PulledLazily)


def test_containerd_finds_the_layer_by_its_label_and_parent(site: Site) -> None:
    site.images.convert(APP, L1, L2)
    site.pull(APP, L1, L2)
    ref, parent = chain_id([L1, L2]), chain_id([L1])
    text = f'labels."containerd.io/snapshot.ref"=="{ref}",parent=="{parent}"'
    (info,) = site.snapshotter.walk([text])
    assert info.kind is Kind.COMMITTED


def test_an_image_that_nobody_converted_is_pulled_classically(site: Site) -> None:
    assert len(site.pull(APP, L1, L2, L3)) == 3
    assert site.container(L1, L2, L3) == WHOLE
    (event,) = site.classical()
    assert (event.reference, event.reason) == (APP, "nobody has converted host/app:1")
    assert site.images.mounted() == []


@pytest.mark.parametrize("method", ["find", "attach"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RemoteUnavailableError("registry away"), "registry away"),
        (ValueError("a bug"), "unexpected ValueError: a bug"),
    ],
)
def test_whatever_goes_wrong_the_pull_is_classical(
    site: Site, method: str, error: Exception, reason: str
) -> None:
    site.images.convert(APP, L1, L2, L3)
    site.images.fail[method] = error
    assert len(site.pull(APP, L1, L2, L3)) == 3
    assert site.container(L1, L2, L3) == WHOLE
    (event,) = site.classical()  # once, not once a layer
    assert event.reason == reason


def test_labels_that_do_not_fit_the_image_are_not_believed(site: Site) -> None:
    site.images.convert(APP, L1, L2)
    labels = site.images.pull_labels(APP, 2, L1, L2)
    assert site.snapshotter.prepare("first layer, they say", "", labels)
    assert "not what the image was converted from" in site.classical()[0].reason


def test_a_pull_without_labels_is_classical(site: Site) -> None:
    labels = {"containerd.io/snapshot.ref": "sha256:x"}
    assert site.snapshotter.prepare("k", "", labels)
    assert "sends no label" in site.classical()[0].reason


def test_a_placeholder_is_unpacked_once_something_stands_on_it(site: Site) -> None:
    site.images.convert(APP, L1, L2, L3)
    site.pull(APP, L1, L2, L3)
    assert site.container(L1, L2) == {"a": "1", "b": "2", "c": "2"}
    assert site.view(L1, L2) == {"a": "1", "b": "2", "c": "2"}
    assert site.view(L1) == {"a": "1", "b": "1"}
    assert site.images.calls["materialise"] == 2
    events = [event for event in site.events if isinstance(event, LayerMaterialised)]
    assert [(event.reference, event.layers) for event in events] == [(APP, 2), (APP, 1)]


def test_another_image_that_ends_in_the_middle_gets_its_tree(site: Site) -> None:
    site.images.convert(APP, L1, L2, L3)
    site.pull(APP, L1, L2, L3)
    assert site.pull("host/other:1", L1, L2) == []  # containerd has these layers already
    assert site.container(L1, L2) == {"a": "1", "b": "2", "c": "2"}


def test_a_classical_image_on_top_of_placeholders_gets_its_tree(site: Site) -> None:
    site.images.convert(APP, L1, L2, L3)
    site.pull(APP, L1, L2, L3)
    other: Layer = {"c": None, "e": "9"}
    assert site.pull("host/other:1", L1, L2, other) == [chain_id([L1, L2, other])]
    assert site.container(L1, L2, other) == {"a": "1", "b": "2", "e": "9"}
    assert site.container(L1, L2, L3) == WHOLE


def test_layers_on_top_of_a_lazy_image_are_laid_over_its_tree(site: Site) -> None:
    site.images.convert(SHORT, L1, L2)
    site.pull(SHORT, L1, L2)
    assert site.pull("host/built:1", L1, L2, L3) == [chain_id([L1, L2, L3])]
    assert site.container(L1, L2, L3) == WHOLE
    assert site.images.calls["materialise"] == 0


def test_a_longer_lazy_image_stands_on_a_shorter_one(site: Site) -> None:
    site.images.convert(SHORT, L1)
    site.images.convert(APP, L1, L2, L3)
    assert site.pull(SHORT, L1) == []
    assert site.pull(APP, L1, L2, L3) == []
    assert site.container(L1) == L1
    assert site.container(L1, L2, L3) == WHOLE
    assert len(site.images.mounted()) == 2


def test_a_lazy_image_stands_on_classical_layers(site: Site) -> None:
    assert len(site.pull("host/base:1", L1)) == 1
    site.images.convert(APP, L1, L2, L3)
    assert site.pull(APP, L1, L2, L3) == []
    assert site.container(L1, L2, L3) == WHOLE
    assert site.container(L1, L2) == {"a": "1", "b": "2", "c": "2"}
    assert site.container(L1) == L1


def test_one_image_is_mounted_once_for_all_containers(site: Site) -> None:
    site.images.convert(APP, L1, L2, L3)
    site.pull(APP, L1, L2, L3)
    with ThreadPoolExecutor(16) as pool:
        keys = [f"c{number}" for number in range(32)]
        mounts = list(
            pool.map(lambda key: site.snapshotter.prepare(key, chain_id([L1, L2, L3]), {}), keys)
        )
    assert all(seen(one) == WHOLE for one in mounts)
    assert len(site.images.mounted()) == 1


def test_many_that_need_a_placeholder_unpack_it_once(site: Site) -> None:
    site.images.convert(APP, L1, L2, L3)
    site.pull(APP, L1, L2, L3)
    gate = threading.Event()
    site.images.before["materialise"] = lambda: gate.wait(10)
    with ThreadPoolExecutor(8) as pool:
        parent = chain_id([L1])
        calls = [pool.submit(site.snapshotter.prepare, f"c{n}", parent, {}) for n in range(8)]
        gate.set()
        assert all(seen(call.result()) == L1 for call in calls)
    assert site.images.calls["materialise"] == 1


def test_an_unpack_that_fails_is_tried_again(site: Site) -> None:
    site.images.convert(APP, L1, L2)
    site.pull(APP, L1, L2)
    site.images.fail["materialise"] = RemoteUnavailableError("registry away", hint="wait")
    with pytest.raises(SnapshotUnavailableError, match="registry away") as caught:
        site.view(L1)
    assert caught.value.hint == "wait"
    site.images.fail.clear()
    assert site.view(L1) == L1


def test_half_an_unpack_is_never_taken_for_a_whole_one(site: Site) -> None:
    site.images.convert(APP, L1, L2)
    site.pull(APP, L1, L2)
    (site.root / "snapshots/1/unpacking").mkdir(parents=True)  # as a power cut leaves it
    (site.root / "snapshots/1/unpacking/half").write_text("half")
    assert site.view(L1) == L1


def test_half_an_unpack_takes_no_room_after_a_restart(site: Site) -> None:
    site.images.convert(APP, L1, L2)
    site.pull(APP, L1, L2)
    (site.root / "snapshots/1/unpacking").mkdir(parents=True)
    site.restart()
    site.snapshotter.ensure()
    assert os.listdir(site.root / "snapshots/1") == []


def test_the_image_goes_with_its_last_top_layer(site: Site) -> None:
    site.images.convert(APP, L1, L2, L3)
    site.pull(APP, L1, L2, L3)
    site.snapshotter.prepare("container", chain_id([L1, L2, L3]), {})
    with pytest.raises(SnapshotStateError):
        site.snapshotter.remove(chain_id([L1, L2, L3]))
    assert len(site.images.mounted()) == 1
    site.snapshotter.remove("container")
    site.snapshotter.remove(chain_id([L1, L2, L3]))
    assert site.images.mounted() == []
    assert site.view(L1) == L1  # the placeholders still know where they come from
    site.remove_all()
    assert os.listdir(site.root / "snapshots") == []
    assert site.pull(APP, L1, L2, L3) == []
    assert site.container(L1, L2, L3) == WHOLE


def test_an_unmount_that_fails_is_tried_again_at_the_next_cleanup(site: Site) -> None:
    site.images.convert(APP, L1)
    site.pull(APP, L1)
    site.images.fail["detach"] = PageinError("busy")
    site.remove_all()
    assert len(site.images.mounted()) == 1
    assert SnapshotterProblem(f"unmount {APP}", "busy") in site.events
    site.images.fail.clear()
    site.snapshotter.cleanup()
    assert site.images.mounted() == []


def test_a_pull_that_was_cancelled_leaves_no_mount(site: Site) -> None:
    site.images.convert(APP, L1, L2)
    labels = site.images.pull_labels(APP, 1, L1, L2)
    with pytest.raises(SnapshotExistsError):
        site.snapshotter.prepare("extract", "", labels)
    assert len(site.images.mounted()) == 1
    site.snapshotter.cleanup()
    assert site.images.mounted() == []
    assert site.pull(APP, L1, L2) == []  # and the pull may go on
    assert site.container(L1, L2) == {"a": "1", "b": "2", "c": "2"}


def test_two_namespaces_share_a_layer_that_nobody_downloaded(site: Site) -> None:
    site.images.convert(APP, L1, L2)
    site.pull(APP, L1, L2)
    for number in (1, 2):
        parent = "" if number == 1 else chain_id([L1])
        labels = site.images.pull_labels(APP, number, L1, L2)
        with pytest.raises(SnapshotExistsError):
            site.snapshotter.prepare(f"two/{number}", parent, labels)
    assert len(site.snapshotter.walk([])) == 2


def test_a_chain_id_on_another_parent_gets_another_name(site: Site) -> None:
    site.images.convert(APP, L1, L2)
    site.pull(APP, L1, L2)
    mounts = site.snapshotter.prepare("two/1", "", {})  # a namespace that downloaded layer 1
    apply(L1, mounts)
    site.snapshotter.commit("two/base", "two/1", {})
    with pytest.raises(SnapshotExistsError):
        site.snapshotter.prepare("two/2", "two/base", site.images.pull_labels(APP, 2, L1, L2))
    ref = chain_id([L1, L2])
    text = f'labels."containerd.io/snapshot.ref"=="{ref}",parent=="two/base"'
    (info,) = site.snapshotter.walk([text])
    assert info.name != ref
    tree = seen(site.snapshotter.prepare("two/c", info.name, {}))
    assert tree == {"a": "1", "b": "2", "c": "2"}


def test_pulls_of_one_image_side_by_side_make_one_set_of_layers(site: Site) -> None:
    site.images.convert(APP, L1, L2, L3)
    with ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(lambda _: site.pull(APP, L1, L2, L3), range(8)))
    assert len(site.snapshotter.walk([])) == 3


def test_after_a_restart_everything_comes_back_from_local_state(site: Site) -> None:
    site.images.convert(APP, L1, L2, L3)
    site.pull(APP, L1, L2, L3)
    before = site.snapshotter.prepare("container", chain_id([L1, L2, L3]), {})
    (image,) = site.images.mounted()
    shutil.rmtree(site.images.folder / image)  # as after a reboot
    site.images.fail["find"] = RemoteUnavailableError("registry down")
    site.restart()
    site.snapshotter.ensure()
    assert site.images.mounted() == [image]
    assert site.snapshotter.mounts("container") == before
    assert seen(before) == WHOLE
    assert site.container(L1, L2, L3) == WHOLE


def test_an_image_that_does_not_come_back_stops_no_other(site: Site) -> None:
    site.images.convert(APP, L1)
    site.images.convert(SHORT, L2)
    site.pull(APP, L1)
    site.pull(SHORT, L2)
    site.restart()
    site.images.fail["attach"] = PageinError("index is gone")
    site.snapshotter.ensure()
    problems = [event for event in site.events if isinstance(event, SnapshotterProblem)]
    assert {event.what for event in problems} == {f"mount {APP}", f"mount {SHORT}"}
    with pytest.raises(SnapshotUnavailableError, match="index is gone"):
        site.container(L1)
    site.images.fail.clear()
    assert site.container(L1) == L1


def test_usage_is_charged_where_the_bytes_are(site: Site) -> None:
    site.images.convert(APP, L1, L2)
    site.pull(APP, L1, L2)
    assert site.snapshotter.usage(chain_id([L1, L2])) == Usage(2, 1)  # what the image's data takes
    assert site.snapshotter.usage(chain_id([L1])) == Usage(0, 0)
    site.view(L1)
    assert site.snapshotter.usage(chain_id([L1])).inodes == 3


def test_directories_of_a_crashed_call_are_garbage(site: Site) -> None:
    site.snapshotter.prepare("kept", "", {})
    leftover = site.root / "snapshots/2/fs"  # made in a transaction that was never committed
    leftover.mkdir(parents=True)
    (leftover / "stale").touch()
    assert seen(site.snapshotter.prepare("new", "", {})) == {}
    site.snapshotter.remove("new")
    site.snapshotter.cleanup()
    assert os.listdir(site.root / "snapshots") == ["1"]
    assert site.snapshotter.mounts("kept")


def test_a_parent_that_is_not_there_is_not_found_with_labels_too(site: Site) -> None:
    site.images.convert(APP, L1, L2)
    with pytest.raises(SnapshotNotFoundError):
        site.snapshotter.prepare("k", "absent", site.images.pull_labels(APP, 2, L1, L2))
