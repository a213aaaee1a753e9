"""Random stacks of layers against a flat dictionary of paths, which is all OCI layering says."""

import contextlib
import io
from dataclasses import dataclass

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pagein.errors import FormatError
from pagein.format.compression import open_decompressed
from pagein.format.merge import LayerMerger
from pagein.format.tar import read_entries
from pagein.format.tree import NodeKind, walk
from pagein.testing.layer_corpus import (
    COMPRESSIONS,
    Item,
    directory,
    file,
    hard_link,
    opaque,
    symlink,
    tar_layer,
    whiteout,
)

NAMES = [b"a", b"b", b"c"]
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(b"/".join)


@dataclass(frozen=True)
class Step:
    """One entry: what it does, where, and for hard links to what."""

    kind: str
    path: bytes
    target: bytes
    mode: int

    def item(self) -> Item:
        match self.kind:
            case "file":
                return file(self.path, b"%d" % self.mode, mode=self.mode)
            case "directory":
                return directory(self.path, mode=self.mode)
            case "symlink":
                return symlink(self.path, b"nowhere/%d" % self.mode)
            case "hard link":
                return hard_link(self.path, self.target)
            case "whiteout":
                return whiteout(self.path)
            case _:
                return opaque(self.path)


kinds = st.sampled_from(
    ["file", "file", "directory", "directory", "symlink", "hard link", "whiteout", "opaque"]
)
steps = st.builds(Step, kinds, paths, paths, st.integers(0, 0o777))
stacks = st.lists(st.lists(steps, max_size=8), min_size=1, max_size=4)


plain_layers = st.lists(
    st.builds(Step, st.sampled_from(["file", "directory"]), paths, paths, st.integers(0, 0o777)),
    max_size=6,
).map(lambda layer: model([layer])[0][0])
whiteouts_only = st.lists(
    st.builds(Step, st.sampled_from(["whiteout", "opaque"]), paths, paths, st.just(0)), max_size=4
)


class RefusedError(Exception):
    """The stack has an entry that no file system would take."""


def model(stack: list[list[Step]]) -> tuple[list[list[Step]], dict[bytes, object]]:
    """Apply a stack to ``{path: value}``; a file's value is a list, so links share identity.

    Returns the stack without the steps that are refused, and the dictionary.
    """
    tree: dict[bytes, object] = {}
    accepted: list[list[Step]] = []
    for layer in stack:
        mine: set[bytes] = set()
        accepted.append([])
        for step in layer:
            before = dict(tree), set(mine)
            try:
                apply(tree, mine, step)
                accepted[-1].append(step)
            except RefusedError:
                tree, mine = before
    return accepted, tree


def apply(tree: dict[bytes, object], mine: set[bytes], step: Step) -> None:
    above = [step.path[:at] for at in range(len(step.path)) if step.path[at : at + 1] == b"/"]
    if any(is_link(tree.get(path)) for path in above):
        raise RefusedError
    if step.kind in ("whiteout", "opaque"):
        if step.kind == "opaque" and is_link(tree.get(step.path)):
            raise RefusedError
        if step.kind == "whiteout" or is_directory(tree.get(step.path)):
            for path in [p for p in tree if below(p, step.path) and p not in mine]:
                if path != step.path or step.kind == "whiteout":
                    del tree[path]
        return
    for path in above:
        if not is_directory(tree.setdefault(path, ("directory", 0o755))):
            raise RefusedError
        mine.add(path)
    mine.add(step.path)
    if step.kind == "directory" and is_directory(tree.get(step.path)):
        tree[step.path] = ("directory", step.mode)
        return
    for path in [p for p in tree if below(p, step.path)]:
        del tree[path]
    tree[step.path] = made(tree, step)


def made(tree: dict[bytes, object], step: Step) -> object:
    match step.kind:
        case "file":
            return ["file", step.mode, b"%d" % step.mode]
        case "directory":
            return ("directory", step.mode)
        case "symlink":
            return ["symlink", b"nowhere/%d" % step.mode]
    above = [step.target[:at] for at in range(len(step.target)) if step.target[at : at + 1] == b"/"]
    target = tree.get(step.target)
    if target is None or is_directory(target) or any(is_link(tree.get(p)) for p in above):
        raise RefusedError
    return target


