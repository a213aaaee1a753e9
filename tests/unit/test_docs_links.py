"""The documentation holds together, and says what the program says."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from pagein.daemon.config import Config, RegistryConfig, load_config
from pagein.daemon.stats import MountStats

ROOT = Path(__file__).parents[2]

MARKETING = ("blazing", "seamless", "effortless", "cutting-edge", "state-of-the-art", "leverag",
             "utiliz", "world-class", "revolution", "lightning", "best-in-class", "game-chang",
             "robust", "powerful", "next-generation", "supercharg")  # fmt: skip
TOP_FOLDERS = {"bin", "dev", "etc", "mnt", "opt", "proc", "root", "run", "sys", "tmp", "usr", "var"}
"""Where a path in the documentation may begin: nobody's own folders."""


def load(name: str) -> ModuleType:
    """Import a script of ``docs``, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / f"docs/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


docs = load("check_docs")


def test_every_link_leads_somewhere_and_every_page_is_linked() -> None:
    assert list(docs.problems()) == []
    assert ROOT / "README.md" in docs.pages()


def test_the_check_finds_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    index = tmp_path / "docs/README.md"
    index.write_text(
        "# Über `a`, b!\n\n[here](#über-a-b) [top](../TOP.md#no) [gone](gone.md)\n"
        "`[code](nowhere.md)`\n\n```c\n[no](link)\n```\n"
    )
    (tmp_path / "TOP.md").write_text("# Top\n\n## Twice\n\n## Twice\n\n[second](#twice-1)\n")
    (tmp_path / "docs/alone.md").write_text("# Alone\n\n<!-- run by: tests/none.py -->\n")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    assert list(docs.problems()) == [
        "docs/README.md:3: ../TOP.md#no: no such heading",
        "docs/README.md:3: gone.md leads nowhere",
        "docs/README.md:7: a block in c",
        "docs/alone.md: there is no tests/none.py",
        "docs/alone.md: no link leads here from docs/README.md",
    ]


def test_a_block_knows_its_line_and_why_it_is_not_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n\n<!-- not run: no time -->\n```sh\none\n\ntwo\n```\n\n```text\n```\n")
    first, second = docs.blocks(page)
    assert (first.line, first.text, first.not_run) == (5, "one\n\ntwo", "no time")
    assert (second.line, second.text, second.not_run) == (11, "", None)
    page.write_text("# Page\n\n<!-- run by: tests/own.py -->\n\n```sh\none\n```\n")
    assert [block.not_run for block in docs.blocks(page)] == ["run by tests/own.py"]


def test_the_reference_is_what_the_command_line_says() -> None:
    written = (ROOT / "docs/reference/cli.md").read_text()
    assert written == load("generate_reference").page(), "run: make docs"


@pytest.mark.parametrize("page", docs.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_plain(page: Path) -> None:
    text = page.read_text()
    found = [word for word in MARKETING if word in text.lower()]
    assert found == []
    tops = set(re.findall(r"(?<![\w.~$}\])>/-])/([a-z]+)/[\w.]", re.sub(r"\]\([^)]*\)", "", text)))
    assert tops <= TOP_FOLDERS
    assert text.startswith(("# ", "\n                                 Apache")), "no title"
    assert text.endswith("\n")


def test_every_setting_is_explained_and_its_default_is_right(tmp_path: Path) -> None:
    page = ROOT / "docs/reference/configuration.md"
    file = tmp_path / "config.toml"
    configurations = [block.text for block in docs.blocks(page) if block.language == "toml"]
    file.write_text(configurations[0])
    assert load_config(file) == Config()
    shown = set(re.findall(r"^(\w+) =", "\n".join(configurations), re.MULTILINE))
    explained = set(re.findall(r"`(\w+)`", "\n".join(
        line.split(" | ")[0] for line in page.read_text().splitlines() if line.startswith("| `")
    )))  # fmt: skip
    settings = {field.name for kind in (Config, RegistryConfig)
                for field in msgspec.structs.fields(kind)} - {"registry"}  # fmt: skip
    assert settings <= shown
    assert settings <= explained


def test_every_example_of_a_configuration_can_be_loaded(tmp_path: Path) -> None:
    ours = [
        block
        for page in docs.pages()
        for block in docs.blocks(page)
        if block.language == "toml" and block.text.startswith("# /etc/pagein/config.toml")
    ]
    assert len(ours) >= 5
    for number, block in enumerate(ours):
        file = tmp_path / f"{number}.toml"
        file.write_text(block.text)
        load_config(file)


def test_every_figure_of_a_mount_is_explained() -> None:
    explained = (ROOT / "docs/operations.md").read_text()
    assert [name for name in MountStats().snapshot() if f"`{name}`" not in explained] == []


def test_the_files_that_the_architecture_names_exist() -> None:
    for name in ("ARCHITECTURE.md", "docs/concurrency.md"):
        named = set(re.findall(r"`((?:\w+/)*\w+\.py)`", (ROOT / name).read_text()))
        there = [str(path.relative_to(ROOT)) for path in (ROOT / "src/pagein").rglob("*.py")]
        missing = {one for one in named if not any(path.endswith(f"/{one}") for path in there)}
        assert missing == set()
        assert named


def test_the_classes_and_locks_that_the_concurrency_page_names_exist() -> None:
    text = (ROOT / "docs/concurrency.md").read_text()
    source = "\n".join(path.read_text() for path in (ROOT / "src/pagein").rglob("*.py"))
    for name, attribute in re.findall(r"`([A-Z]\w+)\.(\w+)`", text):
        assert f"class {name}" in source
        assert f"self.{attribute}" in source or f"def {attribute}(" in source
