"""`make fuzz`: PAGEIN_FUZZ=N has every property test look at N times as many examples.

The tests say themselves how many examples are enough for a run that people wait for, so a profile
of hypothesis alone would change nothing.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

SETTINGS = "_hypothesis_internal_use_settings"
"""Where hypothesis keeps what `@settings` said of a function; it reads it at each run."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    factor = int(os.environ.get("PAGEIN_FUZZ") or "1")
    if factor == 1:
        return
    for item in items:
        item.add_marker(pytest.mark.timeout(0))
        function = getattr(item, "obj", None)
        if isinstance(usual := getattr(function, SETTINGS, None), settings):
            setattr(function, SETTINGS, more(usual, factor))
        machine = getattr(item, "cls", None)
        if isinstance(usual := getattr(machine, "settings", None), settings):
            machine.settings = more(usual, factor)  # of a state machine, which has one test


def more(usual: settings, factor: int) -> settings:
    return settings(
        usual,
        max_examples=usual.max_examples * factor,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
