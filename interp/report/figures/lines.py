"""Curves with bands."""

from __future__ import annotations

import pandas as pd

from .canvas import (
    LETTER,
    LINES,
    NARROW,
    RULE,
    WIDTH,
    Figure,
    axis_title,
    canvas,
    check,
    finish,
    groups_of,
    name,
    quiet_axes,
)
from .described import curve_words

MOST_NARROW = 16
"""Places along the x-axis of a curve in one column."""


def curves(
    data: pd.DataFrame,
    *,
    x: str,
    value: str,
    low: str,
    high: str,
    x_axis: str,
    axis: str,
    alt: str | None = None,
    group: str | None = None,
    limits: tuple[float, float] | None = None,
    noise: float | None = None,
) -> Figure:
    """A curve of `value` over `x` for each of at most five groups, between `low` and `high`.

    Curves differ in colour and in stroke. `x_axis` and `axis` name the axes and their units. What
    lies no further from zero than `noise` stands on a grey band.
    """
    check(data, (x, value, low, high), (x,) if group is None else (group, x), once=True)
    groups = groups_of(data, group)
    legend = sum(5 + len(name(label)) for label, _ in groups) if group is not None else 0
    narrow = LETTER * legend < NARROW and len(set(data[x])) <= MOST_NARROW
    with canvas(2.5 if narrow else 2.9, NARROW if narrow else WIDTH) as figure:
        axes = figure.add_subplot()
        if noise:
            axes.axhspan(-noise, noise, facecolor=RULE, alpha=0.55, linewidth=0)
        for (label, rows), (colour, stroke) in zip(groups, LINES.items(), strict=False):
            rows = rows.sort_values(x)
            axes.fill_between(rows[x], rows[low], rows[high], color=colour, alpha=0.18, linewidth=0)
            axes.plot(
                rows[x], rows[value], color=colour, linestyle=stroke, linewidth=1.6, markersize=3,
                marker="o" if len(rows) <= 30 else None, label=name(label),
            )  # fmt: skip
        axes.set(xlabel=axis_title(x_axis), ylabel=axis_title(axis), ylim=limits)
        quiet_axes(axes)
        if pd.api.types.is_integer_dtype(data[x]) and len(set(data[x])) <= 16:
            axes.set_xticks(sorted(data[x].unique()))
        if group is not None:
            figure.legend(loc="outside upper left", ncols=3, frameon=False, handlelength=2.6)
        words = alt or curve_words(data, x, value, x_axis, axis, group)
        return finish(figure, words, data)
