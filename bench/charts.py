"""Small charts as SVG, which follow the reader's light or dark theme. No dependency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2")
WIDTH, LEFT, RIGHT, TOP = 760, 150, 70, 56
STYLE = """<style>
text { font: 12px sans-serif; fill: #333 } .title { font-size: 14px; font-weight: bold }
.grid { stroke: #8884; stroke-width: 1 } .line { fill: none; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #ddd } }
</style>"""


@dataclass(frozen=True)
class Bar:
    """A median with its lowest and highest run."""

    median: float
    low: float
    high: float


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}">\n{STYLE}\n'
        f'<text class="title" x="8" y="18">{escape(title)}</text>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _legend(names: Sequence[str]) -> list[str]:
    parts, x = [], 8.0
    for name, colour in zip(names, COLOURS, strict=False):
        parts.append(f'<rect x="{x}" y="28" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(x + 14, 37, name))
        x += 34 + 7 * len(name)
    return parts


class _LogScale:
    """From a positive value to a place between ``start`` and ``end``, by whole decades."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self._low = math.floor(math.log10(min(values)))
        self._high = max(math.ceil(math.log10(max(values))), self._low + 1)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self._low, self._high + 1)]


def bar_chart(title: str, unit: str, groups: Mapping[str, Mapping[str, Bar]]) -> str:
    """Draw horizontal bars on a logarithmic scale: a group of them for each name, and the spread.

    ``groups`` maps the group's label to its bars by series.
    """
    series = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    every = [bar for bars in groups.values() for bar in bars.values()]
    scale = _LogScale([v for bar in every for v in (bar.low, bar.high)], LEFT, WIDTH - RIGHT)
    bottom = TOP + sum(len(bars) * 14 + 10 for bars in groups.values())
    parts = _legend(series)
    for tick in scale.ticks():
        x = scale(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP - 6}V{bottom}"/>')
        parts.append(_text(x, bottom + 14, f"{tick:g} {unit}", "middle"))
    y = float(TOP)
    for label, bars in groups.items():
        parts.append(_text(LEFT - 8, y + len(bars) * 7 + 4, label, "end"))
        for name, bar in bars.items():
            colour, end = COLOURS[series.index(name) % len(COLOURS)], scale(bar.median)
            parts.append(
                f'<rect x="{LEFT}" y="{y + 1}" width="{max(end - LEFT, 1):.1f}" height="11" '
                f'fill="{colour}"/><path d="M{scale(bar.low):.1f} {y + 6.5}H{scale(bar.high):.1f}" '
                f'stroke="#8888" stroke-width="3"/>'
            )
            parts.append(_text(max(end, scale(bar.high)) + 5, y + 11, f"{bar.median:.2f}"))
            y += 14
        y += 10
    return _svg(bottom + 26, parts, f"{title} (logarithmic scale)")


def line_chart(
    title: str, across: str, unit: str, lines: Mapping[str, Sequence[tuple[float, float]]]
) -> str:
    """Draw lines over x, from zero, on linear scales. ``lines`` maps a series to its points."""
    height, bottom = 340.0, 290.0
    points = [point for line in lines.values() for point in line]
    most_x, most_y = max(x for x, _ in points) or 1, max(y for _, y in points) or 1
    step = 10 ** math.floor(math.log10(most_y))
    step = step / 5 if most_y / step < 2 else step / 2 if most_y / step < 5 else step
    top = math.ceil(most_y / step) * step

    def place(x: float, y: float) -> tuple[float, float]:
        return 60 + x / most_x * (WIDTH - 100), bottom - y / top * (bottom - TOP)

    parts = _legend(list(lines))
    for number in range(round(top / step) + 1):
        _, y = place(0, number * step)
        parts.append(f'<path class="grid" d="M60 {y:.1f}H{WIDTH - 40}"/>')
        parts.append(_text(54, y + 4, f"{number * step:g}", "end"))
    for x in sorted({x for x, _ in points}):
        parts.append(_text(place(x, 0)[0], bottom + 16, f"{x:g}", "middle"))
    parts.append(_text(WIDTH / 2, bottom + 36, across, "middle"))
    for (_, line), colour in zip(lines.items(), COLOURS, strict=False):
        places = [place(x, y) for x, y in sorted(line)]
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path class="line" stroke="{colour}" d="M{way}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    return _svg(height, parts, f"{title}, in {unit}")
