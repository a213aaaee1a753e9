"""Which tags are looked at for the version before."""

from __future__ import annotations

import pytest

from pagein.engine.nearest import nearest_tags


@pytest.mark.parametrize(
    ("near", "expected"),
    [
        ("v1.10", ["v1.9", "v1.2", "v1.11", "v2.0", "v1.9-cuda", "main", "latest"]),
        ("v1.10-cuda", ["v1.9-cuda", "v2.0", "v1.11", "v1.9", "v1.2", "main", "latest"]),
        ("v0.1", ["v1.2", "v1.9", "v1.11", "v2.0", "v1.9-cuda", "main", "latest"]),
        ("latest", ["v2.0", "v1.11", "v1.9-cuda", "v1.9", "v1.2", "main"]),
        (None, ["v2.0", "v1.11", "v1.9-cuda", "v1.9", "v1.2", "main", "latest"]),
    ],
)
def test_the_next_lower_number_of_the_same_kind_comes_first(
    near: str | None, expected: list[str]
) -> None:
    tags = ["latest", "main", "v1.11", "v1.2", "v1.9", "v1.9-cuda", "v2.0"]
    assert nearest_tags(tags, near) == expected
    assert nearest_tags([*reversed(tags), "latest"], near) == expected


def test_tags_of_referrers_and_signatures_name_no_versions() -> None:
    assert nearest_tags([f"sha256-{'0' * 64}", f"sha256-{'1' * 64}.sig", "v1"], "v2") == ["v1"]


def test_tags_that_differ_in_leading_zeros_have_an_order_and_odd_digits_are_text() -> None:
    assert nearest_tags(["v01", "v1", "v\u0663"], "v2") == ["v1", "v01", "v\u0663"]
