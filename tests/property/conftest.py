"""`make fuzz`: PAGEIN_FUZZ=N has every property test look at N times as many examples.

The tests say themselves how many examples are enough for a run that people wait for, so a profile
of hypothesis alone would change nothing.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    factor = int(os.environ.get("PAGEIN_FUZZ") or "1")
    if factor == 1:
        return
    for item in items:
        function = getattr(item, "obj", None)
        function = getattr(function, "__func__", function)
        usual = getattr(function, "_hypothesis_internal_use_settings", None)
        if usual is not None:
            function._hypothesis_internal_use_settings = more(usual, factor)
            item.add_marker(pytest.mark.timeout(0))


def more(usual: settings, factor: int) -> settings:
    return settings(
        usual,
        max_examples=usual.max_examples * factor,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
