"""The suite's own rules, by a suite that breaks them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RULES = Path(__file__).parents[1] / "conftest.py"
BEFORE = "import os, subprocess, threading, time\nimport pytest\nkept = []\n"
MODULES = {
    "test_thread": "def test(): threading.Thread(target=lambda: time.sleep(1)).start()",
    "test_process": "def test(): kept.append(subprocess.Popen(['sleep', '2']))",
    "test_descriptor": "def test(): kept.append(os.open('/dev/zero', os.O_RDONLY))",
    "test_in_time": "def test(): threading.Thread(target=lambda: time.sleep(0.01)).start()",
    "test_session": """
@pytest.fixture(scope='session')
def server():
    with subprocess.Popen(['sleep', '60']) as child:
        yield
        child.kill()

def test_before(): pass
def test_with(server): pass
""",
    "test_spoon": "def test(): pytest.skip('needs a spoon')",
    "test_fork": "pytest.skip('needs a fork', allow_module_level=True)",
    "test_other": "def test(): pytest.skip('not today')",
}


def run(folder: Path, *modules: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run modules under the real rules, with a short grace and no other plugin."""
    (folder / "conftest.py").write_text(
        RULES.read_text().replace("_GRACE_S = 10.0", "_GRACE_S = 0.2")
    )
    for name in modules:
        (folder / f"{name}.py").write_text(BEFORE + MODULES[name])
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PAGEIN_", "PYTEST"))}
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--continue-on-collection-errors"),
            *("-c", os.devnull, "--rootdir", folder, folder),
        ],
        env=kept | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_module_that_leaves_something_fails_and_says_what(tmp_path: Path) -> None:
    done = run(tmp_path, *MODULES)
    found = [line for line in done.stdout.splitlines() if line.startswith("left behind: ")]
    kinds = [line.split()[2] for line in found]
    assert kinds == ["descriptor", "process", "thread"], done.stdout
    assert "6 passed, 3 skipped, 3 errors" in done.stdout


def test_a_missing_tool_fails_where_tools_are_required(tmp_path: Path) -> None:
    done = run(
        tmp_path, "test_spoon", "test_fork", "test_other", "test_in_time", PAGEIN_REQUIRE_TOOLS="1"
    )
    assert "needs a spoon, and PAGEIN_REQUIRE_TOOLS is set" in done.stdout
    assert "needs a fork, and PAGEIN_REQUIRE_TOOLS is set" in done.stdout
    assert done.returncode != 0
    assert "not today" not in done.stdout
