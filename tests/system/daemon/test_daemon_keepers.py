"""Who keeps the daemon: the holder's refusals, and the unit for systemd."""

from __future__ import annotations

import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from daemon_under_test import DaemonUnderTest
from node_under_test import NodeUnderTest

from pagein.daemon.metrics import MetricsServer

UNIT = Path(__file__).parents[3] / "deploy/systemd/pagein.service"


@pytest.mark.root
def test_a_second_daemon_is_refused(daemon: DaemonUnderTest):
    line, _ = daemon.node.complaint("daemon")
    assert line == f"pagein daemon runs already, as process {daemon.pid}"


@pytest.mark.root
def test_a_daemon_that_cannot_start_says_why_once(node: NodeUnderTest):
    node.configure(metrics_address="nowhere")
    line, hint = node.complaint("daemon", code=2)
    assert "not an address for metrics: 'nowhere'" in line
    assert hint == "HOST:PORT, or unix:PATH"
    node.configure(cache_size="a lot")
    assert node.complaint("daemon", code=2)[0] == "not a size: 'a lot'"


def test_systemd_takes_the_unit(tmp_path: Path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/pagein", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    said = [line for line in done.stderr.splitlines() if str(unit) in line]
    # systemd before 254 does not know this one yet, says so, and goes on.
    assert [line for line in said if "FileDescriptorStorePreserve" not in line] == []
    assert done.returncode == 0, done.stderr


def test_figures_are_served_on_a_loopback_port():
    server = MetricsServer("127.0.0.1:0", lambda: "pagein_up 1\n")
    try:
        there = f"http://127.0.0.1:{server.port}"
        with urllib.request.urlopen(f"{there}/metrics", timeout=30) as answer:
            assert answer.read() == b"pagein_up 1\n"
        with pytest.raises(urllib.error.HTTPError, match="404") as caught:
            urllib.request.urlopen(f"{there}/other", timeout=30)
        caught.value.close()
    finally:
        server.close()
