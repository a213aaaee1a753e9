"""Where every tool must be there, a test that lacks one fails instead of being skipped."""

import os
from collections.abc import Generator

import pytest

_TOOLS_ARE_REQUIRED = os.environ.get("PAGEIN_REQUIRE_TOOLS") == "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if _TOOLS_ARE_REQUIRED and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason.startswith("needs "):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} {reason}, and PAGEIN_REQUIRE_TOOLS=1 says it is here"
    return report
