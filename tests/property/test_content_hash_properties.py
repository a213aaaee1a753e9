"""A content's name depends on the bytes alone, not on pieces and holes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.build.verify import content_digest
from pagein.errors import FormatError

BLOCK = 32 << 10


def contents() -> st.SearchStrategy[bytes]:
    """Up to ten half-pieces, some zeros, some not, with a ragged end."""
    blocks = st.lists(st.sampled_from([bytes(BLOCK), b"\1" * BLOCK, bytes(9) + b"x" * (BLOCK - 9)]))
    return st.tuples(blocks, st.binary(max_size=20)).map(
        lambda parts: b"".join(parts[0]) + parts[1]
    )


@given(contents(), st.lists(st.integers(0, 20 * BLOCK)))
def test_pieces_and_holes_do_not_matter(data: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = [(start, data[start:stop]) for start, stop in pairwise(edges)]
    sparse = [(start, piece) for start, piece in pieces if piece.strip(b"\0")]
    whole = content_digest([(0, data)], len(data))
    assert content_digest(pieces, len(data)) == whole
    assert content_digest(sparse, len(data)) == whole


@given(contents(), st.data())
def test_one_other_byte_is_another_content(data: bytes, choose: st.DataObject) -> None:
    if not data:
        return
    at = choose.draw(st.integers(0, len(data) - 1))
    changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    assert content_digest([(0, changed)], len(data)) != content_digest([(0, data)], len(data))
    assert content_digest([(0, data)], len(data) + 1) != content_digest([(0, data)], len(data))


def test_a_hole_of_a_terabyte_costs_nothing() -> None:
    tail = (1 << 40) - 1
    assert content_digest([(0, b"a"), (tail, b"b")], 1 << 40) != content_digest(
        [(0, b"a"), (tail - 1, b"b")], 1 << 40
    )


def test_data_that_goes_back_is_refused() -> None:
    with pytest.raises(FormatError, match="goes back"):
        content_digest([(5, b"abc"), (7, b"x")], 20)
