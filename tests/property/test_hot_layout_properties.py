"""A file reads the same through its coarsest map as by blocks; no chunk spans two parts."""

from hypothesis import given
from hypothesis import strategies as st

from pagein.format.hot import block_addresses, coarsest, moved
from pagein.format.tree import HOLE, Flat

HOT = 8


@given(st.lists(st.one_of(st.just(HOLE), st.integers(0, 24)), min_size=1, max_size=40))
def test_a_coarsest_map_names_the_same_blocks(blocks: list[int]) -> None:
    assert block_addresses(coarsest(blocks, HOT), len(blocks) * 4096) == blocks


@given(st.integers(0, 12), st.integers(1, 40), st.sets(st.integers(0, 50), max_size=HOT))
def test_hot_blocks_move_to_their_copies_and_others_behind(
    start: int, count: int, hot: set[int]
) -> None:
    copies = {block: place for place, block in enumerate(sorted(hot))}
    old = block_addresses(Flat(start), count * 4096)
    new = moved(old, copies, HOT)
    source = {place: block for block, place in copies.items()}
    assert [source[block] if block < HOT else block - HOT for block in new] == old
    layout = coarsest(new, HOT)
    assert block_addresses(layout, count * 4096) == new
    for chunk in range(0, count, 1 << layout.chunk_bits):
        inside = new[chunk : chunk + (1 << layout.chunk_bits)]
        assert len({block < HOT for block in inside}) == 1
