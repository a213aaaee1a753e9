"""First sequential read of a big image from a registry on loopback, and what each stage costs.

    .venv/bin/python bench/fetch_path.py [--mib 512] [--runs 5] [--source registry|layout]

The reader asks for 128 KiB at a time, as the kernel does with its default read-ahead, on one
thread. The registry (Debian's docker-registry) shares the cores with the client. Each run begins
with an empty sector cache; the packs are warm in the page cache of the registry.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import resource
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from harness import Series, claim_memory, save
from pagein.events import Event, SectorFetched
from pagein.format.codec import decode_sector, encode_sector
from pagein.store.directory import DirectoryCache
from pagein.store.layout import LayoutRepository
from pagein.store.registry import RegistryRepository
from pagein.store.repository import WritableRepository
from pagein.store.source import FileSlice
from pagein.store.stack import ReadPath
from pagein.testing.docker_registry import DockerRegistry
from pagein.transport.http import HttpTransport
from pagein.types import ByteRange, Digest, Encoding, ImageName, Sector, SectorRef

SECTOR = 4 << 20
READ = 128 << 10


def make_sectors(count: int) -> list[bytes]:
    """Return sectors that compress about 1.9 to 1, as shared libraries do."""
    draw = random.Random(5)
    words = [draw.randbytes(24) for _ in range(1 << 10)]
    sectors = []
    for _ in range(count):
        piece = b"".join(
            draw.randbytes(48) + draw.choice(words) + draw.choice(words)
            for _ in range(SECTOR // 96)
        )
        sectors.append(piece + bytes(SECTOR - len(piece)))
    return sectors


def make_pack(sectors: list[bytes]) -> tuple[bytes, list[SectorRef]]:
    """Return a pack and its sector table."""
    stored = [encode_sector(data, level=3) for data in sectors]
    pack = b"".join(bytes(data) for _, data in stored)
    name = Digest.of(pack)
    refs, offset = [], 0
    for data, (encoding, kept) in zip(sectors, stored, strict=True):
        refs.append(SectorRef(Digest.of(data), SECTOR, encoding, name, offset, len(kept)))
        offset += len(kept)
    return pack, refs


@contextlib.contextmanager
def repository(kind: str, folder: Path, pack: bytes) -> Iterator[WritableRepository]:
    """Yield a repository that holds the pack."""
    if kind == "layout":
        layout = LayoutRepository(folder / "layout")
        layout.put_blob(Digest.of(pack), pack)
        yield layout
        return
    with DockerRegistry(folder / "registry") as server:
        transport = HttpTransport(timeout_s=20)
        place = RegistryRepository(ImageName.parse(f"{server.host}/bench/app:v1"), transport)
        place.put_blob(Digest.of(pack), pack)
        yield place
        transport.close()


def read_through(path: ReadPath) -> None:
    """Read the image front to back as a FUSE server would."""
    image = path.image
    for offset in range(0, image.size, READ):
        found = image.peek(offset, READ)
        if found is None:
            found = image.pread(offset, READ)
        elif isinstance(found, FileSlice):
            found = os.pread(found.file.fd, found.length, found.offset)
        assert len(found) == READ


def one_run(
    refs: list[SectorRef],
    place: WritableRepository,
    cache: Path,
    *,
    workers: int,
    read_ahead: bool = True,
) -> dict[str, float]:
    """Read all once with an empty cache."""
    shutil.rmtree(cache, ignore_errors=True)
    claim_memory()
    fetched: list[SectorFetched] = []
    lock = threading.Lock()

    def note(event: Event) -> None:
        if isinstance(event, SectorFetched):
            with lock:
                fetched.append(event)

    cpu = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    with ReadPath(
        refs,
        SECTOR,
        [place],
        DirectoryCache(cache, limit_bytes=64 << 30),
        workers=workers,
        read_ahead=read_ahead,
        observer=note,
    ) as path:
        read_through(path)
        seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "MB/s": len(refs) * SECTOR / seconds / 1e6,
        "fetches": len(fetched),
        "fetch ms": statistics.median(event.seconds for event in fetched) * 1e3,
        "user s": after.ru_utime - cpu.ru_utime,
        "system s": after.ru_stime - cpu.ru_stime,
    }


def stages(refs: list[SectorRef], place: WritableRepository, folder: Path) -> dict[str, float]:
    """Return milliseconds a sector of each stage, on one thread, nothing else running."""
    cache = DirectoryCache(folder / "stages", limit_bytes=64 << 30)
    spent = dict.fromkeys(("range request", "unpack", "hash", "cache write"), 0.0)
    for ref in refs[:32]:
        assert ref.pack is not None
        marks = [time.perf_counter()]
        stored = place.read_range(ref.pack, ByteRange(ref.offset, ref.stored))
        marks.append(time.perf_counter())
        data = decode_sector(ref, stored)
        marks.append(time.perf_counter())
        assert hashlib.sha256(data).hexdigest() == ref.digest.hex
        marks.append(time.perf_counter())
        cache.put(Sector.verify(ref, data))
        marks.append(time.perf_counter())
        for name, start, stop in zip(spent, marks[:-1], marks[1:], strict=True):
            spent[name] += (stop - start) / 32 * 1e3
    spent["cache write"] -= spent["hash"]  # `verify` hashed once more
    return spent


def request_cost(refs: list[SectorRef], place: WritableRepository) -> float:
    """Return the milliseconds of a range request for next to nothing."""
    costs = []
    for ref in refs[:32]:
        assert ref.pack is not None
        began = time.perf_counter()
        place.read_range(ref.pack, ByteRange(ref.offset, 4096))
        costs.append((time.perf_counter() - began) * 1e3)
    return statistics.median(costs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--source", choices=["registry", "layout"], default="registry")
    options = parser.parse_args()
    sectors = make_sectors(options.mib * 1024 * 1024 // SECTOR)
    pack, refs = make_pack(sectors)
    assert all(ref.encoding is Encoding.ZSTD for ref in refs)
    print(f"{len(refs)} sectors, {len(refs) * SECTOR / len(pack):.2f} to 1")
    with tempfile.TemporaryDirectory(prefix="pagein-bench-") as name:
        folder = Path(name)
        with repository(options.source, folder, pack) as place:
            for stage, cost in stages(refs, place, folder).items():
                print(f"  {stage:14} {cost:6.2f} ms a sector")
            request = request_cost(refs, place)
            runs, plain = [], []
            for _ in range(options.runs):  # side by side: the machine may not be ours alone
                runs.append(one_run(refs, place, folder / "cache", workers=options.workers))
                plain.append(
                    one_run(refs, place, folder / "cache", workers=1, read_ahead=False)["MB/s"]
                )
    print(f"  {'bare request':14} {request:6.2f} ms (4 KiB: what joining two requests would save)")
    for run in runs:
        print("  " + "  ".join(f"{key} {value:.1f}" for key, value in run.items()))
    print(f"median {statistics.median(run['MB/s'] for run in runs):.0f} MB/s uncompressed")
    print(f"without read-ahead {statistics.median(plain):.0f} MB/s")
    ahead = Series("first sequential read", "MB/s", [run["MB/s"] for run in runs])
    print(save("fetch_path", [ahead, Series("without read-ahead", "MB/s", plain)]))


if __name__ == "__main__":
    main()
