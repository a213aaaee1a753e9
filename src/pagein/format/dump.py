r"""A tree as text and back, one name a line, for golden files and for looking at.

Rule 1. The first line is ``pagein-tree 1``. Then, in path order, one line for each name, its fields
set apart by one space: ``PATH KIND MODE OWNER MTIME_NS [FIELD=VALUE ...]``. The root is ``/``.
Rule 2. Bytes are printable ASCII; everything else, space, ``\``, ``=`` and ``,`` are ``\xHH``.
Rule 3. Fields, in this order where they apply: ``size``, ``flat`` (body block), ``chunks``
(chunk bits, then a body block or ``-`` for each chunk, by commas), ``content``, ``target``,
``device`` (major, minor), and ``x:NAME`` for each xattr.
Rule 4. A further name of a node is ``PATH link PATH-OF-ITS-FIRST-NAME``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pagein.errors import FormatError
from pagein.format.tree import HOLE, Chunked, Flat, Node, NodeKind, walk

_HEADER = "pagein-tree 1"
_PLAIN = re.compile(rb"[^!-+\--<>-\[\]-~]")
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
_TEXT = re.compile(r"(?:[!-+\--<>-\[\]-~]|\\x[0-9a-f]{2})*")
_NUMBER = re.compile(r"-?[0-9]{1,30}")


def dump_tree(root: Node) -> str:
    """Return the text of a tree; equal trees give equal text."""
    lines = [_HEADER]
    first_names: dict[Node, bytes] = {}
    for path, node in walk(root):
        name = "/" + _escape(path)
        first = first_names.setdefault(node, path)
        if first != path:
            lines.append(f"{name} link /{_escape(first)}")
        else:
            owner = f"{node.uid}:{node.gid}"
            head = f"{name} {node.kind.name.lower()} {node.mode:04o} {owner} {node.mtime_ns}"
            lines.append(" ".join([head, *_fields(node)]))
    return "\n".join(lines) + "\n"


def parse_dump(text: str) -> Node:
    """Read what `dump_tree` wrote. FormatError names the line that cannot be read."""
    lines = text.splitlines()
    if not lines or lines[0] != _HEADER:
        raise FormatError(f"a tree dump starts with {_HEADER!r}", field="header")
    nodes: dict[bytes, Node] = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            _parse_line(line, nodes)
        except (ValueError, KeyError, FormatError) as error:
            raise FormatError(
                f"tree dump, line {number}: {error}", field="line", offset=number
            ) from None
    if b"" not in nodes:
        raise FormatError("a tree dump without a root", field="root")
    return nodes[b""]


def _fields(node: Node) -> Iterator[str]:
    if node.kind is NodeKind.FILE:
        yield f"size={node.size}"
    match node.layout:
        case Flat(block):
            yield f"flat={block}"
        case Chunked(bits, blocks):
            listed = ("-" if block == HOLE else str(block) for block in blocks)
            yield "chunks=" + ",".join([str(bits), *listed])
        case None:
            pass
    if node.content is not None:
        yield f"content={_escape(node.content)}"
    if node.kind is NodeKind.SYMLINK:
        yield f"target={_escape(node.target)}"
    if node.kind in (NodeKind.CHAR_DEVICE, NodeKind.BLOCK_DEVICE):
        yield f"device={node.device[0]},{node.device[1]}"
    for name in sorted(node.xattrs):
        yield f"x:{_escape(name)}={_escape(node.xattrs[name])}"


def _parse_line(line: str, nodes: dict[bytes, Node]) -> None:
    path_text, kind_text, *rest = line.split(" ")
    if not path_text.startswith("/"):
        raise FormatError(f"{path_text[:80]!r} is no path")
    path = _unescape(path_text[1:])
    if kind_text == "link":
        (target,) = rest
        node = nodes[_unescape(target[1:])]
    else:
        node = _parse_node(NodeKind[kind_text.upper()], rest)
    if path in nodes:
        raise FormatError(f"{path!r} is there twice")
    if path:
        parent, slash, name = path.rpartition(b"/")
        if not name or (slash and not parent) or not nodes[parent].is_directory:
            raise FormatError(f"{path!r} has no directory above it")
        nodes[parent].children[name] = node
    nodes[path] = node


def _parse_node(kind: NodeKind, words: list[str]) -> Node:
    mode, owner, mtime, *fields = words
    uid, gid = owner.split(":")
    node = Node(kind, int(mode, 8), _number(uid), _number(gid), _number(mtime))
    for field in fields:
        key, value = field.split("=")
        match key:
            case "size":
                node.size = _number(value)
            case "flat":
                node.layout = Flat(_number(value))
            case "chunks":
                bits, *blocks = value.split(",")
                numbers = tuple(HOLE if block == "-" else _number(block) for block in blocks)
                node.layout = Chunked(_number(bits), numbers)
            case "content":
                node.content = _unescape(value)
            case "target":
                node.target = _unescape(value)
            case "device":
                major, minor = value.split(",")
                node.device = (_number(major), _number(minor))
            case _ if key.startswith("x:"):
                node.xattrs[_unescape(key[2:])] = _unescape(value)
            case _:
                raise FormatError(f"no field is called {key[:80]!r}")
    return node


def _number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise FormatError(f"{text[:80]!r} is no number")
    return int(text)


def _escape(data: bytes) -> str:
    return _PLAIN.sub(lambda found: b"\\x%02x" % found[0][0], data).decode("ascii")


def _unescape(text: str) -> bytes:
    if not _TEXT.fullmatch(text):
        raise FormatError(f"{text[:80]!r} is not escaped")
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text).encode("latin-1")
