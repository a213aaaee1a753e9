"""Check the documentation: ``python docs/check_docs.py`` prints what is wrong, and fails.

A relative link leads to a file, its anchor to a heading; every page below ``docs`` is linked from
``docs/README.md``, directly or not; every block of code is in a language that a reader knows. The
tests use the same functions, also to find the commands that they run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = {"sh", "text", "toml", "yaml", "json", "python"}

_FENCE = re.compile(r"```(\w*)\s*$")
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->$")
_RUN_BY = re.compile(r"^<!-- run by: (\S+) -->$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_CODE = re.compile(r"`[^`]*`")


@dataclass(frozen=True)
class Block:
    """A fenced block. ``line`` is where its text begins; ``not_run`` why it is not run with others.

    That is said in a comment before the block, or once for a page that a test of its own runs.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None


def pages() -> list[Path]:
    """Return every page, those at the top of the repository first."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    above = language = None
    text: list[str] = []
    start = 0
    whole = run_by(page)
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = _FENCE.match(line)
        if language is not None:
            if line == "```":
                reason = _NOT_RUN.match(above or "")
                not_run = reason[1] if reason else whole and f"run by {whole}"
                yield Block(page, start, language, "\n".join(text), not_run)
                above = language = None
            else:
                text.append(line)
        elif fence:
            language, start, text = fence[1], number + 1, []
        elif line:
            above = line


def run_by(page: Path) -> str | None:
    """Return the test that runs the commands of a page, where it is one of its own."""
    found = _RUN_BY.search(page.read_text())
    return found[1] if found else None


def prose(page: Path) -> str:
    """Return a page without its fenced blocks; lines keep their places."""
    lines = page.read_text().splitlines()
    for block in blocks(page):
        for number in range(block.line - 2, block.line + block.text.count("\n") + 1):
            lines[number] = ""
    return "\n".join(lines)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        text = _LINK.sub("]", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found


def links(page: Path) -> Iterator[tuple[int, str]]:
    """Yield line and target of each relative link."""
    for number, line in enumerate(prose(page).splitlines(), 1):
        for target in _LINK.findall(_CODE.sub("", line)):
            if "://" not in target and not target.startswith("mailto:"):
                yield number, target


def target_of(page: Path, link: str) -> tuple[Path, str]:
    """Return the file that a link leads to, and the anchor in it."""
    path, _, anchor = link.partition("#")
    return (page.parent / path).resolve() if path else page, anchor


def reachable() -> set[Path]:
    """Return the pages that links lead to from ``docs/README.md``."""
    seen: set[Path] = set()
    waiting = [ROOT / "docs/README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md" or not page.exists():
            continue
        seen.add(page)
        waiting += [target_of(page, link)[0] for _, link in links(page)]
    return seen


def problems() -> Iterator[str]:
    """Yield a line for each thing that is wrong."""
    for page in pages():
        where = page.relative_to(ROOT)
        for number, link in links(page):
            target, anchor = target_of(page, link)
            if not target.exists():
                yield f"{where}:{number}: {link} leads nowhere"
            elif anchor and target.suffix == ".md" and anchor not in anchors(target):
                yield f"{where}:{number}: {link}: no such heading"
        for block in blocks(page):
            if block.language not in LANGUAGES:
                yield f"{where}:{block.line}: a block in {block.language or 'no language'}"
        if (test := run_by(page)) and not (ROOT / test).exists():
            yield f"{where}: there is no {test}"
    for page in set(pages()) - reachable():
        yield f"{page.relative_to(ROOT)}: no link leads here from docs/README.md"


if __name__ == "__main__":
    found = list(problems())
    print("\n".join(found) or "documentation: all links lead somewhere")
    sys.exit(1 if found else 0)
