"""How the words of a command line are read, where click alone would read them otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from pagein.cli import demo, run


def read(command: Any, *words: str) -> dict[str, Any]:
    with command.make_context("pagein", list(words)) as context:
        return dict(context.params)


@pytest.mark.parametrize(
    ("words", "image", "arguments", "runs"),
    [
        ((), None, (), 1),
        (("app:v1",), "app:v1", (), 1),
        (("app:v1", "--", "sh", "-c", "echo x"), "app:v1", ("sh", "-c", "echo x"), 1),
        (("--", "sh", "-c", "echo x"), None, ("sh", "-c", "echo x"), 1),
        (("--runs", "5", "app:v1", "--", "ls", "--runs", "3"), "app:v1", ("ls", "--runs", "3"), 5),
        (("app:v1", "--runs", "2", "--", "a", "--", "b"), "app:v1", ("a", "--", "b"), 2),
    ],
)
def test_a_demo_takes_what_follows_the_dashes_for_its_command(
    words: tuple[str, ...], image: str | None, arguments: tuple[str, ...], runs: int
) -> None:
    found = read(demo.command, *words)
    assert (found["image"], found["arguments"], found["runs"]) == (image, arguments, runs)


@pytest.mark.parametrize("dashes", [(), ("--",)])
def test_a_run_leaves_the_options_of_its_command_alone(dashes: tuple[str, ...]) -> None:
    found = read(run.command, "--rm", "app:v1", *dashes, "ls", "--rm", "-e", "x")
    assert found["reference"] == "app:v1"
    assert found["remove"] is True
    assert found["arguments"][-4:] == ("ls", "--rm", "-e", "x")
