"""The cache folder: damage, eviction, deletion, full and read-only disks, several processes."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pagein.engine.eviction import TOUCH_PERIOD_NS
from pagein.errors import CacheError, CacheFullError, NotFoundError
from pagein.events import SectorCorrupt, SectorEvicted
from pagein.store.directory import DirectoryCache
from pagein.testing.contract_sources import REFS, SECTORS
from pagein.testing.faulty_source import raw_ref
from pagein.types import Sector, SectorRef

LIMIT = 64 << 20


def _filled(folder: Path) -> DirectoryCache:
    cache = DirectoryCache(folder, limit_bytes=LIMIT)
    for ref, data in zip(REFS, SECTORS, strict=True):
        cache.put(Sector.verify(ref, data))
    return cache


def _file(folder: Path, ref: SectorRef) -> Path:
    return folder / ref.digest.hex[:2] / ref.digest.hex


def _some(count: int, size: int = 1 << 20) -> list[tuple[SectorRef, bytes]]:
    draw = random.Random(3)
    data = [draw.randbytes(size) for _ in range(count)]
    return [(raw_ref(each), each) for each in data]


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend", "empty"])
def test_a_file_damaged_between_two_runs_is_dropped(damage: str, tmp_path: Path, watcher) -> None:
    _filled(tmp_path)
    path = _file(tmp_path, REFS[0])
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[12345] ^= 4
    path.write_bytes(
        {"flip": data, "truncate": data[:-1], "extend": data + b"x", "empty": b""}[damage]
    )
    again = DirectoryCache(tmp_path, limit_bytes=LIMIT, observer=watcher)
    assert again.peek(REFS[0]) is None
    assert again.open(REFS[0]) is None
    assert watcher.of(SectorCorrupt) == [SectorCorrupt(REFS[0].digest, "cache")]
    assert not path.exists()
    again.put(Sector.verify(REFS[0], SECTORS[0]))
    assert again.get(REFS[0]).data == SECTORS[0]


def test_another_run_reads_what_this_one_kept_and_hashes_it_once(tmp_path: Path) -> None:
    _filled(tmp_path)
    again = DirectoryCache(tmp_path, limit_bytes=LIMIT)
    assert again.peek(REFS[1]) is None, "not verified yet"
    assert again.open(REFS[1]) is not None
    assert again.peek(REFS[1]) is not None


def test_a_file_that_was_exchanged_is_verified_again(tmp_path: Path) -> None:
    cache = DirectoryCache(tmp_path, limit_bytes=LIMIT, open_files=1)
    cache.put(Sector.verify(REFS[0], SECTORS[0]))
    cache.put(Sector.verify(REFS[1], SECTORS[1]))  # the first one's file is no longer open
    path = _file(tmp_path, REFS[0])
    other = path.with_name("other")
    other.write_bytes(bytes(len(SECTORS[0])))
    other.replace(path)
    assert cache.peek(REFS[0]) is None
    assert cache.open(REFS[0]) is None


def test_zeros_at_the_end_take_no_room(tmp_path: Path) -> None:
    data = os.urandom(5000) + bytes((4 << 20) - 5000)
    cache = DirectoryCache(tmp_path, limit_bytes=LIMIT)
    cache.put(Sector.verify(raw_ref(data), data))
    status = _file(tmp_path, raw_ref(data)).stat()
    assert status.st_size == 4 << 20
    assert status.st_blocks * 512 <= 16 << 10
    assert cache.du().bytes == status.st_blocks * 512
    assert DirectoryCache(tmp_path, limit_bytes=LIMIT).get(raw_ref(data)).data == data


def test_the_cache_stays_near_its_limit_and_keeps_what_is_used_again(
    tmp_path: Path, watcher
) -> None:
    now = [time.time_ns()]
    cache = DirectoryCache(tmp_path, limit_bytes=16 << 20, observer=watcher, now_ns=lambda: now[0])
    hot = _some(2)
    for ref, data in hot:
        cache.put(Sector.verify(ref, data))
    draw = random.Random(4)
    for _ in range(60):
        now[0] += TOUCH_PERIOD_NS
        data = draw.randbytes(1 << 20)
        cache.put(Sector.verify(raw_ref(data), data))
        assert all(cache.peek(ref) is not None for ref, _ in hot)
        assert cache.du().bytes <= (16 + 4) << 20
    assert len(watcher.of(SectorEvicted)) >= 40
    assert {ref.digest.hex for ref, _ in hot} <= set(cache.refs())


def test_what_another_process_deleted_is_let_go_and_written_anew(tmp_path: Path) -> None:
    """`pagein cache prune` beside a daemon: its open files would keep the room, and stay lost."""
    now = [10**18]
    cache = DirectoryCache(tmp_path, limit_bytes=LIMIT, now_ns=lambda: now[0])
    sector = Sector.verify(REFS[0], SECTORS[0])
    cache.put(sector)
    DirectoryCache(tmp_path, limit_bytes=LIMIT).prune(0)
    assert cache.peek(REFS[0]) is not None
    now[0] += TOUCH_PERIOD_NS
    assert cache.peek(REFS[0]) is None
    with pytest.raises(NotFoundError):
        cache.get(REFS[0])
    cache.put(sector)
    assert _file(tmp_path, REFS[0]).read_bytes() == SECTORS[0]


def test_files_that_another_process_evicted_are_closed_though_nobody_asks_for_them(
    tmp_path: Path,
) -> None:
    now = [10**18]
    cache = DirectoryCache(tmp_path, limit_bytes=LIMIT, now_ns=lambda: now[0])
    kept, *evicted = _some(8)
    for ref, data in (kept, *evicted):
        cache.put(Sector.verify(ref, data))
    other = DirectoryCache(tmp_path, limit_bytes=LIMIT)
    for ref, _ in evicted:
        other.remove(ref)
    assert _open_and_deleted(tmp_path) == len(evicted)
    now[0] += TOUCH_PERIOD_NS
    assert cache.peek(kept[0]) is not None
    assert _open_and_deleted(tmp_path) == 0


def _open_and_deleted(folder: Path) -> int:
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(descriptor.readlink()))
    return sum(link.startswith(str(folder)) and link.endswith("(deleted)") for link in links)


def test_times_on_disk_are_the_last_two_uses(tmp_path: Path) -> None:
    now = [10**18]
    cache = DirectoryCache(tmp_path, limit_bytes=LIMIT, now_ns=lambda: now[0])
    cache.put(Sector.verify(REFS[0], SECTORS[0]))
    status = _file(tmp_path, REFS[0]).stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (10**18, 0)
    now[0] += TOUCH_PERIOD_NS // 2
    cache.peek(REFS[0])
    now[0] += TOUCH_PERIOD_NS
    cache.peek(REFS[0])
    status = _file(tmp_path, REFS[0]).stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (now[0], 10**18)


def test_prune_verify_and_du_do_what_the_command_says(tmp_path: Path, watcher) -> None:
    cache = DirectoryCache(tmp_path, limit_bytes=LIMIT, observer=watcher)
    for ref, data in _some(8):
        cache.put(Sector.verify(ref, data))
    assert cache.du().sectors == 8
    path = _file(tmp_path, _some(8)[3][0])
    path.write_bytes(b"\0" + path.read_bytes()[1:])
    assert cache.verify() == (8, 1)
    assert cache.verify() == (7, 0)
    assert len(watcher.of(SectorCorrupt)) == 1
    assert cache.prune(3 << 20) == 4 << 20
    assert cache.du().sectors == 3
    cache.prune(0)
    assert list(cache.refs()) == []
    assert cache.verify() == (0, 0)


def test_what_a_killed_process_left_is_cleared_after_an_hour(tmp_path: Path) -> None:
    now = [time.time_ns()]
    cache = DirectoryCache(tmp_path, limit_bytes=LIMIT, now_ns=lambda: now[0])
    cache.put(Sector.verify(REFS[0], SECTORS[0]))
    left = _file(tmp_path, REFS[0]).with_name(f".{REFS[0].digest.hex}.abc.tmp")
    left.write_bytes(b"half")
    assert cache.du().sectors == 1
    assert left.exists()
    now[0] += 2 * 3600 * 10**9
    assert cache.du().sectors == 1
    assert not left.exists()
    assert list(cache.refs()) == [REFS[0].digest.hex]


def test_a_deleted_folder_loses_nothing_that_is_open_and_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = _filled(folder)
    opened = cache.open(REFS[0])
    shutil.rmtree(folder)
    assert opened is not None
    assert os.pread(opened.fd, opened.size, 0) == SECTORS[0]
    cache.put(Sector.verify(REFS[1], SECTORS[1]))
    cache.put(Sector.verify(raw_ref(b"x" * 4096), b"x" * 4096))
    assert sorted(cache.refs()) == sorted([REFS[1].digest.hex, raw_ref(b"x" * 4096).digest.hex])
    again = DirectoryCache(folder, limit_bytes=LIMIT)
    with pytest.raises(NotFoundError):
        again.get(REFS[0])


def test_a_place_that_cannot_be_written_is_a_cache_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = DirectoryCache(tmp_path / "file", limit_bytes=LIMIT)
    with pytest.raises(CacheError, match="cannot keep sector"):
        cache.put(Sector.verify(REFS[0], SECTORS[0]))
    assert cache.du().sectors == 0


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    cache = DirectoryCache(tmp_path, limit_bytes=LIMIT, open_files=2)
    for ref, data in zip(REFS, SECTORS, strict=True):
        cache.put(Sector.verify(ref, data))
        cache.open(ref)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del cache
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_full_disk_is_told_apart_and_leaves_no_half_sector(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tiny", tmp_path], check=True)
    try:
        cache = DirectoryCache(tmp_path, limit_bytes=LIMIT)
        cache.put(Sector.verify(REFS[0], SECTORS[0]))
        big, data = _some(1)[0]
        with pytest.raises(CacheFullError, match="No space left"):
            cache.put(Sector.verify(big, data))
        assert list(cache.refs()) == [REFS[0].digest.hex]
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert files == [_file(tmp_path, REFS[0])]
        del cache
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        cache = DirectoryCache(tmp_path, limit_bytes=LIMIT)
        assert cache.get(REFS[0]).data == SECTORS[0]
        with pytest.raises(CacheError):
            cache.put(Sector.verify(REFS[1], SECTORS[1]))
        del cache
    finally:
        subprocess.run(["umount", tmp_path], check=True)


_READER = """
import random, sys
from pathlib import Path
from pagein.errors import NotFoundError
from pagein.store.directory import DirectoryCache
from pagein.testing.faulty_source import raw_ref
from pagein.types import Sector
import os
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
draw = random.Random(3)
data = [draw.randbytes(256 << 10) for _ in range(48)]
refs = [raw_ref(each) for each in data]
cache = DirectoryCache(folder, limit_bytes=4 << 20, open_files=4)
choose = random.Random(seed)
misses = 0
for turn in range(600):
    index = choose.randrange(48)
    opened = cache.open(refs[index])
    if opened is None:
        misses += 1
        cache.put(Sector.verify(refs[index], data[index]))
        opened = cache.open(refs[index])
    if opened is not None:  # else the other process evicted it at once
        assert os.pread(opened.fd, opened.size, 0) == data[index]
assert 40 < misses < 600, misses
"""


def test_two_processes_share_a_folder_and_evict_while_both_read(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", _READER, str(tmp_path), str(seed)])
        for seed in (1, 2)
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert DirectoryCache(tmp_path, limit_bytes=LIMIT).verify()[1] == 0
    assert DirectoryCache(tmp_path, limit_bytes=LIMIT).du().bytes <= 6 << 20
