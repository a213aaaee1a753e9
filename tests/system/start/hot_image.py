"""The profile that the image of these tests is optimized with."""

from __future__ import annotations

import json
from pathlib import Path

from recorded_image import BLOCK, FILES

SECTOR = 256 << 10
HOT_BLOCKS = (*range(700, 768), *range(5, 400, 2))
"""Of ``data/big``, in the order of the profile: single blocks, as a start-up touches a library."""


def write_profile(path: Path, source: str) -> Path:
    """A profile of a start that nobody has recorded."""
    size = len(FILES["data/big"])
    touches = [[0, block * BLOCK, BLOCK, at] for at, block in enumerate(HOT_BLOCKS)]
    document = {
        "version": 1,
        "recorded": "2026-01-31T12:00:00Z",
        "reference": "docker://registry:5000/app:v1",
        "source": source,
        "command": ["sh"],
        "read_ahead_kb": 0,
        "seconds": 1.0,
        "files": [{"name": "data/big", "size": size}],
        "touches": touches,
    }
    path.write_text(json.dumps(document))
    return path
