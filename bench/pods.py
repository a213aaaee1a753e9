"""Start of a pod as kubelet starts it, to the first output: overlayfs against pagein.

    python bench/pods.py --images DIR --runs 5 [--imports] [--together 32] scipy torch-cuda

Through CRI: PullImage, RunPodSandbox, CreateContainer, StartContainer, until the container's log
has a line; the pull counts. The same containerd, once with its own overlayfs snapshotter and once
with pagein's, in turn, each time with empty stores and a cold page cache; the registry's own files
are read back into it. The sandbox's image is there already, as it is on a node that has run a pod.
Then: many pods of one image at once, and how many sectors pagein fetched for them.
"""

from __future__ import annotations

import argparse
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import Series, drop_caches, save, workspace
from kube import NODES, Node, publish_pause, wait_for_output
from pagein.testing.docker_registry import DockerRegistry
from starts import COMMANDS, publish

PARTIAL_CONTENT = re.compile(r'"GET /v2/\S+/blobs/\S+ [^"]*" 206 (\d+)')
"""In the registry's access log: the size of an answer to a range request."""


def start_pod(node: Node, reference: str, code: str, folder: Path, began: float) -> float:
    """Run a pod to its first output, and remove it; seconds since ``began``."""
    with node.cri.pod(folder.name, folder) as pod:
        pod.start(reference, "main", "python3", "-c", code)
        wait_for_output(folder / "main.log")
        return time.perf_counter() - began


def first_pod(node: Node, reference: str, code: str, folder: Path) -> tuple[float, float]:
    """Pull and run; seconds to the end of the pull, and to the first output."""
    began = time.perf_counter()
    node.cri.pull(reference)
    pulled = time.perf_counter() - began
    return pulled, start_pod(node, reference, code, folder / "pod", began)


def pods_at_once(node: Node, reference: str, code: str, folder: Path, count: int) -> float:
    """Pull and run many pods at the same time; seconds to the first output of the last."""
    began = time.perf_counter()
    node.cri.pull(reference)
    with ThreadPoolExecutor(count) as pool:
        started = [
            pool.submit(start_pod, node, reference, code, folder / f"pod{number}", began)
            for number in range(count)
        ]
        return max(one.result() for one in started)


class Bench:
    """A registry with its images, and the series so far."""

    def __init__(self, folder: Path, registry: DockerRegistry, runs: int) -> None:
        self.folder = folder
        self.registry = registry
        self.runs = runs
        self.pause = publish_pause(folder / "pause", registry.host)
        self.series: dict[str, Series] = {}

    def note(self, name: str, value: float, unit: str = "s") -> None:
        """Add one value to a series."""
        self.series.setdefault(name, Series(name, unit)).values.append(value)

    def start_pods(self, image: str, codes: dict[str, str]) -> None:
        """Take turns with one pod of an image."""
        for _ in range(self.runs):
            for title, code in codes.items():
                for kind in NODES:
                    with NODES[kind](self.folder / kind, self.pause) as node:
                        self.chill(node)
                        reference = self.reference(image)
                        pull, output = first_pod(node, reference, code, self.folder / kind)
                    self.note(f"{image}: pull: {kind}", pull)
                    self.note(f"{image}: {title}: {kind}", output)
                    print(f"{image:14} {title:22} {kind:10} pull {pull:6.2f} s"
                          f"  first output {output:6.2f} s", flush=True)  # fmt: skip

    def start_together(self, image: str, code: str, count: int) -> None:
        """Take turns with many pods of an image at once; count what pagein fetched."""
        title, reference = f"{count} pods at once", self.reference(image)
        for _ in range(self.runs):
            for kind in NODES:
                with NODES[kind](self.folder / kind, self.pause) as node:
                    self.chill(node)
                    before = len(self.registry.log())
                    seconds = pods_at_once(node, reference, code, self.folder / kind, count)
                    self.note(f"{image}: {title}: {kind}", seconds)
                    print(f"{image:14} {title:22} {kind:10} {seconds:6.2f} s", flush=True)
                    if node.kube is not None:
                        self.count_sectors(node, f"{image}: {title}", reference, before)

    def count_sectors(self, node: Node, case: str, reference: str, before: int) -> None:
        """Note what was fetched, by the daemon's count, the cache's, and the registry's log."""
        sectors, size = node.fetched()
        sent = sum(map(int, PARTIAL_CONTENT.findall(self.registry.log()[before:])))
        counts = {
            "sectors fetched": sectors,
            "distinct sectors": node.distinct_sectors(reference),
            "bytes fetched": size,
            "bytes that the registry sent of ranges": sent,
        }
        for name, value in counts.items():
            self.note(f"{case}: {name}", value, "")
            print(f"{case}: {name}: {value}", flush=True)

    def reference(self, image: str) -> str:
        return f"{self.registry.host}/{image}:latest"

    def chill(self, node: Node) -> None:
        """Make everything cold but the registry, and what is on every node before."""
        node.cri.pull(self.pause)
        drop_caches(self.registry.data)


def main() -> None:
    """Read the command line and run all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=Path("/var/tmp/pagein-bench"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--imports", action="store_true", help="also programs with large imports")
    parser.add_argument("--together", type=int, default=32, metavar="N", help="pods at once")
    parser.add_argument("--together-image", default="debian-python", metavar="IMAGE")
    parser.add_argument("names", nargs="*", default=list(COMMANDS), metavar="IMAGE")
    arguments = parser.parse_args()
    with workspace() as folder, DockerRegistry(folder / "registry") as registry:
        bench = Bench(folder, registry, arguments.runs)
        for image in arguments.names:
            publish(arguments.images / "layout", image, bench.reference(image))
            codes = {
                f"pod {title}": code
                for title, code in COMMANDS[image].items()
                if arguments.imports or title == "print(1)"
            }
            bench.start_pods(image, codes)
            if image == arguments.together_image and arguments.together:
                code = COMMANDS[image]["print(1)"]
                bench.start_together(image, code, arguments.together)
            save("pods", list(bench.series.values()))


if __name__ == "__main__":
    main()
