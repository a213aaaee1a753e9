"""containerd's filter language, by the grammar in its pkg/filters/parser.go."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.errors import UsageError
from pagein.snapshotter.filters import Selector, parse_filter, parse_filters
from pagein.snapshotter.values import Info, Kind

REF = "containerd.io/snapshot.ref"
INFO = Info(
    "default/3/sha256:aa", "default/2/sha256:bb", Kind.COMMITTED, 1, 2, {REF: "x", "a.b": "é"}
)


@pytest.mark.parametrize(
    ("text", "selectors"),
    [
        ("", []),
        ("name", [Selector(("name",))]),
        ("name==foo", [Selector(("name",), "==", "foo")]),
        ("name != foo , kind==view", [Selector(("name",), "!=", "foo"),
                                      Selector(("kind",), "==", "view")]),
        (f'labels."{REF}"=="sha256:aa",parent=="b"',
         [Selector(("labels", REF), "==", "sha256:aa"), Selector(("parent",), "==", "b")]),
        ('name=="a\\"b\\n\\x41\\u00e9\\101"', [Selector(("name",), "==", 'a"b\nAéA')]),
        ("name~=/a\\/b\\d+/", [Selector(("name",), "~=", "a/b\\d+")]),
        ("name~=|^a,b$|", [Selector(("name",), "~=", "^a,b$")]),
        ("labels.a.b==c", [Selector(("labels", "a", "b"), "==", "c")]),
        ("name==default/3/x-1:y", [Selector(("name",), "==", "default/3/x-1:y")]),
    ],
)  # fmt: skip
def test_filters_are_read(text: str, selectors: list[Selector]) -> None:
    assert list(parse_filter(text)) == selectors


@pytest.mark.parametrize(
    "text",
    ["==", "name=", "name==", "name=foo", "name==/a/", 'name=="a', "name,", ",name", "name kind",
     "name.", "name..b", 'name=="\\q"', "name~=(", "-", 'name=="a"b', "x" * 20000,
     'name=="\\UFFFFFFFF"'],
)  # fmt: skip
def test_what_is_no_filter_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"filter"):
        parse_filter(text)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("", True),
        ("name==default/3/sha256:aa", True),
        ("name!=default/3/sha256:aa", False),
        ("kind==committed", True),
        ("kind==active", False),
        ("name~=sha256", True),
        ("name~=^sha256", False),
        ("labels.a.b", True),
        ('labels."a.b"==é', True),
        ("labels.none", False),
        ("labels.none==x", False),
        ('labels.none!=x', True),
        ('labels.none!=""', False),
        ("nonsense", False),
        ("nonsense.deep", False),
        (f'labels."{REF}"==x,parent=="default/2/sha256:bb"', True),
        (f'labels."{REF}"==x,parent==""', False),
    ],
)  # fmt: skip
def test_filters_choose(text: str, holds: bool) -> None:
    assert parse_filters([text])(INFO) is holds


def test_any_of_several_filters_is_enough() -> None:
    assert parse_filters([])(INFO)
    assert parse_filters(["kind==view", "kind==committed"])(INFO)
    assert not parse_filters(["kind==view", "kind==active"])(INFO)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        parse_filters([text])(INFO)


@given(st.text())
def test_any_value_can_be_quoted(value: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    if len(quoted) < 8000:
        assert parse_filter(f'name=="{quoted}"') == (Selector(("name",), "==", value),)
