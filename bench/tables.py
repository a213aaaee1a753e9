"""Write the figures of ``bench/results`` into the marked places of the documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cell_tables import cell_tables, write_charts
from harness import RESULTS, ROOT

PAGES = (ROOT / "docs" / "benchmarks.md", ROOT / "README.md")


def load(name: str) -> dict[str, Any]:
    """Read what one benchmark saved; nothing where it has not run."""
    path = RESULTS / f"{name}.json"
    document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"series": []}
    return document


def cell(series: dict[str, Any]) -> str:
    """Median, and the lowest and highest run."""
    values, unit = series["values"], series["unit"]
    digits = 2 if unit == "s" else 0
    median, low, high = (f"{v:.{digits}f}" for v in (series["median"], min(values), max(values)))
    return f"**{median} {unit}** [{low} to {high}]"


def starts_table() -> str:
    """Containerd beside pagein, a row for each image and command."""
    series = {one["name"]: one for one in load("starts")["series"]}
    lines = ["| image | command | containerd pull + run | pagein run | ratio |",
             "| --- | --- | ---: | ---: | ---: |"]  # fmt: skip
    for name, theirs in series.items():
        image, title, who = name.split(": ")
        if who == "containerd":
            ours = series[f"{image}: {title}: pagein"]
            ratio = f"{theirs['median'] / ours['median']:.0f} x"
            lines.append(f"| {image} | `{title}` | {cell(theirs)} | {cell(ours)} | {ratio} |")
    return "\n".join(lines)


def pods_table() -> str:
    """Overlayfs beside pagein, a row for each image and what was waited for."""
    series = {one["name"]: one for one in load("pods")["series"]}
    lines = ["| image | until | overlayfs | pagein | ratio |", "| --- | --- | ---: | ---: | ---: |"]
    for name, theirs in series.items():
        image, title, who = name.split(": ")
        if who == "overlayfs":
            ours = series[f"{image}: {title}: pagein"]
            ratio = f"{theirs['median'] / ours['median']:.1f} x"
            lines.append(f"| {image} | {title} | {cell(theirs)} | {cell(ours)} | {ratio} |")
        elif who == "sectors fetched":
            distinct = series[f"{image}: {title}: distinct sectors"]
            counts = f"{theirs['median']:.0f} of {distinct['median']:.0f}"
            lines.append(f"| {image} | {title}: sectors fetched of distinct ones | | {counts} | |")
    return "\n".join(lines)


def plain_table(name: str) -> str:
    """Return a row for each case of one benchmark."""
    lines = ["| case | median [lowest to highest] | runs |", "| --- | ---: | ---: |"]
    for one in load(name)["series"]:
        lines.append(f"| {one['name']} | {cell(one)} | {len(one['values'])} |")
    return "\n".join(lines)


def machine_line() -> str:
    """Say in one line what was measured on."""
    machine = load("starts").get("machine", {})
    return "Measured on " + ", ".join(f"{key} {value}" for key, value in machine.items()) + "."


def write_tables() -> None:
    """Replace what stands between ``<!-- bench:NAME -->`` and ``<!-- end -->`` in each page."""
    names = ("device_reads", "fetch_path", "convert", "versions", "command", "daemon_memory")
    tables = {name: plain_table(name) for name in names if load(name)["series"]}
    tables |= {"starts": starts_table(), "machine": machine_line()}
    if load("pods")["series"]:
        tables["pods"] = pods_table()
    tables |= cell_tables()
    write_charts()
    for page in PAGES:
        page.write_text(fill(page, tables))


def fill(page: Path, tables: dict[str, str]) -> str:
    """Return the page's text with new tables."""
    text = page.read_text()
    for name, table in tables.items():
        head, mark, rest = text.partition(f"<!-- bench:{name} -->\n")
        if mark:
            _, end, tail = rest.partition("<!-- end -->")
            if not end:
                raise SystemExit(f"{page}: no <!-- end --> after {mark}")
            text = f"{head}{mark}{table}\n{end}{tail}"
    return text


if __name__ == "__main__":
    write_tables()
