import sys
import time

import pytest

from pagein.errors import RuntimeFailedError
from pagein.testing import cold_start
from pagein.testing.cold_start import CountingLink, time_start


def test_the_time_is_that_of_the_first_output_and_not_of_the_end() -> None:
    code = "import time; print('up', flush=True); time.sleep(1); print('down')"
    began = time.perf_counter()
    started = time_start([sys.executable, "-c", code])
    whole = time.perf_counter() - began
    assert started.output == b"up\ndown\n"
    assert whole - started.seconds >= 1


def test_a_program_that_serves_for_ever_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_start, "_END_S", 0.2)
    code = "import time; print('up', flush=True); time.sleep(1000)"
    assert time_start([sys.executable, "-c", code]).output == b"up\n"


def test_a_program_that_fails_is_quoted_without_its_hint() -> None:
    code = "import sys; print('no such image\\n  hint: make one', file=sys.stderr); sys.exit(3)"
    with pytest.raises(RuntimeFailedError, match=r"ended with 3: no such image$"):
        time_start([sys.executable, "-c", code])


def test_a_program_is_told_its_environment() -> None:
    words = [sys.executable, "-c", "import os; print(os.environ['PAGEIN_ROOT'])"]
    assert time_start(words, {"PAGEIN_ROOT": "/here"}).output == b"/here\n"


def test_a_link_counts_what_it_carried() -> None:
    link = CountingLink()
    link.carry(10)
    link.carry(32)
    assert link.take_count() == 42
    assert link.take_count() == 0
