"""Ranked things: bars with intervals, and words placed along one axis."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
import seaborn
from matplotlib.axes import Axes

from .canvas import (
    BLUE,
    INK,
    LETTER,
    NARROW,
    ORANGE,
    QUIET,
    RULE,
    WIDTH,
    Figure,
    axis_title,
    canvas,
    check,
    finish,
    name,
    quiet_axes,
)
from .described import ranked_words

MOST = 120
"""Names down one axis; more are neither readable nor on one page."""


def bars(
    data: pd.DataFrame,
    *,
    label: str,
    value: str,
    low: str,
    high: str,
    group: str,
    axis: str,
    alt: str | None = None,
    limits: tuple[float, float] | None = None,
    noise: float | None = None,
) -> Figure:
    """Horizontal bars with intervals, one per `label` and `group` (at most two), from the top.

    Labels and bars keep the order of `data`. `low` and `high` are the ends of the intervals, in the
    units of `value`; `axis` names these. What lies no further from zero than `noise` stands on a
    grey band.
    """
    check(data, (value, low, high), (label, group), once=True)
    names = {one: str(i) for i, one in enumerate(data[label].unique())}
    groups = {one: str(i) for i, one in enumerate(data[group].unique())}
    if len(groups) > 2:
        raise ValueError(f"bars draws one or two groups, got {len(groups)}: {list(groups)}")
    _check_number(len(names))
    numbers = {label: [names[one] for one in data[label]], group: [groups[g] for g in data[group]]}
    drawn, order, keys = data.assign(**numbers), list(names.values()), list(groups.values())
    thick = 0.12 if len(groups) > 1 else 0.17
    height = 0.7 + thick * len(groups) * len(names) * 1.35
    with canvas(height, _width(names)) as figure:
        axes = figure.add_subplot()
        if noise:
            axes.axvspan(-noise, noise, facecolor=RULE, alpha=0.55, linewidth=0)
        seaborn.barplot(
            drawn, y=label, x=value, hue=group, order=order, hue_order=keys,
            palette=dict(zip(keys, (BLUE, ORANGE), strict=False)), saturation=1,
            errorbar=None, gap=0.08, legend=False, ax=axes,
        )  # fmt: skip
        for key, bars_of_one in zip(keys, axes.containers, strict=True):
            rows = drawn[drawn[group] == key].set_index(label).reindex(order).dropna(subset=[value])
            _whiskers(axes, bars_of_one, rows[low], rows[high])
        _dress(axes, list(names), axis)
        axes.set_xlim(limits)
        if len(groups) > 1:
            handles = [axes.containers[i][0] for i in range(len(groups))]
            figure.legend(
                handles, [name(one) for one in groups], loc="outside upper left", ncols=2,
                frameon=False, handlelength=1, handleheight=0.8, borderaxespad=0.2,
            )  # fmt: skip
        words = alt or ranked_words(data, label, value, axis, group, None)
        return finish(figure, words, data)


def places(
    data: pd.DataFrame,
    *,
    label: str,
    value: str,
    low: str,
    high: str,
    axis: str,
    alt: str | None = None,
) -> Figure:
    """Each name at its place along one axis, from the top, above the range that a control gives it
    (`low` to `high`, a grey band). Names keep the order of `data`.
    """
    check(data, (value, low, high), (label,), once=True)
    _check_number(len(data))
    with canvas(0.7 + 0.17 * len(data), _width(data[label])) as figure:
        axes = figure.add_subplot()
        down = range(len(data))
        axes.barh(down, data[high] - data[low], 1.0, left=data[low], color=RULE, alpha=0.55)
        axes.axvline(0, color=QUIET, linewidth=0.8)
        axes.scatter(data[value], down, s=26, color=BLUE, linewidths=0, zorder=3)
        _dress(axes, list(data[label]), axis)
        axes.set_ylim(len(data) - 0.5, -0.5)
        outside = int(((data[value] < data[low]) | (data[value] > data[high])).sum())
        words = alt or ranked_words(data, label, value, axis, None, outside)
        return finish(figure, words, data)


def _width(names: Iterable) -> float:
    """One column, unless names would take half of it."""
    return NARROW if LETTER * max(len(name(one)) for one in names) <= NARROW / 2.2 else WIDTH


def _check_number(names: int) -> None:
    if names > MOST:
        raise ValueError(f"{names} names do not fit down one axis; draw at most {MOST} of them")


def _whiskers(axes: Axes, drawn: Any, low: Iterable, high: Iterable) -> None:
    for bar, start, end in zip(drawn, low, high, strict=True):
        middle = bar.get_y() + bar.get_height() / 2
        axes.plot([start, end], [middle, middle], color=INK, linewidth=1, solid_capstyle="butt")


def _dress(axes: Axes, labels: list, axis: str) -> None:
    axes.set(xlabel=axis_title(axis), ylabel="")
    axes.set_yticks(range(len(labels)), [name(one) for one in labels])
    quiet_axes(axes, "x")
    axes.spines["left"].set_visible(False)
