"""`make fuzz` truly looks at more examples than `make test`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROPERTY = Path(__file__).parents[1] / "property"

TESTS = """\
from hypothesis import given, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, rule

@settings(max_examples=5, database=None)
@given(strategies.integers(0, 10**9))
def test_numbers(number):
    print("a number", flush=True)

class Machine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        print("a machine", flush=True)

    @rule(number=strategies.integers(0, 10**9))
    def nothing(self, number):
        pass

TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=4, stateful_step_count=2, database=None)
"""


def test_a_factor_multiplies_the_examples_of_functions_and_machines(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_some.py").write_text(TESTS)
    shutil.copy(PROPERTY / "conftest.py", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env=os.environ | {"PAGEIN_FUZZ": "6"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("a number") == 6 * 5
    assert done.stdout.count("a machine") >= 6 * 4
