"""Reads of a whole image: right bytes through damage, deletion, full disks and dead registries."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pagein.engine.backoff import Backoff
from pagein.errors import CacheError, RemoteUnavailableError, SectorCorruptError, UsageError
from pagein.events import CacheWriteFailed, Kind, SectorCorrupt, SectorFetched
from pagein.store.directory import DirectoryCache
from pagein.store.image import LazyImage
from pagein.store.source import FileSlice
from pagein.store.stack import ReadPath
from pagein.testing.contract_sources import packed
from pagein.testing.faulty_source import PackFile
from pagein.types import MIN_SECTOR_SIZE, ByteRange

SIZE = MIN_SECTOR_SIZE
_draw = random.Random(21)
DATA = tuple(
    bytes(SIZE) if number % 7 == 3 else _draw.randbytes(SIZE // 2) + bytes(SIZE // 2)
    for number in range(24)
)
PACK, REFS = packed(DATA)
WHOLE = b"".join(DATA)
STORED = sum(number % 7 != 3 for number in range(24))
STORED_BYTES = sum(ref.stored for ref in REFS)
LIMIT = 64 << 20


def _path(cache: Path, pack: PackFile | None = None, **more: object) -> ReadPath:
    more.setdefault("read_ahead", False)
    limit = more.pop("limit", LIMIT)
    store = DirectoryCache(cache, limit_bytes=limit, observer=more.get("observer", lambda e: None))
    return ReadPath(
        REFS, SIZE, [pack or PackFile([PACK])], store, backoff=Backoff(0.001, 0.01), **more
    )


def _read(image: LazyImage, offset: int, length: int) -> bytes:
    """Read as the FUSE server does."""
    found = image.peek(offset, length)
    if found is None:
        return bytes(image.pread(offset, length))
    if isinstance(found, FileSlice):
        return os.pread(found.file.fd, found.length, found.offset)
    return bytes(found)


def _bytes_read(pack: PackFile) -> int:
    """Return the bytes asked of a pack: no sector twice when it equals what is stored."""
    return sum(span.length for _, span in pack.reads)


def _read_all(image: LazyImage, step: int = 128 << 10) -> bytes:
    return b"".join(
        _read(image, at, min(step, image.size - at)) for at in range(0, image.size, step)
    )


@pytest.mark.parametrize("step", [4096, 128 << 10, 1 << 20])
def test_a_front_to_back_read_is_the_image_and_costs_one_fetch_a_sector(
    step: int, tmp_path: Path
) -> None:
    pack = PackFile([PACK])
    with _path(tmp_path, pack, read_ahead=True) as path:
        assert _read_all(path.image, step) == WHOLE
    assert _bytes_read(pack) == STORED_BYTES
    if step > SIZE // 4:
        assert len(pack.reads) < STORED, "neighbours share a request"
    for read_ahead in (False, True):
        with _path(tmp_path, pack, read_ahead=read_ahead) as path:
            assert _read_all(path.image, step) == WHOLE
        assert _bytes_read(pack) == STORED_BYTES, "the second run reads from the cache"


def test_hydrating_again_fetches_only_what_is_not_on_the_disk(tmp_path: Path) -> None:
    pack = PackFile([PACK])
    for _ in range(2):
        with _path(tmp_path, pack) as path:
            assert path.hydrate(lambda done, total: None) == STORED_BYTES
        assert _bytes_read(pack) == STORED_BYTES
    lost = DirectoryCache(tmp_path, limit_bytes=LIMIT)
    for ref in (REFS[1], REFS[2], REFS[12]):
        lost.remove(ref)
    with _path(tmp_path, pack) as path:
        path.hydrate(lambda done, total: None)
    assert _bytes_read(pack) == STORED_BYTES + sum(REFS[n].stored for n in (1, 2, 12))


def test_many_readers_of_random_places_each_get_their_bytes(tmp_path: Path) -> None:
    pack = PackFile([PACK])
    wrong: list[tuple[int, int]] = []

    def reader(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(60):
            offset = draw.randrange(0, len(WHOLE) - 1) // 4096 * 4096
            length = min(draw.choice([4096, 128 << 10, 1 << 20]), len(WHOLE) - offset)
            if _read(path.image, offset, length) != WHOLE[offset : offset + length]:
                wrong.append((offset, length))

    with _path(tmp_path, pack, read_ahead=True) as path, ThreadPoolExecutor(16) as readers:
        for done in [readers.submit(reader, seed) for seed in range(16)]:
            done.result(60)
    assert wrong == []
    assert _bytes_read(pack) == STORED_BYTES


def test_what_is_local_is_peeked_as_a_slice_of_its_file(tmp_path: Path) -> None:
    with _path(tmp_path) as path:
        assert path.image.peek(0, 4096) is None
        assert path.image.pread(0, 4096) == WHOLE[:4096]
    with _path(tmp_path) as path:
        path.image.pread(4096, 4096)
        found = path.image.peek(8192, 4096)
        assert isinstance(found, FileSlice)
        assert (found.offset, found.length) == (8192, 4096)


def test_zero_sectors_are_never_fetched(tmp_path: Path) -> None:
    pack = PackFile([PACK])
    with _path(tmp_path, pack) as path:
        assert path.image.peek(3 * SIZE, SIZE) == bytes(SIZE)
        assert path.image.pread(3 * SIZE, SIZE) == bytes(SIZE)
    assert pack.reads == []


@pytest.mark.parametrize("span", [(-1, 10), (0, 0), (len(WHOLE) - 10, 11), (len(WHOLE), 1)])
def test_a_read_outside_the_device_is_refused(span: tuple[int, int], tmp_path: Path) -> None:
    with _path(tmp_path) as path:
        for read in (path.image.peek, path.image.pread):
            with pytest.raises(UsageError, match="outside the device"):
                read(*span)


def test_forward_reads_are_fetched_ahead_and_random_ones_are_not(
    tmp_path: Path, watcher, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with _path(tmp_path / "a", read_ahead=True, observer=watcher) as path:
        _read_all(path.image)
    kinds = [event.kind for event in watcher.of(SectorFetched)]
    # Demand may overtake a read-ahead that waits; but most were under way before they were read.
    assert Kind.READ_AHEAD in kinds
    watcher.events.clear()
    with _path(tmp_path / "b", read_ahead=True, observer=watcher) as path:
        for number in (20, 5, 13, 0, 9):
            _read(path.image, number * SIZE, 4096)
    assert [event.kind for event in watcher.of(SectorFetched)] == [Kind.DEMAND] * 5


def test_a_bit_that_flipped_on_disk_between_two_runs_is_fetched_again(
    tmp_path: Path, watcher
) -> None:
    with _path(tmp_path) as path:
        _read_all(path.image)
    name = REFS[5].digest.hex
    file = tmp_path / name[:2] / name
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    pack = PackFile([PACK])
    with _path(tmp_path, pack, observer=watcher) as path:
        assert _read_all(path.image) == WHOLE
    assert watcher.of(SectorCorrupt) == [SectorCorrupt(REFS[5].digest, "cache")]
    assert len(pack.reads) == 1
    assert file.read_bytes() == DATA[5]


def test_the_cache_folder_is_deleted_again_and_again_under_a_reader(tmp_path: Path) -> None:
    stop = threading.Event()

    def delete() -> None:
        while not stop.wait(0.002):
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    vandal = threading.Thread(target=delete)
    vandal.start()
    try:
        for _ in range(5):
            with _path(tmp_path / "cache", read_ahead=True) as path:
                assert _read_all(path.image) == WHOLE
                assert _read_all(path.image) == WHOLE
    finally:
        stop.set()
        vandal.join()


def test_a_cache_much_smaller_than_the_image_serves_right_bytes(tmp_path: Path) -> None:
    with _path(tmp_path, limit=1 << 20, read_ahead=True) as path:
        for _ in range(3):
            assert _read_all(path.image) == WHOLE


def _read_once(cache: Path, pack: PackFile, watcher) -> None:
    """In a function of its own, so that no open file keeps the disk busy afterwards."""
    with _path(cache, pack, observer=watcher, read_ahead=True) as path:
        assert _read_all(path.image, 4096) == WHOLE


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_full_disk_slows_reads_but_never_fails_them(tmp_path: Path, watcher) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tiny", tmp_path], check=True)
    try:
        pack = PackFile([PACK])
        _read_once(tmp_path, pack, watcher)
        assert _bytes_read(pack) == STORED_BYTES, (
            "what was not kept is read from memory, not fetched again"
        )
        assert watcher.of(CacheWriteFailed)
        assert "No space left" in watcher.of(CacheWriteFailed)[0].reason
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_dead_registry_fails_the_read_within_its_time_and_a_later_read_tries_again(
    tmp_path: Path,
) -> None:
    dead = [True]

    def refuse(span: ByteRange, data: bytes) -> bytes:
        if dead[0]:
            raise RemoteUnavailableError("connection refused")
        return data

    with _path(tmp_path, PackFile([PACK], damage=refuse), read_timeout_s=0.2) as path:
        with pytest.raises(RemoteUnavailableError):
            path.image.pread(0, 4096)
        dead[0] = False
        assert path.image.pread(0, 4096) == WHOLE[:4096]


def test_wrong_bytes_from_everywhere_are_an_error_and_never_kept(tmp_path: Path) -> None:
    liar = PackFile([PACK], damage=lambda span, data: data[::-1])
    with _path(tmp_path, liar) as path, pytest.raises(SectorCorruptError):
        path.image.pread(0, 4096)
    assert list(DirectoryCache(tmp_path, limit_bytes=LIMIT).refs()) == []


def test_hydration_brings_every_sector_once_and_then_needs_no_registry(tmp_path: Path) -> None:
    pack = PackFile([PACK])
    seen: list[tuple[int, int]] = []
    path = _path(tmp_path, pack)
    path.image.pread(0, 4096)
    total = path.hydrate(lambda done, of: seen.append((done, of)))
    assert total == sum(ref.stored for ref in REFS)
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)
    assert _bytes_read(pack) == STORED_BYTES
    assert len(pack.reads) < STORED // 2, "neighbours share a request"
    with _path(tmp_path, PackFile([])) as offline:
        assert _read_all(offline.image) == WHOLE


def test_hydration_says_so_when_the_cache_is_too_small(tmp_path: Path) -> None:
    path = _path(tmp_path, limit=1 << 20)
    with pytest.raises(CacheError, match="the cache kept") as caught:
        path.hydrate(lambda done, of: None)
    assert "cache_size" in str(caught.value.hint)


def test_hydration_fails_with_the_error_of_the_source(tmp_path: Path) -> None:
    path = _path(tmp_path, PackFile([PACK], damage=lambda span, data: b""))
    with pytest.raises(SectorCorruptError):
        path.hydrate(lambda done, of: None)
    path.close()
