"""The labels that containerd puts on snapshots: the only code that reads them.

Names are from containerd's core/snapshots/snapshotter.go (``LabelSnapshotRef``), pkg/labels and
pkg/snapshotters/annotations.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pagein.errors import FormatError, UsageError
from pagein.types import Digest

SNAPSHOT_REF: Final = "containerd.io/snapshot.ref"
IMAGE_REF: Final = "containerd.io/snapshot/cri.image-ref"
MANIFEST_DIGEST: Final = "containerd.io/snapshot/cri.manifest-digest"
LAYER_DIGEST: Final = "containerd.io/snapshot/cri.layer-digest"

MAX_LABEL_BYTES: Final = 4096
"""Key and value of one label together (containerd's pkg/labels/validate.go)."""
MAX_LABELS: Final = 256
"""Ours; containerd sends about six."""


@dataclass(frozen=True, slots=True)
class LayerRequest:
    """An image layer that containerd is about to fetch, unless we have it.

    ``ref`` is the chain ID that the committed snapshot will stand for.
    """

    ref: str
    reference: str
    manifest_digest: Digest
    layer_digest: Digest


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of labels that may be stored. Raises UsageError.

    An empty value means no label, as in containerd's own store.
    """
    if len(labels) > MAX_LABELS:
        raise UsageError(f"{len(labels)} labels on one snapshot, more than {MAX_LABELS}")
    for key, value in labels.items():
        if len(key.encode()) + len(value.encode()) > MAX_LABEL_BYTES:
            raise UsageError(
                f"label {key[:64]!r} has more than {MAX_LABEL_BYTES} bytes with its value"
            )
    return {key: value for key, value in labels.items() if value}


def snapshot_ref(labels: Mapping[str, str]) -> str:
    """Return the name that a layer will be committed under; empty for any other snapshot."""
    return labels.get(SNAPSHOT_REF, "")


def parse_layer(labels: Mapping[str, str]) -> LayerRequest:
    """Read which layer of which image is wanted. Raises FormatError where the labels do not say.

    The layers above (``cri.image-layers``) are not read: containerd cuts that list to fit, and the
    depth of the parent says the same.
    """
    for key in (SNAPSHOT_REF, IMAGE_REF, MANIFEST_DIGEST, LAYER_DIGEST):
        if not labels.get(key):
            raise FormatError(f"the pull sends no label {key}", field=key)
    return LayerRequest(
        labels[SNAPSHOT_REF],
        labels[IMAGE_REF],
        Digest.parse(labels[MANIFEST_DIGEST]),
        Digest.parse(labels[LAYER_DIGEST]),
    )


def updated_labels(
    old: Mapping[str, str], new: Mapping[str, str], mask: Iterable[str]
) -> dict[str, str]:
    """Apply an update: the paths of ``mask`` are ``labels`` or ``labels.KEY``; none means all.

    Raises UsageError for any other path: nothing else of a snapshot can change.
    """
    paths = list(mask)
    if not paths or "labels" in paths:
        result = dict(new)
        paths = [path for path in paths if path != "labels"]
    else:
        result = dict(old)
    for path in paths:
        prefix, _, key = path.partition(".")
        if prefix != "labels" or not key:
            raise UsageError(
                f"cannot change {path[:80]!r} of a snapshot", hint="only labels change"
            )
        result[key] = new.get(key, "")
    return check_labels(result)
