"""Many starts at once on one node: from the first command to the last that is ready.

    python bench/together.py --workload python --links 1000/5 --counts 1 8 32

containerd pulls once and then starts all of its containers; pagein starts all at once from nothing,
so that each of its commands resolves the image, and they share one cache.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cells import Cells, Record
from harness import Containerd, workspace
from launch import launch
from network import Link, Network
from publishing import PAGEIN, Published
from systems import Stage
from workloads import WORKLOADS, Workload


def all_of(start: Callable[[int], object], count: int) -> None:
    """Call ``start`` with 0 to ``count`` - 1, each on a thread of its own."""
    with ThreadPoolExecutor(count) as pool:
        for _ in pool.map(start, range(count)):
            pass


def containerd(stage: Stage, workload: Workload, count: int) -> Record:
    """Pull once, then run all."""
    figures: Record = {}
    reference = f"{stage.host}/plain/{workload.image}:latest"
    ready: list[float] = []
    with Containerd(stage.folder / "containerd") as daemon:
        stage.chill(*stage.published.files("source", workload.image))
        with stage.metered(figures):
            began = time.perf_counter()
            pull = daemon.ctr("image", "pull", "--plain-http", reference)
            subprocess.run(pull, check=True, capture_output=True)

            def start(number: int) -> None:
                run = daemon.ctr("run", "--rm", "--net-host", reference, f"bench{number}")
                note = lambda: ready.append(time.perf_counter() - began)  # noqa: E731
                launch([*run, *workload.args], workload, on_ready=note)

            all_of(start, count)
    return figures | {"first": min(ready), "ready": max(ready)}


def pagein(stage: Stage, workload: Workload, count: int) -> Record:
    """Run all, with one empty root."""
    figures: Record = {}
    reference = f"{stage.host}/plain/{workload.image}:latest"
    root, ready = stage.folder / "root", []
    command = [*PAGEIN, "--registry-http", stage.host, "run", "--rm", "--no-tty", reference]
    stage.chill(*stage.published.files("plain", workload.image))
    with stage.metered(figures):
        began = time.perf_counter()

        def start(_: int) -> None:
            note = lambda: ready.append(time.perf_counter() - began)  # noqa: E731
            env = {"PAGEIN_ROOT": str(root)}
            launch([*command, "--", *workload.args], workload, env=env, on_ready=note)

        all_of(start, count)
    shutil.rmtree(root, ignore_errors=True)
    return figures | {"first": min(ready), "ready": max(ready)}


def main() -> None:
    """Take turns; save each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=Path("/var/tmp/pagein-bench"))
    parser.add_argument("--workload", default="python", help="one that ends by itself")
    parser.add_argument("--links", nargs="+", type=Link.parse, metavar="RATE/RTT",
                        default=[Link(1000, 5)])  # fmt: skip
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    cells, workload = Cells("together"), WORKLOADS[arguments.workload]
    with workspace() as folder, Network(arguments.images / "registry") as network:
        published = Published(arguments.images, network.registry.data, folder)
        published.plain(workload.image, network.registry.host)
        for number in range(arguments.runs):
            for link in arguments.links:
                for count in arguments.counts:
                    for start in (containerd, pagein)[:: 1 if number % 2 == 0 else -1]:
                        name = (workload.name, str(link), str(count), start.__name__)
                        if not cells.wants(*name, number=number, again=arguments.again):
                            continue
                        with network.reached(link) as host:
                            stage = Stage(folder, arguments.images, network, published, host)
                            record = start(stage, workload, count)
                        cells.add(record, *name)
                        print(*name, f"{record['ready']:.2f} s", flush=True)


if __name__ == "__main__":
    main()
