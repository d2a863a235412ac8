"""Figures: a tidy frame drawn once, as SVG for pages and PNG for slides.

Drawn on a Figure object with the Agg canvas: pyplot's state and the user's theme are not touched.
The SVG carries dark colours that apply where the reader's system asks for them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from .text import shorten, visible

# Light colour: the dark one in its place. Blue and orange survive every common colour blindness.
PAPER, INK, QUIET, RULE = "#ffffff", "#1f2328", "#5a6270", "#d5d9df"
BLUE, ORANGE = "#2f6db5", "#d9822b"
DARK = {
    PAPER: "#15181c",
    INK: "#e4e7eb",
    QUIET: "#a0a8b4",
    RULE: "#363c45",
    BLUE: "#3d79c2",
    ORANGE: "#b9692a",
}
STYLE: Any = {
    "svg.hashsalt": "interp",
    "svg.fonttype": "path",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "xtick.color": QUIET,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
}
WIDTH = 5.8
"""Inches, at 96 pixels each on a page."""


@dataclass(frozen=True, eq=False)
class Figure:
    """A finished picture."""

    svg: bytes
    png: bytes
    alt: str
    """What a reader who cannot see it needs to know."""
    data: pd.DataFrame
    """The numbers that were drawn."""
    width: int
    height: int
    """Pixels on a page."""


def bars(
    data: pd.DataFrame,
    *,
    label: str,
    value: str,
    low: str,
    high: str,
    group: str,
    axis: str,
    alt: str,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Horizontal bars with intervals, one per `label` and `group` (at most two), from the top.

    Labels and bars keep the order of `data`. `low` and `high` are the ends of the intervals, in the
    units of `value`; `axis` names these.
    """
    drawn = data.assign(**{name: [visible(str(v)) for v in data[name]] for name in (label, group)})
    groups, labels = list(drawn[group].unique()), list(drawn[label].unique())
    if len(groups) > 2:
        raise ValueError(f"bars draws one or two groups, got {len(groups)}: {groups}")
    thick = 0.13 if len(groups) > 1 else 0.2
    with matplotlib.rc_context(STYLE):
        height = 0.9 + thick * len(groups) * len(labels) * 1.35
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
        axes = canvas.add_subplot()
        colours = dict(zip(groups, (BLUE, ORANGE), strict=False))
        seaborn.barplot(
            drawn, y=label, x=value, hue=group, order=labels, hue_order=groups, palette=colours,
            saturation=1, errorbar=None, gap=0.08, legend=False, ax=axes,
        )  # fmt: skip
        for one, bars_of_one in zip(groups, axes.containers, strict=False):
            rows = drawn[drawn[group] == one].set_index(label).reindex(labels)
            _whiskers(axes, bars_of_one, rows[low], rows[high])
        _dress(axes, labels, axis, limits)
        if len(groups) > 1:
            handles = [axes.containers[i][0] for i in range(len(groups))]
            canvas.legend(
                handles, [_label(one) for one in groups], loc="outside upper left", ncols=2,
                frameon=False, handlelength=1, handleheight=0.8, borderaxespad=0.2,
            )  # fmt: skip
        return _finish(canvas, alt, data)


def _whiskers(axes: Axes, drawn: Any, low: Iterable, high: Iterable) -> None:
    for bar, start, end in zip(drawn, low, high, strict=True):
        middle = bar.get_y() + bar.get_height() / 2
        axes.plot([start, end], [middle, middle], color=INK, linewidth=1, solid_capstyle="butt")


def _dress(axes: Axes, labels: list, axis: str, limits: tuple[float, float] | None) -> None:
    axes.set(xlabel=axis, ylabel="", xlim=limits)
    axes.set_yticks(range(len(labels)), [_label(one) for one in labels])
    axes.tick_params(axis="both", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def _label(text: object) -> str:
    return shorten(str(text), 40)


def _finish(canvas: Canvas, alt: str, data: pd.DataFrame) -> Figure:
    svg, png = io.BytesIO(), io.BytesIO()
    canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": "interp"})
    canvas.savefig(png, format="png", dpi=200, metadata={"Software": "interp"})
    width, height = (round(96 * inches) for inches in canvas.get_size_inches())
    return Figure(_adaptive(svg.getvalue().decode()), png.getvalue(), alt, data, width, height)


def _adaptive(svg: str) -> bytes:
    """The SVG with a style sheet that swaps the colours for their dark ones."""
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark} !important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    return re.sub(r"(<svg\b[^>]*>)", lambda match: match[1] + style, svg, count=1).encode()
