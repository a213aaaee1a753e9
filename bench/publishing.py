"""Put the benchmark images into the registry: as they are, converted, and with a hot region.

``plain/NAME`` is the image and its conversion; ``hot/NAME`` a copy of that with a profile of the
image's trained workload optimized in. Published once: the registry's folder is kept between runs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from workloads import Answers, trained_workload

PAGEIN = [sys.executable, "-m", "pagein"]


class Published:
    """What is in the registry, whose files are below ``data``; ``images`` has the layout."""

    def __init__(self, images: Path, data: Path, work: Path) -> None:
        self._layout = images / "layout"
        self._profiles = images / "profiles"
        self._store = data / "docker" / "registry" / "v2"
        self._root = work / "publish"
        self.unavailable: dict[str, str] = {}
        """Why an image has no hot region: by image."""

    def plain(self, image: str, host: str) -> None:
        """Push an image and convert it there, unless that was done."""
        if self._marker("plain", image).exists():
            return
        reference = f"{host}/plain/{image}:latest"
        source = f"oci:{self._layout}:{image}"
        _run("skopeo", "copy", "-q", "--dest-tls-verify=false", source, f"docker://{reference}")
        self._pagein(host, "convert", reference)
        self._marker("plain", image).touch()
        print(f"{image}: published", flush=True)

    def hot(self, image: str, host: str) -> bool:
        """Record a profile and optimize a copy of the image, unless that was done.

        False where this pagein cannot: ``unavailable`` says why.
        """
        if self._marker("hot", image).exists():
            return True
        if image in self.unavailable:
            return False
        self.plain(image, host)
        profile = self.profile(image)
        try:
            if not profile.exists():
                self._record(image, host, profile)
            # A repository is a folder of links to blobs; a copy of it shares them.
            source, copy = (self._store / "repositories" / kind / image for kind in
                            ("plain", "hot"))  # fmt: skip
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy)
            reference = f"{host}/hot/{image}:latest"
            self._pagein(host, "optimize", reference, "--profile", str(profile))
        except subprocess.CalledProcessError as error:
            lines = (error.stderr or b"").decode(errors="replace").strip().splitlines()
            self.unavailable[image] = lines[-1] if lines else str(error)
            return False
        self._marker("hot", image).touch()
        print(f"{image}: optimized", flush=True)
        return True

    def profile(self, image: str) -> Path:
        """Return where the profile of an image's trained workload is kept."""
        return self._profiles / f"{image}.json"

    def files(self, kind: str, image: str) -> list[Path]:
        """Return the registry's files of one repository: ``source`` layers, or all else."""
        layers = _layer_digests(self._layout, image)
        repository = "plain" if kind == "source" else kind
        links = self._store / "repositories" / repository / image / "_layers" / "sha256"
        return [
            self._store / "blobs" / "sha256" / one.name[:2] / one.name / "data"
            for one in links.iterdir()
            if (one.name in layers) == (kind == "source")
        ]

    def forget(self, image: str) -> None:
        """Publish an image again the next time that it is asked for."""
        for kind in ("plain", "hot"):
            self._marker(kind, image).unlink(missing_ok=True)
        self.profile(image).unlink(missing_ok=True)

    def _record(self, image: str, host: str, profile: Path) -> None:
        workload = trained_workload(image)
        profile.parent.mkdir(parents=True, exist_ok=True)
        until: list[str] = []
        if workload.server:
            ready = workload.ready
            until = ["--until", ready.url] if isinstance(ready, Answers) else \
                    ["--until-log", ready.pattern]  # fmt: skip
        reference = f"{host}/plain/{image}:latest"
        self._pagein(host, "record", reference, "-o", str(profile), *until, "--", *workload.args)

    def _pagein(self, host: str, *words: str) -> None:
        command = [*PAGEIN, "--registry-http", host, *words]
        environment = {"PAGEIN_ROOT": str(self._root), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
        try:
            subprocess.run(command, check=True, capture_output=True, env=environment)
        finally:
            shutil.rmtree(self._root, ignore_errors=True)

    def _marker(self, kind: str, image: str) -> Path:
        return self._store.parents[3] / f"{kind}-{image}.published"


def _layer_digests(layout: Path, image: str) -> set[str]:
    from image_steps import layers_of

    return {path.name for path in layers_of(image, layout)}


def _run(*words: str) -> None:
    subprocess.run(words, check=True)
