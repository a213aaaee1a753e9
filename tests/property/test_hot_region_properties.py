"""Random files and touches: what a hot region holds, and that every file reads as before."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from pagein.format.block_runs import Move, Moves, Run, coarsest, runs_of
from pagein.format.erofs.check import check_metadata
from pagein.format.erofs.read import read_tree
from pagein.format.erofs.write import write_metadata
from pagein.format.hot import CopySector, HotPlan, lay_out, plan_hot_region
from pagein.format.profile import Profile, ProfiledFile, Touch
from pagein.format.tree import HOLE, Chunked, Flat, Node, NodeKind
from pagein.types import Digest

SECTOR_SIZE = 256 << 10
PER_SECTOR = SECTOR_SIZE // 4096
HOT = 8

runs = st.builds(Run, st.integers(HOLE, 40), st.integers(1, 9))


def expanded(layout: Flat | Chunked, size: int) -> list[int]:
    """The block of each block of a file, the slow way."""
    count = -(-size // 4096)
    if isinstance(layout, Flat):
        return [layout.block + i for i in range(count)]
    step = 1 << layout.chunk_bits
    starts = [layout.blocks[i // step] for i in range(count)]
    return [start if start == HOLE else start + i % step for i, start in enumerate(starts)]


def blocks_of(some: list[Run]) -> list[int]:
    return [b if b == HOLE else b + i for b, length in some for i in range(length)]


@given(st.lists(runs, min_size=1, max_size=12))
def test_a_coarsest_map_names_the_blocks_of_its_runs(some: list[Run]) -> None:
    blocks = blocks_of(some)
    layout = coarsest(some)
    assert expanded(layout, len(blocks) * 4096) == blocks
    assert blocks_of(list(runs_of(layout, len(blocks) * 4096))) == blocks


@given(st.integers(0, 12), st.integers(1, 40), st.sets(st.integers(0, 50), max_size=HOT))
def test_blocks_with_copies_move_to_them_and_others_shift(
    start: int, count: int, hot: set[int]
) -> None:
    copies = {block: place for place, block in enumerate(sorted(hot))}
    moves = Moves.of([Move(block, place, 1) for block, place in copies.items()], HOT)
    layout = moves.layout(Flat(start), count * 4096)
    wanted = [copies.get(b, b + HOT) for b in range(start, start + count)]
    assert expanded(layout, count * 4096) == wanted
    step = 1 << layout.chunk_bits if isinstance(layout, Chunked) else count
    for chunk in range(0, count, step):
        assert len({block < HOT for block in wanted[chunk : chunk + step]}) == 1


@st.composite
def placed_trees(draw: st.DrawFn) -> tuple[Node, int]:
    """A tree as a conversion places it, and its sectors of data: large files on sectors of their
    own, one of them with holes, then small ones; some files have the content of others."""
    root = Node(NodeKind.DIRECTORY)
    sectors = 0
    for i, blocks in enumerate(draw(st.lists(st.integers(64, 300), max_size=3))):
        size = blocks * 4096 - draw(st.integers(0, 4095))
        root.children[b"large%d" % i] = Node(
            NodeKind.FILE, size=size, layout=Flat(sectors * PER_SECTOR)
        )
        sectors += -(-blocks // PER_SECTOR)
    present = draw(st.lists(st.booleans(), max_size=4))
    if present:
        starts = []
        for there in present:
            starts.append(sectors * PER_SECTOR if there else HOLE)
            sectors += there
        layout = Chunked(PER_SECTOR.bit_length() - 1, tuple(starts))
        root.children[b"sparse"] = Node(
            NodeKind.FILE, size=len(present) * SECTOR_SIZE, layout=layout
        )
    block = 0
    for i, blocks in enumerate(draw(st.lists(st.integers(1, 20), min_size=1, max_size=12))):
        if block + blocks > PER_SECTOR:
            break
        size = blocks * 4096 - draw(st.integers(0, 4095))
        node = Node(NodeKind.FILE, size=size, layout=Flat(sectors * PER_SECTOR + block))
        block += blocks
        root.children[b"small%d" % i] = node
        if draw(st.booleans()):
            root.children[b"twin%d" % i] = Node(NodeKind.FILE, size=size, layout=node.layout)
        if draw(st.booleans()):
            root.children[b"link%d" % i] = node
    return root, sectors + 1


def profile_of(files: list[ProfiledFile], touches: list[Touch]) -> Profile:
    return Profile(
        recorded="2026-01-31T12:00:00Z",
        reference="here/app:v1",
        source=Digest.of(b"source"),
        read_ahead_kb=32,
        seconds=1.0,
        files=tuple(files),
        touches=tuple(touches),
    )


@st.composite
def starts(draw: st.DrawFn) -> tuple[Node, int, Profile]:
    """A tree and a profile of it, in which a file may be touched more than once at one place."""
    root, sectors = draw(placed_trees())
    names = sorted(root.children)
    files = [ProfiledFile.of(name, root.children[name].size) for name in names]
    touches = []
    for number in draw(st.lists(st.integers(0, len(files) - 1), max_size=30)):
        size = files[number].size
        first = draw(st.integers(0, (size - 1) // 4096))
        count = draw(st.integers(1, -(-size // 4096) - first))
        offset = first * 4096
        touches.append(Touch(number, offset, min(count * 4096, size - offset), 0))
    return root, sectors, profile_of(files, touches)


def held(plan: HotPlan) -> list[int | None]:
    """The data block that each hot block is a copy of; None for padding."""
    found: list[int | None] = []
    for sector in plan.sectors:
        here: list[int | None] = []
        if isinstance(sector, CopySector):
            here += [block + i for block, length in sector.runs for i in range(length)]
        else:
            here += range(sector.number * PER_SECTOR, (sector.number + 1) * PER_SECTOR)
        assert len(here) <= PER_SECTOR
        found += here + [None] * (PER_SECTOR - len(here))
    return found


def touched_blocks(root: Node, profile: Profile) -> list[int]:
    """The data blocks that the touches fall into, in order of first touch."""
    found: dict[int, None] = {}
    for number, offset, length, _ in profile.touches:
        node = root.children[profile.files[number].path]
        assert node.layout is not None
        blocks = expanded(node.layout, node.size)
        for block in blocks[offset // 4096 : -(-(offset + length) // 4096)]:
            if block != HOLE:
                found.setdefault(block)
    return list(found)


@settings(max_examples=150, deadline=None)
@given(starts())
def test_every_file_reads_the_same_blocks_through_the_new_layout(
    start: tuple[Node, int, Profile],
) -> None:
    root, sectors, profile = start
    before = {
        name: expanded(node.layout, node.size)  # type: ignore[arg-type]
        for name, node in root.children.items()
    }
    touched = touched_blocks(root, profile)
    plan = plan_hot_region(root, profile, sector_size=SECTOR_SIZE)
    hot = held(plan)
    lay_out(root, plan.moves)
    sizes = {
        "sector_size": SECTOR_SIZE,
        "hot_blocks": len(hot),
        "data_blocks": sectors * PER_SECTOR,
    }
    metadata = write_metadata(root, **sizes)  # refuses a chunk that spans two parts
    check_metadata(metadata, **sizes)
    for name, node in read_tree(metadata).children.items():
        assert node.layout is not None
        now = expanded(node.layout, node.size)
        was = [block if block < 0 else hot[block] if block < len(hot) else block - len(hot)
               for block in now]  # fmt: skip
        assert was == before[name]
        for old, new in zip(before[name], now, strict=True):
            assert old not in touched or new < len(hot)


@settings(max_examples=150, deadline=None)
@given(starts())
def test_a_hot_region_holds_what_was_touched_once_each_in_order_of_first_touch(
    start: tuple[Node, int, Profile],
) -> None:
    root, _, profile = start
    touched = touched_blocks(root, profile)
    plan = plan_hot_region(root, profile, sector_size=SECTOR_SIZE)
    hot = held(plan)
    there = [block for block in hot if block is not None]
    assert len(there) == len(set(there))
    assert set(touched) <= set(there)
    place = {block: at for at, block in enumerate(hot) if block is not None}
    copied = [b for b in touched if isinstance(plan.sectors[place[b] // PER_SECTOR], CopySector)]
    sure = [block for block in copied if is_exact(plan, place[block], touched)]
    assert all(place[a] < place[b] for a, b in pairwise(sure))
    firsts = [min(touched.index(b) for b in hot[at : at + PER_SECTOR] if b in touched)
              for at in range(0, len(hot), PER_SECTOR)]  # fmt: skip
    assert firsts == sorted(firsts)
    assert plan.match.bytes_taken == profile.touched


def is_exact(plan: HotPlan, place: int, touched: list[int]) -> bool:
    """Whether a block was not taken along with a neighbour that was touched before it."""
    sector = plan.sectors[place // PER_SECTOR]
    assert isinstance(sector, CopySector)
    at = place % PER_SECTOR
    for block, length in sector.runs:
        if at < length:
            return touched.index(block + at) == min(
                touched.index(b) for b in range(block, block + length) if b in touched
            )
        at -= length
    raise AssertionError


@given(st.integers(0, 8))
def test_a_sector_is_taken_whole_from_seven_eighths_on(eighths: int) -> None:
    count = eighths * PER_SECTOR // 8
    root = Node(NodeKind.DIRECTORY)
    root.children[b"weights"] = Node(NodeKind.FILE, size=4 * SECTOR_SIZE, layout=Flat(0))
    first = PER_SECTOR
    touches = [Touch(0, (first + i) * 4096, 4096, 0) for i in range(count)]
    profile = profile_of([ProfiledFile.of(b"weights", 4 * SECTOR_SIZE)], touches)
    plan = plan_hot_region(root, profile, sector_size=SECTOR_SIZE)
    whole = [sector for sector in plan.sectors if not isinstance(sector, CopySector)]
    assert [sector.number for sector in whole] == ([1] if eighths >= 7 else [])
    assert len(plan.sectors) == (1 if count else 0)
