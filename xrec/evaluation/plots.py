"""Charts as inline SVG for the report: drawn by matplotlib, coloured by the page's own style sheet.

Each colour drawn is a placeholder that becomes a CSS variable (`--ink`, `--series-1` …), so that one chart serves a
light and a dark page. Text stays text. What is charted is `report_content.py`'s business.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Placeholder -> CSS variable; matplotlib writes colours as lower-case hexadecimal.
_COLOURS = {
    "#010101": "--ink",
    "#020202": "--muted",
    "#030303": "--line",
    "#100001": "--series-1",
    "#100002": "--series-2",
    "#100003": "--series-3",
    "#100004": "--series-4",
    "#100005": "--series-5",
    "#100006": "--series-6",
    "#100007": "--series-7",
    "#100008": "--series-8",
}
_INK, _MUTED, _LINE, *_SERIES = _COLOURS
SERIES = len(_SERIES)
# A second sign beside the colour, for those who cannot tell two of the colours apart.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of systems and words of texts may hold dollar signs
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _MUTED,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}
_LONGEST, _LONGEST_CATEGORY = 28, 14  # characters that a name may have in a chart of this width
_WIDTH = 4.7  # inches, about the width of a phone at the page's text size


@dataclass(frozen=True)
class Line:
    """One curve: its name and its points."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Estimate:
    """One row of an interval chart: a name, a value and the ends of its interval; `series` picks the colour (0-7)."""

    label: str
    value: float
    low: float
    high: float
    series: int = 0


@dataclass(frozen=True)
class Points:
    """One system over categories: its name, a value a category, and the ends of each value's interval; NaN for none."""

    label: str
    values: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, alternative: str) -> str:
    """Curves over a common x axis.

    Args:
        lines: up to eight curves, each with at least one point.
        x_label: what x counts.
        y_label: what y measures, with its unit.
        alternative: the text alternative of the chart.

    Returns:
        An `<svg>` element.
    """
    with _figure(2.7, alternative) as (axes, result):
        for number, line in enumerate(lines):
            marker = "o" if len(line.x) < 12 else None
            axes.plot(line.x, line.y, color=_SERIES[number], label=line.label, marker=marker, markersize=3.5)
        axes.set(xlabel=x_label, ylabel=y_label)
        if all(float(x).is_integer() for line in lines for x in line.x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if len(lines) > 1:
            axes.legend()
    return result[0]


def interval_chart(
    estimates: Sequence[Estimate],
    x_label: str,
    alternative: str,
    references: Sequence[tuple[str, float]] = (),
    limits: tuple[float, float] | None = None,
) -> str:
    """Values with intervals, one row each, against reference values.

    Args:
        estimates: top row first.
        x_label: what is measured, with its unit.
        alternative: the text alternative of the chart.
        references: name and value of vertical lines (`chance`, 0.12).
        limits: of the x axis; default: the data's.

    Returns:
        An `<svg>` element.
    """
    with _figure(0.6 + 0.16 * len(references) + 0.32 * len(estimates), alternative) as (axes, result):
        rows = range(len(estimates), 0, -1)
        for row, estimate in zip(rows, estimates, strict=True):
            colour = _SERIES[estimate.series]
            axes.plot([estimate.low, estimate.high], [row, row], color=colour, solid_capstyle="round", linewidth=2.4)
            axes.plot([estimate.value], [row], marker="o", color=colour, markersize=6)
        axes.set_yticks(list(rows), [_fitting(e.label) for e in estimates])
        for label in axes.get_yticklabels():
            label.set_color(_INK)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.set(xlabel=x_label, ylim=(0.4, len(estimates) + 0.6))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        _draw_references(axes, references)
        if limits is not None:
            axes.set_xlim(limits)
    return result[0]


def category_chart(
    categories: Sequence[str], points: Sequence[Points], x_label: str, y_label: str, alternative: str
) -> str:
    """Values with intervals over categories in order, one line a system; neighbours stand side by side.

    Args:
        categories: from left to right.
        points: up to eight systems, with a value (or NaN) for each category.
        x_label: what the categories are.
        y_label: what is measured, with its unit.
        alternative: the text alternative of the chart.

    Returns:
        An `<svg>` element.
    """
    with _figure(2.9 + 0.2 * -(-len(points) // 2), alternative) as (axes, result):
        places = np.arange(len(categories))
        step = 0.6 / max(1, len(points))
        for number, one in enumerate(points):
            colour, x = _SERIES[number], places + (number - (len(points) - 1) / 2) * step
            axes.vlines(x, one.lows, one.highs, color=colour, linewidth=1.6)
            style = {"marker": _MARKERS[number], "markersize": 5, "linewidth": 0.9}
            axes.plot(x, one.values, color=colour, label=_fitting(one.label), **style)
        axes.set(xlabel=x_label, ylabel=y_label, xlim=(-0.5, len(categories) - 0.5))
        axes.set_xticks(places, [_fitting(category, _LONGEST_CATEGORY) for category in categories])
        axes.tick_params(axis="x", length=0, labelsize=8)
        axes.grid(axis="x", visible=False)
        if len(points) > 1:
            axes.figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return result[0]


def _fitting(label: str, longest: int = _LONGEST) -> str:
    return label if len(label) <= longest else label[: longest - 1] + "…"


def _draw_references(axes: Axes, references: Sequence[tuple[str, float]]) -> None:
    for number, (label, value) in enumerate(references):
        axes.axvline(value, color=_MUTED, linestyle=(0, (4, 3)) if number == 0 else (0, (1, 2)), linewidth=1.2)
        # Neighbouring names would overlap on one line: the second stands above the first.
        axes.annotate(
            label,
            (value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 2 + 11 * number),
            textcoords="offset points",
            color=_MUTED,
            fontsize=8,
        )


@contextmanager
def _figure(height: float, alternative: str) -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on; after the block, the list's one entry is the finished `<svg>`."""
    result: list[str] = []
    style: dict[Any, Any] = {**_STYLE, "svg.hashsalt": alternative}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure.add_subplot(), result
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    result.append(_inline(buffer.getvalue(), alternative))


def _inline(svg: str, alternative: str) -> str:
    """The `<svg>` element alone: no outside address, colours by variable, ids of its own, and a text alternative."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Style sheets inside an inline SVG hold for the whole page, and the page has its own font.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\sfont-family: [^;\"]*;?", "", svg)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    # Ids that are referred to carry a hash of the alternative text; the others only repeat from chart to chart.
    referred = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', svg))
    svg = re.sub(r'\sid="([\w.-]+)"', lambda m: m[0] if m[1] in referred else "", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    # Width and height in points would fix the size; the view box alone lets the page scale the chart.
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height|version)="[^"]*"', "", head)
    name = escape(alternative, quote=True)
    return f'{head} role="img" aria-label="{name}">\n<title>{name}</title>{rest}'.strip()
