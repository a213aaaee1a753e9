"""The size of what a start-up touches: the ranges of its profile, compressed as pagein would."""

from __future__ import annotations

import json
import os
from pathlib import Path

import zstandard

from harness import RESULTS
from pagein.format.profile import decode_profile

PIECE = 4 << 20
LEVEL = 3


def touched_bytes(image: str, images: Path = Path("/var/tmp/pagein-bench")) -> int | None:
    """Return the compressed size; None where it is neither saved nor can be had.

    Worked out once from the image's tree and the recorded profile, and saved with the results.
    """
    saved = RESULTS / "touched.json"
    known: dict[str, int] = json.loads(saved.read_text()) if saved.exists() else {}
    profile, tree = images / "profiles" / f"{image}.json", images / "trees" / image
    if image not in known and profile.exists() and tree.exists():
        known[image] = _compressed(profile, tree)
        saved.write_text(json.dumps(known) + "\n")
    return known.get(image)


def _compressed(profile: Path, tree: Path) -> int:
    found = decode_profile(profile.read_bytes())
    compressor, held, size = zstandard.ZstdCompressor(level=LEVEL), bytearray(), 0
    for touch in found.touches:
        path = tree / os.fsdecode(found.files[touch.file].path)
        with path.open("rb", buffering=0) as stream:
            held += os.pread(stream.fileno(), touch.length, touch.offset)
        while len(held) >= PIECE:
            size += len(compressor.compress(bytes(held[:PIECE])))
            del held[:PIECE]
    return size + len(compressor.compress(bytes(held)))
