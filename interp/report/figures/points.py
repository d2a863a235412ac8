"""Points: one method against another, and words in a plane."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patheffects import Stroke
from matplotlib.transforms import Bbox

from .canvas import (
    INK,
    LINES,
    NARROW,
    PAPER,
    QUIET,
    RULE,
    Figure,
    axis_title,
    canvas,
    check,
    finish,
    groups_of,
    name,
    quiet_axes,
)
from .described import plane_words

SIGNS = "osD^X"
AROUND = [(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)]
"""Where a name may stand, seen from its point; the first that is free."""


def scatter(
    data: pd.DataFrame,
    *,
    x: str,
    y: str,
    x_axis: str,
    y_axis: str,
    alt: str | None = None,
    group: str | None = None,
) -> Figure:
    """One method against another, a point for each row of `data`.

    The picture and its alternative text state Spearman's rank correlation over all points.
    """
    check(data, (x, y), () if group is None else (group,))
    told = _rank_correlation(data[x], data[y])
    with canvas(3.2, NARROW) as figure:
        axes = figure.add_subplot()
        _points(axes, data, x, y, group)
        axes.set(xlabel=axis_title(x_axis), ylabel=axis_title(y_axis))
        axes.set_title(told, loc="left", fontsize=7.5, color=QUIET)
        quiet_axes(axes)
        if group is not None:
            figure.legend(loc="outside upper left", ncols=3, frameon=False, handletextpad=0.2)
        words = alt or plane_words(data, None, x, y, x_axis, y_axis)
        return finish(figure, f"{words.rstrip()} {told}.", data)


def plane(
    data: pd.DataFrame,
    *,
    label: str,
    x: str,
    y: str,
    x_axis: str,
    y_axis: str,
    alt: str | None = None,
    group: str | None = None,
    links: Iterable[tuple[str, str]] = (),
    outline: Sequence[str] = (),
) -> Figure:
    """Named points in a plane whose two axes have one scale.

    `links` joins pairs of names by thin lines, `outline` draws the polygon of the names given.
    """
    check(data, (x, y), (label,), once=True)
    place = data.set_index(label)[[x, y]].astype(float)
    lost = {*outline, *(one for pair in links for one in pair)} - set(place.index)
    if lost:
        raise ValueError(f"no point {sorted(lost)[0]!r} to draw a line to")
    wide, tall = (np.ptp(place[one].to_numpy()) or 1.0 for one in (x, y))
    with canvas(float(np.clip(6.0 * tall / wide, 3.0, 6.5))) as figure:
        axes = figure.add_subplot()
        for pair in links:
            axes.plot(*place.loc[list(pair)].to_numpy().T, color=RULE, linewidth=1.1, zorder=1)
        if outline:
            corners = place.loc[[*outline, outline[0]]].to_numpy().T
            axes.plot(*corners, color=INK, linewidth=1.3, linestyle=(0, (4, 2)), zorder=2)
        _points(axes, data, x, y, group)
        axes.set(xlabel=axis_title(x_axis), ylabel=axis_title(y_axis))
        axes.margins(0.1)
        axes.set_aspect("equal", adjustable="datalim")
        quiet_axes(axes)
        if group is not None:
            figure.legend(loc="outside upper left", ncols=3, frameon=False, handletextpad=0.2)
        _names(figure, axes, place)
        words = alt or plane_words(data, label, x, y, x_axis, y_axis)
        return finish(figure, words, data)


def _rank_correlation(x: pd.Series, y: pd.Series) -> str:
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = float(np.corrcoef(x.rank(), y.rank())[0, 1]) if len(x) > 1 else np.nan
    if np.isnan(rho):
        return f"No rank correlation: one side is constant (n = {len(x):,})"
    return f"Spearman’s rank correlation {rho:.2f} (n = {len(x):,})".replace("-", "−")


def _points(axes: Axes, data: pd.DataFrame, x: str, y: str, group: str | None) -> None:
    for (one, rows), colour, sign in zip(groups_of(data, group), LINES, SIGNS, strict=False):
        axes.scatter(
            rows[x], rows[y], s=22, color=colour, marker=sign, linewidths=0, zorder=3,
            label=name(one), alpha=0.8 if len(data) > 60 else 1,
        )  # fmt: skip


def _names(figure: Canvas, axes: Axes, place: pd.DataFrame) -> None:
    """A name beside each point, where it covers least of the other names and points."""
    figure.draw_without_rendering()
    points = axes.transData.transform(place.to_numpy())
    size = figure.dpi / 72
    halo = [Stroke(linewidth=2.2, foreground=PAPER)]  # a name that crosses a line stays legible
    taken = [Bbox.from_bounds(px - 3, py - 3, 6, 6) for px, py in points]
    for (word, (x, y)), (px, py) in zip(place.iterrows(), points, strict=True):
        # The halo is an outline, below the name, which stays text.
        texts = [
            axes.text(x, y, name(word), fontsize=8, color=INK, zorder=zorder, path_effects=effects)
            for zorder, effects in ((4, halo), (5, None))
        ]
        box = texts[1].get_window_extent()
        best = None
        for right, up in AROUND:
            left = px + right * (5 * size + box.width / 2) - box.width / 2
            low = py + up * (5 * size + box.height / 2) - box.height / 2
            tried = Bbox.from_bounds(left, low, box.width, box.height)
            covered = sum(_area(Bbox.intersection(tried, other)) for other in taken)
            if best is None or covered < best[0]:
                best = covered, tried
        assert best is not None
        taken.append(best[1])
        for text in texts:
            text.set_position(axes.transData.inverted().transform(best[1].p0))
            text.set_clip_on(False)


def _area(box: Bbox | None) -> float:
    return 0.0 if box is None else box.width * box.height
