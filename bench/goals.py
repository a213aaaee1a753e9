"""What was to be reached, and whether it was, from the saved cells of starts and shares."""

from __future__ import annotations

from collections.abc import Iterator

from cells import Cells, Spread
from touched import touched_bytes

FAST, SLOW, OPEN = "1000/5", "200/5", "unlimited/0"


def _median(cells: Cells, workload: str, link: str, system: str, figure: str = "ready") -> float:
    """Return a median; nan where there is none, which no comparison reaches."""
    spread = Spread.of(cells.runs(workload, link, system), figure)
    return float("nan") if spread is None else spread.median


def _at_most(name: str, ours: float, theirs: float, limit: float) -> tuple[str, str, str]:
    ratio = ours / theirs
    if ratio != ratio:
        return name, "not measured", ""
    verdict = "reached" if ratio <= limit else "**missed**"
    return name, f"{ours:.2f} s against {theirs:.2f} s: {ratio:.2f} x", verdict


def _torch(cells: Cells) -> Iterator[tuple[str, str, str]]:
    def hot(workload: str, link: str) -> float:
        return _median(cells, workload, link, "pagein-hot")

    def local(workload: str) -> float:
        every = [name for name in cells.names() if name[0] == workload and name[2] == "local"]
        runs = [run for name in every for run in cells.runs(*name)]
        spread = Spread.of(runs, "ready")
        return float("nan") if spread is None else spread.median

    disk = local("torch")
    yield _at_most("`import torch`, 1 Gbit/s, 5 ms: within 1.1 x of the local disk",
                   hot("torch", FAST), disk, 1.1)  # fmt: skip
    yield _at_most("`import torch`, unlimited: faster than the local disk",
                   hot("torch", OPEN), disk, 1.0)  # fmt: skip
    yield _at_most("`import torch`, 200 Mbit/s, 5 ms: within 2 x of the local disk",
                   hot("torch", SLOW), disk, 2.0)  # fmt: skip
    yield _at_most(
        "`import torch`, unlimited: at least 30 x faster than containerd",
        hot("torch", OPEN),
        _median(cells, "torch", OPEN, "containerd"),
        1 / 30,
    )
    for link in (FAST, OPEN):
        yield _at_most(f"another command, {link}: never slower than without a profile",
                       hot("torch-other", link),
                       _median(cells, "torch-other", link, "pagein-plain"), 1.0)  # fmt: skip
    yield _at_most("another command, 1 Gbit/s, 5 ms: within 1.5 x of the local disk",
                   hot("torch-other", FAST), local("torch-other"), 1.5)  # fmt: skip


def _bytes(cells: Cells) -> tuple[str, str, str]:
    name = "bytes fetched by `import torch`: within 1.1 x of what it touches, compressed"
    fetched = _median(cells, "torch", FAST, "pagein-hot", "bytes_fetched")
    touched = touched_bytes("torch-cuda")
    if touched is None or fetched != fetched:
        return name, "not measured", ""
    ratio = fetched / touched
    verdict = "reached" if ratio <= 1.1 else "**missed**"
    return name, f"{fetched / 1e6:.0f} MB against {touched / 1e6:.0f} MB: {ratio:.2f} x", verdict


def _sooner(
    cells: Cells, title: str, theirs: str, systems: tuple[str, ...]
) -> tuple[str, str, str]:
    """Compare in every cell that both have; ``theirs`` and ``systems`` end a cell's name."""
    lost, count = [], 0
    for *where, system in cells.names():
        if system not in systems or not cells.runs(*where, theirs):
            continue
        ours = Spread.of(cells.runs(*where, system), "ready")
        other = Spread.of(cells.runs(*where, theirs), "ready")
        if ours and other:
            count += 1
            if ours.median > other.median:
                lost.append(f"{' '.join(where)} {system} ({ours.median / other.median:.2f} x)")
    if not count:
        return title, "not measured", ""
    if lost:
        return title, f"{count - len(lost)} of {count} cells; not: {', '.join(lost)}", "**missed**"
    return title, f"{count} of {count} cells", "reached"


def goal_rows() -> list[tuple[str, str, str]]:
    """Return a row for each goal: what, the figures, the verdict."""
    cells = Cells("coldstart")
    return [
        *_torch(cells),
        _bytes(cells),
        _sooner(cells, "every image ready sooner than with containerd, on every link",
                "containerd", ("pagein-plain", "pagein-hot")),
        _sooner(Cells("share"), "reading any share of it, too, up to all",
                "containerd", ("pagein",)),
    ]  # fmt: skip