def below(path: bytes, top: bytes) -> bool:
    return path == top or path.startswith(top + b"/")


def is_directory(value: object) -> bool:
    return isinstance(value, tuple)


def is_link(value: object) -> bool:
    return isinstance(value, list) and value[0] == "symlink"


def merged(stack: list[list[Step]]) -> tuple[LayerMerger, dict[int, bytes]]:
    merger, contents = LayerMerger(), {}
    for layer in stack:
        merger.begin_layer()
        for entry in read_entries(io.BytesIO(tar_layer(*(step.item() for step in layer)))):
            if (node := merger.add(entry)) is not None:
                contents[id(node)] = b"".join(data for _, data in entry.chunks())
        merger.end_layer()
    return merger, contents


@settings(max_examples=250, deadline=None)
@given(stacks)
def test_a_stack_of_layers_merges_to_what_a_dictionary_of_paths_says(stack) -> None:
    stack, expected = model(stack)
    merger, contents = merged(stack)
    seen: dict[bytes, object] = {}
    identities: dict[bytes, int] = {}
    for path, node in walk(merger.root):
        if not path:
            continue
        identities[path] = id(node)
        if node.kind is NodeKind.FILE:
            seen[path] = ["file", node.mode, contents[id(node)]]
        elif node.kind is NodeKind.SYMLINK:
            seen[path] = ["symlink", node.target]
        else:
            seen[path] = ("directory", node.mode)
    assert seen == expected
    files = [path for path, value in expected.items() if isinstance(value, list)]
    for one in files:
        for other in files:
            same = expected[one] is expected[other]
            assert same == (identities[one] == identities[other]), (one, other)


@settings(max_examples=100, deadline=None)
@given(
    plain_layers,
    plain_layers,
    whiteouts_only,
    st.randoms(use_true_random=False),
)
def test_where_the_whiteouts_stand_in_a_layer_does_not_change_what_is_there(
    lower, upper, whiteouts, random
) -> None:
    mixed = list(upper)
    for step in whiteouts:
        mixed.insert(random.randint(0, len(mixed)), step)
    both = [lower, whiteouts + upper], [lower, mixed]
    assume(all(model(stack)[0] == stack for stack in both))
    first, last = merged(both[0])[0], merged(both[1])[0]
    names = [
        {(path, node.kind, node.size) for path, node in walk(merger.root)}
        for merger in (first, last)
    ]
    assert names[0] == names[1]


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=6), st.booleans(), st.data())
def test_an_archive_with_any_byte_changed_is_read_or_refused_and_nothing_else(
    layer, mend, data
) -> None:
    archive = bytearray(tar_layer(*(step.item() for step in layer)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(archive) - 1))
        archive[at] = data.draw(st.integers(0, 255))
        start = at // 512 * 512
        if mend and archive[start + 257 : start + 262] == b"ustar":
            # Past the checksum, which stops nearly all, into what lies behind it.
            archive[start + 148 : start + 156] = b" " * 8
            total = sum(archive[start : start + 512])
            archive[start + 148 : start + 156] = b"%06o\0 " % total
    with contextlib.suppress(FormatError):
        read_all(bytes(archive))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["gzip-members", "zstd-frames"]), st.data())
def test_a_compressed_layer_with_any_byte_changed_gives_the_right_bytes_or_an_error(
    compression, data
) -> None:
    archive = tar_layer(file(b"f", b"some data" * 300))
    blob = bytearray(COMPRESSIONS[compression][1](archive))
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(FormatError):
        assert open_decompressed(io.BytesIO(bytes(blob))).read() == archive


def read_all(blob: bytes) -> None:
    merger = LayerMerger()
    merger.begin_layer()
    for entry in read_entries(io.BytesIO(blob)):
        merger.add(entry)
        assert sum(len(data) for _, data in entry.chunks()) <= entry.size
