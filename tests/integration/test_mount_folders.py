"""The folder of a mount belongs to a living process exactly as long as somebody holds its lock."""

import os
import threading
from pathlib import Path

from pagein.daemon.mounts import MountFolder, folders, sweep
from pagein.daemon.paths import Paths


def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "lib", tmp_path / "run")


def test_a_folder_is_alive_from_its_first_moment_until_its_lock_is_let_go(tmp_path: Path) -> None:
    place = paths(tmp_path)
    folder, lock = MountFolder.create(place)
    sweep(place)
    assert not folder.is_dead()
    assert [one.path for one in folders(place)] == [folder.path]
    os.close(lock)
    assert folder.is_dead()
    sweep(place)
    assert list(folders(place)) == []


def test_no_sweep_takes_a_folder_that_another_process_just_makes(tmp_path: Path) -> None:
    place = paths(tmp_path)
    made_all = threading.Event()

    def keep_sweeping() -> None:
        while not made_all.is_set():
            sweep(place)

    sweeper = threading.Thread(target=keep_sweeping)
    sweeper.start()
    try:
        made = [MountFolder.create(place) for _ in range(300)]
    finally:
        made_all.set()
        sweeper.join()
    assert all((folder.path / "lock").exists() for folder, _ in made)
    for _, lock in made:
        os.close(lock)


def test_what_was_half_made_or_half_removed_is_swept_when_it_is_old(tmp_path: Path) -> None:
    place = paths(tmp_path)
    unfinished = place.make(place.mounts) / ".0123456789ab"
    half_removed = place.mounts / "ba9876543210"
    for folder in (unfinished, half_removed):
        folder.mkdir()
    sweep(place)
    assert unfinished.exists()
    assert half_removed.exists()
    for folder in (unfinished, half_removed):
        os.utime(folder, (0, 0))
    sweep(place)
    assert list(place.mounts.iterdir()) == []
