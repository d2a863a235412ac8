"""Curves with bands."""

from __future__ import annotations

import pandas as pd

from .canvas import LINES, LONG, Figure, canvas, check, finish, groups_of, name, quiet_axes


def curves(
    data: pd.DataFrame,
    *,
    x: str,
    value: str,
    low: str,
    high: str,
    x_axis: str,
    axis: str,
    alt: str,
    group: str | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A curve of `value` over `x` for each of at most five groups, between `low` and `high`.

    Curves differ in colour and in stroke. `x_axis` and `axis` name the axes and their units.
    """
    check(data, (x, value, low, high), (x,) if group is None else (group, x), once=True)
    with canvas(3.2) as figure:
        axes = figure.add_subplot()
        found = groups_of(data, group)
        for (one, rows), (colour, stroke) in zip(found, LINES.items(), strict=False):
            rows = rows.sort_values(x)
            axes.fill_between(rows[x], rows[low], rows[high], color=colour, alpha=0.18, linewidth=0)
            axes.plot(
                rows[x], rows[value], color=colour, linestyle=stroke, linewidth=1.6, markersize=3,
                marker="o" if len(rows) <= 30 else None, label=name(one),
            )  # fmt: skip
        axes.set(xlabel=name(x_axis, LONG), ylabel=name(axis, LONG), ylim=limits)
        quiet_axes(axes)
        if pd.api.types.is_integer_dtype(data[x]) and len(set(data[x])) <= 16:
            axes.set_xticks(sorted(data[x].unique()))
        if group is not None:
            figure.legend(loc="outside upper left", ncols=3, frameon=False, handlelength=2.6)
        return finish(figure, alt, data)
