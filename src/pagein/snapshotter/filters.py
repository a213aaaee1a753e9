"""containerd's filter language (its pkg/filters/parser.go), as a predicate on snapshots.

    filter   := selector ("," selector)*                  all must hold
    selector := path | path operator value                a path alone: the field is there
    path     := field ("." field)*
    field    := quoted | [A-Za-z0-9_]+
    operator := "==" | "!=" | "~="                        ~= is a regular expression, not anchored
    value    := quoted | [^ ,]+
    quoted   := a Go string in "" ; after ~= also in // or ||

Several filters: any must hold. An empty filter holds always. White space between tokens is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from pagein.errors import UsageError
from pagein.snapshotter.values import Info

Predicate = Callable[[Info], bool]

MAX_FILTER: Final = 16 << 10
"""Bytes of one filter; containerd's longest hold a label of at most 4 KiB and a key."""

_SPACE = re.compile(r"\s*")
_FIELD = re.compile(r"[A-Za-z0-9_]+")
_OPERATOR = re.compile(r"==|!=|~=")
_VALUE = re.compile(r"[^\s,]+")
_QUOTED = {quote: re.compile(rf"{re.escape(quote)}((?:\\.|[^\\{quote}])*){re.escape(quote)}", re.S)
           for quote in '"/|'}  # fmt: skip
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.S)
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
           "\\": "\\", '"': '"', "'": "'"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Selector:
    """One condition. ``operator`` is empty where only presence is asked for."""

    path: tuple[str, ...]
    operator: str = ""
    value: str = ""

    def holds(self, info: Info) -> bool:
        """Whether ``info`` meets the condition, as containerd's selector decides."""
        found = field_of(info, self.path)
        match self.operator:
            case "==":
                return found == self.value
            case "!=":
                return (found or "") != self.value
            case "~=":
                return re.search(self.value, found or "") is not None
            case _:
                return found is not None


def field_of(info: Info, path: tuple[str, ...]) -> str | None:
    """Return a field as text; None if it is absent or unknown."""
    match path:
        case ("name",):
            return info.name
        case ("parent",):
            return info.parent
        case ("kind",):
            return info.kind.name.lower()
        case ("labels", *rest):
            return info.labels.get(".".join(rest))
        case _:
            return None


def parse_filters(filters: Iterable[str]) -> Predicate:
    """Return the predicate that holds where any filter does. Raises UsageError."""
    parsed = [parse_filter(text) for text in filters]
    if not parsed or any(not selectors for selectors in parsed):
        return lambda _: True
    return lambda info: any(all(one.holds(info) for one in selectors) for selectors in parsed)


def parse_filter(text: str) -> tuple[Selector, ...]:
    """Read one filter; an empty one has no selectors. Raises UsageError."""
    if len(text) > MAX_FILTER:
        raise UsageError(f"a filter of {len(text)} characters")
    scanner = _Scanner(text)
    selectors: list[Selector] = []
    while not scanner.at_end():
        if selectors:
            scanner.expect(",")
        selectors.append(scanner.selector())
    return tuple(selectors)


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._skip_space()

    def at_end(self) -> bool:
        return self._at == len(self._text)

    def expect(self, mark: str) -> None:
        if not self._take_mark(mark):
            raise self._error(f"expected {mark!r}")

    def selector(self) -> Selector:
        path = [self._field()]
        while self._take_mark("."):
            path.append(self._field())
        operator = self._take(_OPERATOR)
        if operator is None:
            return Selector(tuple(path))
        value = self._value('"/|' if operator == "~=" else '"')
        if operator == "~=":
            try:
                re.compile(value)
            except re.error as error:
                raise self._error(f"not a regular expression: {error}") from None
        return Selector(tuple(path), operator, value)

    def _field(self) -> str:
        found = self._quoted('"') if self._peek() == '"' else self._take(_FIELD)
        if not found:
            raise self._error("expected a field")
        return found

    def _value(self, quotes: str) -> str:
        if self._peek() and self._peek() in quotes:
            return self._quoted(self._peek())
        found = self._take(_VALUE)
        if found is None or found[0] in _QUOTED:
            raise self._error("expected a value")
        return found

    def _quoted(self, quote: str) -> str:
        match = _QUOTED[quote].match(self._text, self._at)
        if match is None:
            raise self._error("a quote is not closed")
        self._at = match.end()
        self._skip_space()
        return self._unquoted(match[1], quote)

    def _unquoted(self, text: str, quote: str) -> str:
        if quote != '"':  # regular expressions keep their backslashes
            return text.replace("\\" + quote, quote)

        def replace(match: re.Match[str]) -> str:
            code = match[1]
            if code[0] in "xuU" and len(code) > 1:
                number = int(code[1:], 16)
            elif len(code) == 3:
                number = int(code, 8)
            elif code in _SIMPLE:
                return _SIMPLE[code]
            else:
                raise self._error(f"unknown escape \\{code}")
            if number > 0x10FFFF:
                raise self._error(f"no character \\{code}")
            return chr(number)

        return _ESCAPE.sub(replace, text)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take_mark(self, mark: str) -> bool:
        if self._peek() != mark:
            return False
        self._at += 1
        self._skip_space()
        return True

    def _take(self, pattern: re.Pattern[str]) -> str | None:
        match = pattern.match(self._text, self._at)
        if match is None:
            return None
        self._at = match.end()
        self._skip_space()
        return match[0]

    def _skip_space(self) -> None:
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _error(self, what: str) -> UsageError:
        return UsageError(f"cannot read the filter {self._text[:200]!r} at {self._at}: {what}")
