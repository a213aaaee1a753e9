"""Cold starts: workloads x links x systems, from nothing to ready, with the pull.

    python bench/coldstart.py --runs 5 --links 1000/5 --systems containerd,pagein-hot nginx torch

A link is RATE/RTT in Mbit/s and ms (``unlimited/0``). Each run is saved when it is done, and what
has its runs is not run again unless --again says so. All cells get their first run before any gets
its second, and the order of the systems turns round with each run; --minutes stops in good order.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from pathlib import Path

from cells import Cells
from harness import workspace
from launch import FailedStartError
from network import Link, Network
from publishing import Published
from systems import SYSTEMS, Stage
from workloads import SMALL, WORKLOADS

LINKS = ("1000/5", "unlimited/0", "100/20")
MAIN = ("containerd", "pagein-plain", "pagein-trace", "pagein-hot", "local")


class ColdStarts:
    """The matrix, and how much time there is for it."""

    def __init__(self, stage: tuple[Path, Path, Network, Published], until: float) -> None:
        self._stage = stage
        self._until = until
        self._failed: dict[tuple[str, str], str] = {}
        self._cells = Cells("coldstart")

    def run(self, names: list[str], links: list[Link], systems: list[str], runs: int) -> None:
        """Take turns until every cell has its runs, or the time is up."""
        for number in range(runs):
            for name in names:
                for link in links:
                    for system in systems if number % 2 == 0 else reversed(systems):
                        if system == "local" and link != links[0]:
                            continue  # no link is in it
                        if time.monotonic() > self._until:
                            print("the time is up; run again to go on")
                            return
                        if len(self._cells.runs(name, str(link), system)) <= number:
                            self._one(name, link, system)

    def forget(self, names: list[str], links: list[Link], systems: list[str]) -> None:
        """Drop the runs of all cells that were asked for."""
        for name in names:
            for link in links:
                for system in systems:
                    self._cells.forget(name, str(link), system)

    def _one(self, name: str, link: Link, system: str) -> None:
        if (name, system) in self._failed:
            return
        network = self._stage[2]
        began = time.monotonic()
        try:
            # What has to be published is, before the link is shaped.
            ready = Stage(*self._stage, network.registry.host)
            if why := SYSTEMS[system].missing(ready, WORKLOADS[name]):
                self._skip(name, system, f"skipped: {why}")
                return
            with network.reached(link) as host:
                record = SYSTEMS[system].start(Stage(*self._stage, host), WORKLOADS[name])
        except FailedStartError as error:
            self._skip(name, system, f"failed: {error}")
        except subprocess.CalledProcessError as error:
            self._skip(name, system, f"failed: {error} {(error.stderr or b'')[-400:]!r}")
        else:
            self._cells.add(record, name, str(link), system)
            figures = "  ".join(
                f"{key} {value:.2f}" if value < 1000 else f"{key} {value / 1e6:.1f}M"
                for key, value in record.items() if value is not None
            )  # fmt: skip
            spent = time.monotonic() - began
            print(f"{name:12} {link!s:12} {system:13} {figures}  ({spent:.0f} s)", flush=True)

    def _skip(self, name: str, system: str, why: str) -> None:
        self._failed[name, system] = why
        print(f"{name:12} {system}: {why}", flush=True)


def main() -> None:
    """Read the command line and run the cells."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=Path("/var/tmp/pagein-bench"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--links", nargs="+", type=Link.parse, metavar="RATE/RTT",
                        default=[Link.parse(text) for text in LINKS])  # fmt: skip
    parser.add_argument("--systems", type=lambda text: text.split(","), metavar="NAME,...",
                        default=[*MAIN], help=f"of {', '.join(SYSTEMS)}")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=1e6, help="start nothing after these")
    parser.add_argument("--again", action="store_true", help="drop these cells' runs first")
    parser.add_argument("--republish", action="store_true", help="convert the images again, too")
    parser.add_argument("names", nargs="*", default=SMALL, metavar="WORKLOAD",
                        help=f"of {', '.join(WORKLOADS)}")  # fmt: skip
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.minutes * 60
    with workspace() as folder, Network(arguments.images / "registry") as network:
        published = Published(arguments.images, network.registry.data, folder)
        if arguments.republish:
            for name in arguments.names:
                published.forget(WORKLOADS[name].image)
        bench = ColdStarts((folder, arguments.images, network, published), until)
        wanted = (arguments.names, arguments.links, arguments.systems)
        if arguments.again:
            bench.forget(*wanted)
        bench.run(*wanted, arguments.runs)


if __name__ == "__main__":
    main()
