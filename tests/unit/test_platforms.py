"""Which image of an index a machine takes: the rules of containerd/platforms, case by case."""

from __future__ import annotations

import pytest

from pagein.errors import UsageError
from pagein.format.platforms import Platform


@pytest.mark.parametrize(
    ("machine", "shown"),
    [
        ("x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("armv7l", "linux/arm/v7"),
        ("armv6l", "linux/arm/v6"),
        ("i686", "linux/386"),
        ("riscv64", "linux/riscv64"),
        ("s390x", "linux/s390x"),
        ("ppc64le", "linux/ppc64le"),
    ],
)
def test_a_machine_has_a_platform(machine: str, shown: str) -> None:
    assert str(Platform.local(machine)) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("linux/amd64", "linux/amd64"),
        ("LINUX/X86_64", "linux/amd64"),
        ("arm64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("windows/amd64", "windows/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/arm64/8", "linux/arm64"),
    ],
)
def test_a_platform_is_normalised(text: str, shown: str) -> None:
    assert str(Platform.parse(text)) == shown


@pytest.mark.parametrize("text", ["", "/", "linux/", "/amd64", "linux//v7", "a/b/c/d"])
def test_what_is_no_platform_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="not a platform"):
        Platform.parse(text)


def rank(have: str, want: str) -> int | None:
    return Platform(*have.split("/")).rank(Platform(*want.split("/")))


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64", "linux/arm64/v8"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/arm", "linux/arm/v7"),
    ],
)
def test_variants_that_say_nothing_are_the_same_platform(have: str, want: str) -> None:
    assert rank(have, want) == 0


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ("linux/arm/v7", "linux/arm/v6"),
        ("linux/amd64", "linux/arm64"),
        ("windows/amd64", "linux/amd64"),
        ("unknown/unknown", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64"),
        ("linux/arm64", "linux/arm/v7"),
        ("linux/arm", "linux/arm/v6"),
        ("linux/amd64", "linux/386"),
        ("windows/386", "linux/amd64"),
        ("linux/amd64/v4", "linux/amd64/v3"),
        ("linux/386", "linux/arm64"),
    ],
)
def test_what_would_not_run_is_no_match(have: str, want: str) -> None:
    assert rank(have, want) is None


def test_an_older_arm_runs_on_a_newer_one_and_the_nearest_is_best() -> None:
    ranks = [rank(f"linux/arm/{variant}", "linux/arm/v7") for variant in ("v7", "v6", "v5")]
    assert ranks == [0, 1, 2]


def best_first(wanted: str, *there: str) -> list[str]:
    ranked = [(found, one) for one in there if (found := rank(one, wanted)) is not None]
    return [one for _, one in sorted(ranked)]


def test_a_machine_of_a_variant_takes_older_ones_and_images_for_every_variant() -> None:
    order = ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"]
    assert best_first("linux/amd64/v3", *reversed(order), "linux/amd64/v4") == order
    assert rank("linux/riscv64", "linux/riscv64/rva22") is not None
    assert rank("linux/arm64", "linux/arm64/v9") is not None


def test_what_a_processor_runs_besides_comes_last() -> None:
    assert best_first("linux/amd64", "linux/386", "linux/amd64") == ["linux/amd64", "linux/386"]
    arms = ["linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]
    assert best_first("linux/arm64", *reversed(arms)) == arms
    assert best_first("linux/386", "linux/amd64", "linux/386") == ["linux/386"]
