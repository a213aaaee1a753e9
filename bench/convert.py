"""Conversion speed: MB/s of file content, peak memory, and where the time goes.

    python bench/convert.py [--image LAYOUT:TAG] [--jobs 1 2] [--runs 3] [--level N]

Without ``--image`` it builds one: this machine's Python and libraries in a first layer, some wheels
in a second one, gzip -6 as most builders do. It is kept in ``--work`` and not built again. Each run
is a process of its own, with the page cache warm; the destination is a fresh OCI layout on the same
disk.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

from harness import Series, claim_memory, save

WHEELS = ("numpy", "scipy", "pandas", "scikit-learn", "matplotlib", "sympy")


def build_image(work: Path) -> Path:
    """Write the default image as an OCI layout with the tag ``bench``."""
    layout = work / "layout"
    if (layout / "index.json").exists():
        return layout
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    wheels = work / "wheels"
    if not wheels.exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(wheels), *WHEELS]
        subprocess.run(command, check=True)
    standard = [
        (Path(sysconfig.get_path("stdlib")), "usr/lib/python3"),
        (Path("/usr/lib/x86_64-linux-gnu"), "usr/lib/x86_64-linux-gnu"),
    ]
    layers, diff_ids = [], []
    for folders in (standard, [(wheels, "usr/local/lib/python3/site-packages")]):
        plain = work / "layer.tar"
        with tarfile.open(plain, "w", format=tarfile.PAX_FORMAT) as archive:
            for path, name in folders:
                archive.add(path, name)
        diff_ids.append(f"sha256:{hashlib.sha256(plain.read_bytes()).hexdigest()}")
        packed = work / "layer.tar.gz"
        with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=6) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        plain.unlink()
        layers.append(_descriptor("layer.v1.tar+gzip", packed.read_bytes(), blobs))
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _descriptor("config.v1+json", json.dumps(config).encode(), blobs),
        "layers": layers,
    }
    entry = _descriptor("manifest.v1+json", json.dumps(manifest).encode(), blobs)
    entry["annotations"] = {"org.opencontainers.image.ref.name": "bench"}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return layout


def _descriptor(kind: str, data: bytes, blobs: Path) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {
        "mediaType": f"application/vnd.oci.image.{kind}",
        "digest": f"sha256:{digest}",
        "size": len(data),
    }


def peak_rss_mb() -> float:
    """Peak of this process alone; ``ru_maxrss`` would count the parent's from before the exec."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def convert_once(layout: Path, tag: str, jobs: int, sector_size: int, level: int) -> None:
    """Convert in this process and print one line of JSON."""
    from pagein.build.convert import convert
    from pagein.build.report import ConvertOptions
    from pagein.format.manifest import ImageManifest, parse_manifest
    from pagein.store.layout import LayoutRepository

    with tempfile.TemporaryDirectory(dir=layout.parent) as scratch:
        source = LayoutRepository(layout)
        blob = source.manifest(tag)
        manifest = parse_manifest(blob.data, blob.media_type)
        assert isinstance(manifest, ImageManifest)
        done = convert(
            source,
            manifest,
            blob,
            LayoutRepository(Path(scratch) / "destination"),
            ConvertOptions(
                sector_size=sector_size, level=level, jobs=jobs, scratch=Path(scratch) / "scratch"
            ),
        )
    json.dump(
        {
            "seconds": done.seconds,
            "content": done.content_size,
            "files": done.files,
            "packs": done.pack_size,
            "index": done.index_size,
            "artifact": str(done.artifact),
            "cpu": sum(os.times()[:2]),
            "rss_mb": peak_rss_mb(),
            "stages": {str(stage): seconds for stage, seconds in done.stages.items()},
        },
        sys.stdout,
    )


def report(arguments: argparse.Namespace, layout: Path, tag: str) -> None:
    """Run each setting several times; print the median run of each."""
    series: list[Series] = []
    for level in arguments.level:
        for jobs in arguments.jobs:
            runs = []
            for _ in range(arguments.runs):
                claim_memory()
                command = [sys.executable, __file__, "--once", "--image", f"{layout}:{tag}"]
                command += ["--jobs", str(jobs), "--level", str(level)]
                command += ["--sector-size", str(arguments.sector_size)]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                runs.append(json.load(io.StringIO(out)))
            assert len({run["artifact"] for run in runs}) == 1
            runs.sort(key=lambda run: run["seconds"])
            run = runs[len(runs) // 2]
            rates = [one["content"] / one["seconds"] / 1e6 for one in runs]
            print(
                f"level {level} jobs {jobs}: {statistics.median(rates):.0f} MB/s "
                f"[{min(rates):.0f}-{max(rates):.0f}], {run['seconds']:.1f} s for "
                f"{run['content'] / 1e6:.0f} MB in {run['files']} files; packs "
                f"{run['packs'] / 1e6:.0f} MB, index {run['index'] / 1e6:.2f} MB; "
                f"{run['cpu']:.1f} s of CPU; "
                f"peak {max(one['rss_mb'] for one in runs):.0f} MB RSS; {run['artifact'][:19]}"
            )
            for stage, seconds in run["stages"].items():
                print(f"    {stage:24} {seconds:7.2f} s")
            series.append(Series(f"conversion, level {level}, {jobs} threads", "MB/s", rates))
    save("convert", series)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", help="LAYOUT:TAG of an OCI layout")
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/pagein-bench-convert"))
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--level", type=int, nargs="+", default=[3])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sector-size", type=int, default=4 << 20)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.image:
        path, _, tag = arguments.image.rpartition(":")
        layout = Path(path)
    else:
        layout, tag = build_image(arguments.work), "bench"
    if arguments.once:
        convert_once(layout, tag, arguments.jobs[0], arguments.sector_size, arguments.level[0])
    else:
        report(arguments, layout, tag)


if __name__ == "__main__":
    main()
