"""Any sequence of calls gives the trees and errors that a dictionary of trees gives."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pagein.errors import (
    SnapshotError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    SnapshotStateError,
    UsageError,
)
from pagein.snapshotter.overlay import OverlayChoices
from pagein.snapshotter.service import Snapshotter
from pagein.snapshotter.values import Kind
from pagein.testing.directory_images import DirectoryImages, Layer, apply, chain_id, seen

LAYERS: tuple[Layer, ...] = (
    {"a": "1", "b": "1"},
    {"b": "2", "c": "2"},
    {"a": None, "d": "3"},
    {"c": None, "a": "4"},
)
IMAGES = {
    "host/long:1": LAYERS,
    "host/short:1": LAYERS[:2],
    "host/fork:1": (LAYERS[0], LAYERS[3]),
    "host/one:1": LAYERS[:1],
}
NAMES = [f"key{number}" for number in range(4)]
CHAINS = sorted({chain_id(image[:n]) for image in IMAGES.values() for n in range(1, 5)})
ANY_NAME = st.sampled_from([*NAMES, *CHAINS])


@dataclass
class Expected:
    kind: Kind
    parent: str
    tree: dict[str, str]


class SnapshotterMachine(RuleBasedStateMachine):
    """The snapshotter beside a model that holds each tree whole."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="pagein-snapshots-"))
        self.images = DirectoryImages(self.folder / "mounts")
        self.snapshotter = self.open()
        self.model: dict[str, Expected] = {}

    def open(self) -> Snapshotter:
        choices = OverlayChoices(index_off=False)
        return Snapshotter(self.folder / "root", self.images, choices=choices)

    def teardown(self) -> None:
        self.snapshotter.close()
        shutil.rmtree(self.folder)

    def refusal(self, name: str, parent: str) -> type[Exception] | None:
        if parent and parent not in self.model:
            return SnapshotNotFoundError
        if parent and self.model[parent].kind is not Kind.COMMITTED:
            return UsageError
        return SnapshotExistsError if name in self.model else None

    def tree_of(self, parent: str) -> dict[str, str]:
        return dict(self.model[parent].tree) if parent else {}

    @rule(name=st.sampled_from(NAMES), parent=st.just("") | ANY_NAME, view=st.booleans())
    def add(self, name: str, parent: str, view: bool) -> None:
        call = self.snapshotter.view if view else self.snapshotter.prepare
        refusal = self.refusal(name, parent)
        try:
            mounts = call(name, parent, {})
        except (SnapshotError, UsageError) as error:
            assert type(error) is refusal, error  # noqa: PT017 - which one depends on the model
            return
        assert refusal is None
        kind = Kind.VIEW if view else Kind.ACTIVE
        self.model[name] = Expected(kind, parent, self.tree_of(parent))
        assert seen(mounts) == self.model[name].tree

    @rule(name=st.sampled_from(NAMES), layer=st.sampled_from(LAYERS))
    def write(self, name: str, layer: Layer) -> None:
        expected = self.model.get(name)
        if expected is None or expected.kind is not Kind.ACTIVE:
            return
        apply(layer, self.snapshotter.mounts(name))
        _change(expected.tree, layer)

    @rule(key=ANY_NAME, name=st.sampled_from(NAMES))
    def commit(self, key: str, name: str) -> None:
        if key == name:
            return
        try:
            self.snapshotter.commit(name, key, {})
        except SnapshotExistsError:
            assert name in self.model
        except SnapshotNotFoundError:
            assert key not in self.model
        except SnapshotStateError:
            assert self.model[key].kind is not Kind.ACTIVE
        else:
            expected = self.model.pop(key)
            assert expected.kind is Kind.ACTIVE
            expected.kind = Kind.COMMITTED
            self.model[name] = expected

    @rule(name=ANY_NAME)
    def remove(self, name: str) -> None:
        used = any(one.parent == name for one in self.model.values())
        try:
            self.snapshotter.remove(name)
        except SnapshotNotFoundError:
            assert name not in self.model
        except SnapshotStateError:
            assert used
        else:
            assert not used
            del self.model[name]

    @rule(reference=st.sampled_from(sorted(IMAGES)), stop=st.integers(1, 4))
    def pull(self, reference: str, stop: int) -> None:
        """Pull, perhaps not to the end; a layer that is there already is not asked for."""
        layers, parent = IMAGES[reference], ""
        for number in range(1, min(stop, len(layers)) + 1):
            name = chain_id(layers[:number])
            if name not in self.model:
                labels = self.images.pull_labels(reference, number, *layers)
                tree = self.tree_of(parent)
                try:
                    mounts = self.snapshotter.prepare("extract", parent, labels)
                except SnapshotExistsError:
                    pass
                else:
                    assert seen(mounts) == tree
                    apply(layers[number - 1], mounts)
                    self.snapshotter.commit(name, "extract", labels)
                _change(tree, layers[number - 1])
                self.model[name] = Expected(Kind.COMMITTED, parent, tree)
            parent = name

    @rule(reference=st.sampled_from(sorted(IMAGES)))
    def convert(self, reference: str) -> None:
        self.images.convert(reference, *IMAGES[reference])

    @rule()
    def restart_after_a_reboot(self) -> None:
        self.snapshotter.close()
        shutil.rmtree(self.images.folder, ignore_errors=True)
        self.snapshotter = self.open()
        self.snapshotter.ensure()

    @rule()
    def cleanup(self) -> None:
        self.snapshotter.cleanup()
        if not self.model:
            assert list((self.folder / "root/snapshots").iterdir()) == []
            assert self.images.mounted() == []

    @invariant()
    def what_is_listed_is_what_there_is(self) -> None:
        found = {i.name: (i.kind, i.parent) for i in self.snapshotter.walk([])}
        assert found == {name: (one.kind, one.parent) for name, one in self.model.items()}

    @invariant()
    def what_is_shown_is_what_was_written(self) -> None:
        for name, expected in self.model.items():
            if expected.kind is not Kind.COMMITTED:
                assert seen(self.snapshotter.mounts(name)) == expected.tree


def _change(tree: dict[str, str], layer: Layer) -> None:
    for name, text in layer.items():
        if text is None:
            tree.pop(name, None)
        else:
            tree[name] = text


TestSnapshotter = SnapshotterMachine.TestCase
TestSnapshotter.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
