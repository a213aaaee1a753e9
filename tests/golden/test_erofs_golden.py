"""Dumps in `erofs/` give the very metadata whose SHA-256 is written down here.

A changed hash means that every image converts to other digests than before: never by accident.
"""

import hashlib
from pathlib import Path

import pytest

from pagein.errors import FormatError
from pagein.format.dump import dump_tree, parse_dump
from pagein.format.erofs.check import check_metadata
from pagein.format.erofs.read import read_tree
from pagein.format.erofs.write import write_metadata

DUMPS = Path(__file__).parent / "erofs"
SIZES = {"sector_size": 256 << 10, "hot_blocks": 64, "data_blocks": 128}
HASHES = {
    "small": "773cc7cc2e78f05742441a68d874a80a1f177fcac17e3350f75ab36f812afd53",
    "layouts": "2a91965c0ac5d573e4677cd8e5f905a8182f200e123cab80253e53abd37e8000",
    "names": "534cf0ba544b84059d0bca7b7443c4f8f933012323ad74a34d2042f2ee123d95",
}
REFUSED = {
    "chunk-count": r"2 chunks of 2\^0 blocks do not make 8193 bytes",
    "directory-with-two-names": r"directory b'b' has two names",
    "dot": r"not a file name: b'\.'",
    "extent-across-parts": r"2 blocks from body block 63 do not lie inside one part",
    "not-placed": r"a file of 1 bytes has no layout",
    "owner": r"owner 4294967295:0 does not fit",
    "xattr-namespace": r"xattr b'system\.nfs4_acl': erofs cannot hold the namespace b'system'",
}


@pytest.mark.parametrize("name", HASHES)
def test_a_dump_gives_the_metadata_it_always_gave(name: str) -> None:
    root = parse_dump((DUMPS / f"{name}.txt").read_text())
    metadata = write_metadata(root, **SIZES)
    assert hashlib.sha256(metadata).hexdigest() == HASHES[name]
    check_metadata(metadata, **SIZES)
    assert dump_tree(read_tree(metadata)) == dump_tree(root)


def test_every_dump_that_should_fail_is_listed() -> None:
    found = {path.stem.removeprefix("should-fail-") for path in DUMPS.glob("should-fail-*")}
    assert found == set(REFUSED)


@pytest.mark.parametrize("name", REFUSED)
def test_a_tree_that_erofs_cannot_hold_is_refused_by_name(name: str) -> None:
    root = parse_dump((DUMPS / f"should-fail-{name}.txt").read_text())
    with pytest.raises(FormatError, match=REFUSED[name]):
        write_metadata(root, **SIZES)
