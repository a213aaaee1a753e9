"""The spool gives back what it was given: from memory, and from disk when memory is used up."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from layout_images import words

from pagein.build import spool as spooling
from pagein.build.pool import Pool
from pagein.build.report import StageClock
from pagein.build.spool import Spool
from pagein.format.tree import Node, NodeKind


@pytest.mark.parametrize("in_memory", [0, 300_000, 1 << 30])
def test_files_come_back_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(spooling, "_IN_MEMORY_BYTES", in_memory)
    contents = {f"{i:03}".encode(): words(i, 1 + 73 * i) for i in range(250)}
    with Pool(3, StageClock()) as pool, Spool(tmp_path / "spool", pool) as spool:
        for key, data in contents.items():
            spool.add(key, Node(NodeKind.FILE, size=len(data)), data)
        files = spool.finish()
        assert [file.key for file in files] == list(contents)
        assert [file.digest for file in files] == [
            hashlib.sha256(data).digest() for data in contents.values()
        ]
        mixed = files[::-7]
        sector = bytes(spool.reader(mixed, 1 << 20)())
        at = 0
        for file in mixed:
            assert sector[at : at + file.size] == contents[file.key]
            at += (file.size + 4095) // 4096 * 4096
        assert not any(sector[at:])
    assert list(tmp_path.iterdir()) == []
