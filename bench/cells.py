"""Results by cell, saved after each run: what was interrupted goes on where it stopped."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass

from harness import RESULTS, machine

Record = dict[str, float | None]
"""One run: a figure by its name; None where it could not be had."""

SEPARATOR = " | "


class Cells:
    """The runs of one benchmark, by the parts of a cell's name."""

    def __init__(self, name: str) -> None:
        self._path = RESULTS / f"{name}.json"
        document = json.loads(self._path.read_text()) if self._path.exists() else {}
        self._cells: dict[str, list[Record]] = document.get("cells", {})
        self._machine: dict[str, str] = document.get("machine", {})

    def runs(self, *name: str) -> list[Record]:
        """Return the runs of a cell so far."""
        return self._cells.get(SEPARATOR.join(name), [])

    def add(self, record: Record, *name: str) -> None:
        """Add a run, and save everything."""
        self._machine = machine()
        self._cells.setdefault(SEPARATOR.join(name), []).append(record)
        self._save()

    def forget(self, *name: str) -> None:
        """Drop the runs of a cell, to measure it again."""
        if self._cells.pop(SEPARATOR.join(name), None) is not None:
            self._save()

    def wants(self, *name: str, number: int, again: bool) -> bool:
        """Whether a cell lacks its run ``number``, from 0. ``again`` drops what it has, first."""
        if again and number == 0:
            self.forget(*name)
        return len(self.runs(*name)) <= number

    def names(self) -> list[tuple[str, ...]]:
        """Return the names of all cells, in the order of their first runs."""
        return [tuple(name.split(SEPARATOR)) for name in self._cells]

    @property
    def machine(self) -> dict[str, str]:
        """Facts of the machine of the last run."""
        return self._machine

    def _save(self) -> None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        lines = [f"  {json.dumps(key)}: {json.dumps(runs)}" for key, runs in self._cells.items()]
        body = ",\n".join(lines)
        new = self._path.with_suffix(".new")
        new.write_text(f'{{"machine": {json.dumps(self._machine)},\n "cells": {{\n{body}\n}}}}\n')
        new.replace(self._path)


@dataclass(frozen=True)
class Spread:
    """The median of some runs, the lowest and the highest, and how many there were."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, runs: list[Record], figure: str) -> Spread | None:
        """Summarise one figure; None where no run has it."""
        found = [value for run in runs if (value := run.get(figure)) is not None]
        if not found:
            return None
        return cls(statistics.median(found), min(found), max(found), len(found))
