"""Labels: which layer is wanted, what may be stored, and how a mask changes them."""

from __future__ import annotations

import pytest

from pagein.errors import FormatError, UsageError
from pagein.snapshotter.labels import (
    IMAGE_REF,
    LAYER_DIGEST,
    MANIFEST_DIGEST,
    SNAPSHOT_REF,
    LayerRequest,
    check_labels,
    parse_layer,
    updated_labels,
)
from pagein.types import Digest

MANIFEST, LAYER = Digest.of(b"manifest"), Digest.of(b"layer")
LABELS = {
    SNAPSHOT_REF: "sha256:chain",
    IMAGE_REF: "docker.io/library/python:3",
    MANIFEST_DIGEST: str(MANIFEST),
    LAYER_DIGEST: str(LAYER),
}


def test_a_pull_says_which_layer_of_which_image_it_wants() -> None:
    expected = LayerRequest("sha256:chain", "docker.io/library/python:3", MANIFEST, LAYER)
    assert parse_layer(LABELS) == expected


@pytest.mark.parametrize("key", sorted(LABELS))
def test_a_pull_that_does_not_say_is_classical(key: str) -> None:
    with pytest.raises(FormatError, match=key):
        parse_layer({name: value for name, value in LABELS.items() if name != key})


def test_another_digest_algorithm_is_classical() -> None:
    with pytest.raises(FormatError, match="not a sha256 digest"):
        parse_layer(LABELS | {LAYER_DIGEST: "sha512:" + "0" * 128})


def test_labels_have_bounds() -> None:
    check_labels({"k" * 96: "v" * 4000})
    with pytest.raises(UsageError, match="4096 bytes"):
        check_labels({"k" * 97: "v" * 4000})
    with pytest.raises(UsageError, match="4096 bytes"):
        check_labels({"k": "é" * 2048})
    with pytest.raises(UsageError, match="257 labels"):
        check_labels({str(number): "v" for number in range(257)})


def test_an_empty_value_is_no_label() -> None:
    assert check_labels({"a": "", "b": "1"}) == {"b": "1"}


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([], {"b": "22", "c": "3"}),
        (["labels"], {"b": "22", "c": "3"}),
        (["labels.b"], {"a": "1", "b": "22"}),
        (["labels.a"], {"b": "2"}),
        (["labels.c", "labels.b"], {"a": "1", "b": "22", "c": "3"}),
        (["labels", "labels.a"], {"b": "22", "c": "3"}),
    ],
)
def test_a_mask_says_which_labels_change(mask: list[str], expected: dict[str, str]) -> None:
    assert updated_labels({"a": "1", "b": "2"}, {"b": "22", "c": "3"}, mask) == expected


@pytest.mark.parametrize("path", ["name", "kind", "parent", "labels.", "", "label.a"])
def test_nothing_else_changes(path: str) -> None:
    with pytest.raises(UsageError, match="cannot change"):
        updated_labels({}, {"a": "1"}, [path])
