"""``pagein convert`` stopped in the middle: what is left, and what the next run sends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from counting_proxy import Asked, CountingProxy
from node_image import SECTOR, push
from node_under_test import DEADLINE_S, NodeUnderTest
from registry_site import Site

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

ENDS = {
    signal.SIGINT: (130, "pagein: interrupted"),
    signal.SIGTERM: (143, ""),
    signal.SIGKILL: (-9, ""),
}
"""Exit code, and all that is said on standard error (click begins a new line after ``^C``)."""


class SecondUpload:
    """Holds up the second upload that is begun: the first pack is there, the others are not."""

    def __init__(self, proxy: CountingProxy) -> None:
        self._begun = threading.Semaphore(1)
        self.reached = threading.Event()
        self.may_go_on = threading.Event()
        proxy.before_answer = self._hold

    def _hold(self, asked: Asked) -> None:
        begins = asked.method == "POST" and "/blobs/uploads/" in asked.path
        if begins and not self._begun.acquire(blocking=False):
            self.reached.set()
            self.may_go_on.wait(DEADLINE_S)


@pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name)
def test_a_conversion_that_is_stopped_leaves_nothing_half_done_and_the_next_one_goes_on(
    number: signal.Signals,
    site: Site,
    node: NodeUnderTest,
    proxy: CountingProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"stopped-{number.name.lower()}"
    push(site.image, "app", f"{site.registry.host}/{name}:v1")
    reference = f"{proxy.host}/{name}:v1"
    words = ("convert", "--json", "--sector-size", SECTOR, reference)
    scratch = node.folder / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))

    assert stop_at_second_upload(node, proxy, words, number) == ENDS[number]
    assert (list(scratch.iterdir()) == []) == (number != signal.SIGKILL)
    assert [one for one in proxy.asked("/manifests/") if one.method == "PUT"] == []
    line, hint = node.complaint("inspect", reference)
    assert line == f"docker://{reference} has not been converted"
    assert hint == f"pagein convert {reference}"

    (image,) = json.loads(node(*words).stdout)["images"]
    sent = [pack["sent"] for pack in image["packs"]]
    assert (sent[0], sent[-1]) == (False, True), "only the first pack was there already"
    assert list(scratch.iterdir()) == []
    assert node("check", "--deep", reference).stdout.endswith(": 0 problems\n")


def stop_at_second_upload(
    node: NodeUnderTest, proxy: CountingProxy, words: tuple[object, ...], number: signal.Signals
) -> tuple[int, str]:
    """Run a conversion and end it there; return its exit code and what it said."""
    scratch = Path(os.environ["TMPDIR"])
    held = SecondUpload(proxy)
    with node.start(*words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        try:
            assert held.reached.wait(DEADLINE_S), "no second upload was begun"
            assert list(scratch.iterdir()) != []
            child.send_signal(number)
            if number == signal.SIGKILL:
                child.wait(DEADLINE_S)
        finally:
            held.may_go_on.set()
        _, said = child.communicate(timeout=DEADLINE_S)
    return child.returncode, said.strip()
