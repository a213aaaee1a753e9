"""The systems that are compared: each starts a workload from nothing, and says how it went."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cells import Record
from harness import Containerd, drop_caches
from launch import launch
from mount_watch import MountWatch, resident_bytes
from network import Network
from pagein.device.mount import mount_overlay
from pagein.runtime.bundle import prepare_bundle
from pagein.runtime.host import gather_facts
from pagein.runtime.spec import ProcessDefaults, RunOptions
from publishing import PAGEIN, Published
from timeline import image_times
from workloads import Workload

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PEERS = {
    "stargz": "containerd-stargz-grpc",
    "soci": "soci-snapshotter-grpc",
    "nydus": "nydusd",
}


@dataclass(frozen=True)
class Stage:
    """Where starts happen: an empty folder on a disk, the images, the registry and its network."""

    folder: Path
    images: Path
    network: Network
    published: Published
    host: str

    def chill(self, *warm: Path) -> None:
        """Make everything cold but what the registry will send."""
        drop_caches()
        for path in warm:
            with path.open("rb", buffering=0) as stream:
                while stream.read(8 << 20):
                    pass

    @contextlib.contextmanager
    def metered(self, figures: Record) -> Iterator[float]:
        """Add what came over the link meanwhile, and when; yields the time of the beginning."""
        before, began = self.network.meter(), time.time()
        at = len(self.network.registry.log())
        try:
            yield began
        finally:
            spent = self.network.meter().since(before)
            figures |= {"bytes_fetched": spent.size, "requests": spent.requests}
            figures |= image_times(self.network.registry.log()[at:], began)


class ContainerdPull:
    """containerd's own way: pull all of it, unpack it, run."""

    def missing(self, stage: Stage, workload: Workload) -> str | None:
        """Say why it cannot run here."""
        if shutil.which("containerd") is None:
            return "containerd is not installed"
        stage.published.plain(workload.image, stage.network.registry.host)
        return None

    def start(self, stage: Stage, workload: Workload) -> Record:
        """Pull and run with an empty containerd."""
        figures: Record = {}
        reference = f"{stage.host}/plain/{workload.image}:latest"
        with Containerd(stage.folder / "containerd") as containerd:
            stage.chill(*stage.published.files("source", workload.image))
            with stage.metered(figures):
                began = time.perf_counter()
                pull = containerd.ctr("image", "pull", "--plain-http", reference)
                subprocess.run(pull, check=True, capture_output=True)
                pulled = time.perf_counter() - began
                run = containerd.ctr("run", "--rm", "--net-host", reference, "bench")
                try:
                    launched = launch(
                        [*run, *workload.args],
                        workload,
                        on_ready=lambda: figures.update(
                            resident=resident_bytes(containerd.process.pid)
                        ),
                    )
                finally:
                    _end_task(containerd)
        first = launched.first_output
        figures["mount"] = pulled
        figures["first_output"] = None if first is None else pulled + first
        figures["ready"] = pulled + launched.ready
        return figures


def _end_task(containerd: Containerd) -> None:
    for words in (("task", "delete", "--force", "bench"), ("container", "delete", "bench")):
        subprocess.run(containerd.ctr(*words), check=False, capture_output=True)


class Pagein:
    """`pagein run` with an empty root. ``replays``: a plain image, whose profile is read ahead.

    pagein has no such way of its own: a process of the benchmark reads the profile's ranges through
    the mount as soon as that is there, in their order, four at a time.
    """

    def __init__(self, repository: str, prefetch: str, *, replays: bool = False) -> None:
        self._repository = repository
        self._prefetch = prefetch
        self._replays = replays

    def missing(self, stage: Stage, workload: Workload) -> str | None:
        """Say why it cannot run here."""
        published, image = stage.published, workload.image
        if self._repository == "hot" or self._replays:
            if not published.hot(image, stage.network.registry.host):
                return published.unavailable[image]
        else:
            published.plain(image, stage.network.registry.host)
        return None

    def start(self, stage: Stage, workload: Workload) -> Record:
        """Run with nothing at hand."""
        root = stage.folder / "root"
        reference = f"{stage.host}/{self._repository}/{workload.image}:latest"
        words = [*PAGEIN, "--registry-http", stage.host, "run", "--rm", "--no-tty"]
        if self._prefetch:
            words += ["--prefetch", self._prefetch]
        figures: Record = {}
        watch = MountWatch(root, stage.published.profile(workload.image) if self._replays else None)
        stage.chill(*stage.published.files(self._repository, workload.image))
        try:
            with stage.metered(figures) as began, watch:
                launched = launch(
                    [*words, reference, "--", *workload.args],
                    workload,
                    env={"PAGEIN_ROOT": str(root)},
                    on_ready=lambda: figures.update(watch.figures()),
                )
        finally:
            shutil.rmtree(root, ignore_errors=True)
        figures["mount"] = None if watch.mounted is None else watch.mounted - began
        figures |= {"first_output": launched.first_output, "ready": launched.ready}
        return figures


class LocalDisk:
    """The unpacked image on the local disk: a bundle as pagein writes it, prepared before."""

    def missing(self, stage: Stage, workload: Workload) -> str | None:
        """Say why it cannot run here."""
        tree = stage.images / "trees" / workload.image
        return None if tree.exists() else f"{tree} is not there: bench/images.py"

    def start(self, stage: Stage, workload: Workload) -> Record:
        """Run on an overlay over the tree, with a cold page cache."""
        bundle, merged = stage.folder / "bundle", stage.folder / "merged"
        folders = [stage.folder / name for name in ("merged", "upper", "work", "bundle")]
        for folder in folders:
            folder.mkdir()
        mount_overlay(stage.images / "trees" / workload.image, *folders[1:3], merged)
        try:
            options = RunOptions(name="bench", args=workload.args)
            config = ProcessDefaults(env=(PATH,))
            prepare_bundle(bundle, config, merged, options, gather_facts())
            stage.chill()
            launched = launch(["runc", "run", "--bundle", bundle, "bench"], workload)
        finally:
            subprocess.run(["runc", "delete", "--force", "bench"], check=False, capture_output=True)
            subprocess.run(["umount", "-l", merged], check=True)
            for folder in folders:
                shutil.rmtree(folder)
        return {"first_output": launched.first_output, "ready": launched.ready}


class Peer:
    """A peer that this harness knows by name only: nobody has tried it here yet."""

    def __init__(self, binary: str) -> None:
        self._binary = binary

    def missing(self, stage: Stage, workload: Workload) -> str | None:
        """Say why it cannot run here."""
        del stage, workload
        if shutil.which(self._binary) is None:
            return f"{self._binary} is not on the PATH"
        return f"{self._binary} is here, but this harness has no way to start it yet"

    def start(self, stage: Stage, workload: Workload) -> Record:
        """Never called."""
        raise NotImplementedError


SYSTEMS: dict[str, ContainerdPull | Pagein | LocalDisk | Peer] = {
    "containerd": ContainerdPull(),
    "pagein-plain": Pagein("plain", ""),
    "pagein-trace": Pagein("plain", "", replays=True),
    "pagein-hot": Pagein("hot", ""),
    "local": LocalDisk(),
} | {name: Peer(binary) for name, binary in PEERS.items()}
