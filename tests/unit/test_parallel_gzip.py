import gzip
import hashlib
import io
import random
import zlib

import pytest

from pagein.testing.parallel_gzip import GzipWriter


@pytest.mark.parametrize("size", [0, 1, (512 << 10) - 1, 512 << 10, 3_000_000])
def test_what_was_written_comes_back_from_one_gzip_member(size: int) -> None:
    data = bytes(random.Random(size).choices(b"abcdef", k=size))
    target = io.BytesIO()
    with GzipWriter(target) as writer:
        for at in range(0, size, 70_001):
            writer.write(data[at : at + 70_001])
    stored = target.getvalue()
    inflate = zlib.decompressobj(31)
    assert inflate.decompress(stored) == data
    assert (inflate.eof, inflate.unused_data) == (True, b"")
    assert gzip.decompress(stored) == data
    assert writer.plain.hex == hashlib.sha256(data).hexdigest()
    assert writer.stored.hex == hashlib.sha256(stored).hexdigest()
    assert (writer.plain_size, writer.stored_size) == (size, len(stored))


def test_blocks_share_a_window_so_that_splitting_costs_little() -> None:
    data = random.Random(1).randbytes(20_000) * 100
    target = io.BytesIO()
    with GzipWriter(target) as writer:
        writer.write(data)
    assert writer.stored_size < len(gzip.compress(data, 6)) * 1.02
