"""Tables and charts of docs/benchmarks.md, from the saved cells."""

from __future__ import annotations

from cells import Cells, Record, Spread
from charts import Bar, bar_chart, line_chart
from goals import goal_rows
from harness import ROOT
from network import Link

CHARTS = ROOT / "docs" / "benchmarks"
FIGURES = (
    ("resolve", "resolve", "s"),
    ("metadata", "metadata", "s"),
    ("mount", "mount", "s"),
    ("first_output", "first output", "s"),
    ("ready", "ready", "s"),
    ("bytes_fetched", "MB fetched", "MB"),
    ("bytes_read", "MB read", "MB"),
    ("requests", "requests", ""),
    ("resident", "resident MB", "MB"),
)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(runs: list[Record], figure: str, unit: str, *, spread: bool = False) -> str:
    found = Spread.of(runs, figure)
    if found is None:
        return ""
    scale, digits = {"s": (1.0, 2), "MB": (1e-6, 1), "ms": (1e3, 1), "": (1.0, 0)}[unit]
    median, low, high = (f"{v * scale:.{digits}f}" for v in (found.median, found.low, found.high))
    return f"**{median}** [{low} to {high}]" if spread else median


def coldstart_table() -> str:
    """Return a row for each workload, link and system."""
    cells, rows = Cells("coldstart"), []
    for name in sorted(cells.names(), key=lambda one: one[:2]):
        runs = cells.runs(*name)
        figures = [_cell(runs, key, unit, spread=key == "ready") for key, _, unit in FIGURES]
        rows.append([name[0], Link.parse(name[1]).words(), name[2], *figures, str(len(runs))])
    head = ["workload", "link", "system", *(title for _, title, _ in FIGURES), "runs"]
    return _table(head, rows)


def share_table() -> str:
    """Return a row for each image, link and share."""
    cells = Cells("share")
    where = dict.fromkeys(name[:3] for name in cells.names())
    rows = [
        [image, Link.parse(link).words(), what,
         *(_cell(cells.runs(image, link, what, who), "ready", "s", spread=True)
           for who in ("containerd", "pagein"))]
        for image, link, what in where
    ]  # fmt: skip
    return _table(["image", "link", "read", "containerd, s", "pagein, s"], rows)


def together_table() -> str:
    """Return a row for each count of starts."""
    cells = Cells("together")
    where = dict.fromkeys(name[:3] for name in cells.names())
    rows = [
        [workload, Link.parse(link).words(), count,
         *(_cell(cells.runs(workload, link, count, who), "ready", "s", spread=True)
           for who in ("containerd", "pagein")),
         _cell(cells.runs(workload, link, count, "pagein"), "bytes_fetched", "MB")]
        for workload, link, count in where
    ]  # fmt: skip
    head = ["workload", "link", "starts", "containerd, s", "pagein, s", "MB fetched by pagein"]
    return _table(head, rows)


def misses_table() -> str:
    """Return a row for each link."""
    cells = Cells("misses")
    rows = [
        [name[0], Link.parse(name[1]).words(),
         *(_cell(cells.runs(*name), key, "ms") for key in ("p50", "p99", "p99.9")),
         _cell(cells.runs(*name), "reads", ""), str(len(cells.runs(*name)))]
        for name in cells.names()
    ]  # fmt: skip
    return _table(["image", "link", "p50, ms", "p99, ms", "p99.9, ms", "reads", "runs"], rows)


def goals_table() -> str:
    """Return a row for each goal."""
    return _table(["goal", "measured", ""], [list(row) for row in goal_rows()])


def summary_table() -> str:
    """Return a row for each workload over 1 Gbit/s and 5 ms: what a reader wants to know first."""
    cells, link = Cells("coldstart"), "1000/5"
    systems = ("containerd", "pagein-plain", "pagein-hot", "local")
    names = dict.fromkeys(name[0] for name in cells.names() if name[1] == link)
    rows = [
        [name, *(_cell(cells.runs(name, link, who), "ready", "s", spread=True) for who in systems)]
        for name in names
    ]
    return _table(["ready, in s", *systems], rows)


def cell_tables() -> dict[str, str]:
    """Return the tables of what has been measured, by the name of their marker."""
    makers = {
        "coldstart": coldstart_table,
        "share": share_table,
        "together": together_table,
        "misses": misses_table,
    }
    tables = {name: maker() for name, maker in makers.items() if Cells(name).names()}
    if "coldstart" in tables:
        tables |= {"goals": goals_table(), "summary": summary_table()}
        if machine := Cells("coldstart").machine:
            facts = ", ".join(f"{key} {value}" for key, value in machine.items())
            tables["coldstart-machine"] = f"Measured on {facts}."
    return tables


def write_charts() -> None:
    """Draw a bar chart of the cold starts for each link, and a line chart for each share sweep."""
    CHARTS.mkdir(exist_ok=True)
    cells = Cells("coldstart")
    for link in dict.fromkeys(name[1] for name in cells.names()):
        groups: dict[str, dict[str, Bar]] = {}
        for workload, where, system in cells.names():
            found = Spread.of(cells.runs(workload, where, system), "ready")
            if where == link and found:
                bar = Bar(found.median, found.low, found.high)
                groups.setdefault(workload, {})[system] = bar
        title = f"Ready from nothing, {Link.parse(link).words()}"
        _write(f"coldstart-{link.replace('/', '-')}", bar_chart(title, "s", groups))
    shares = Cells("share")
    for image, link in dict.fromkeys(name[:2] for name in shares.names()):
        lines: dict[str, list[tuple[float, float]]] = {}
        for name in shares.names():
            found = Spread.of(shares.runs(*name), "ready")
            if name[:2] == (image, link) and name[2].endswith("%") and found:
                lines.setdefault(name[3], []).append((float(name[2].split()[0]), found.median))
        if lines:
            title = f"{image}: pull or mount, and read a share of it, {Link.parse(link).words()}"
            drawn = line_chart(title, "% of the image that is read", "seconds", lines)
            _write(f"share-{image}-{link.replace('/', '-')}", drawn)


def _write(name: str, drawn: str) -> None:
    (CHARTS / f"{name}.svg").write_text(drawn)
