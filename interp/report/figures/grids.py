"""Heatmaps: head × layer, position × layer, or any two axes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from .canvas import (
    INK,
    LONG,
    PAPER,
    RULE,
    SHADES,
    STEPS,
    WIDTH,
    Figure,
    canvas,
    check,
    finish,
    name,
)

TALL, WIDE = 0.22, 0.4
"""Inches of a cell where there is room."""
HEIGHT = 10.0
"""Inches that all rows may take together."""
LINE = 0.145
"""Inches that a line of type needs."""
GREY_LEVEL = 2 * STEPS + 1
"""Of cells, in place of a shade: what lies within the noise."""
MOST = 20_000
"""Cells of one figure."""


def heatmap(
    data: pd.DataFrame,
    *,
    rows: str,
    columns: str,
    value: str,
    axis: str,
    alt: str,
    diverging: bool = True,
    ranks: bool = False,
    limit: float | None = None,
    noise: float | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
    titles: Mapping[str, str] | None = None,
) -> Figure:
    """A cell for each row of `data`; a place without one stays empty.

    Diverging: zero is neutral, blue above, orange below, both ends equally far. Else the shade
    grows from zero, as shares ask for. With `ranks` (1 or more, 1 is the top) the
    first rank is darkest and shades fade with the logarithm of the rank. `limit` is the value of
    the last shade, by default the largest there is; what lies beyond has the last shade too. What
    lies no further from zero than `noise`, as the control does, is grey, and so is that part of
    the scale. Numbers are in order, other values as they come. `names` gives the integers of an
    axis their names (`{"pos": tokens}`), `titles` the axes theirs. `axis` says above the picture
    what the shades measure, with its unit.
    """
    check(data, (value,), (rows, columns), once=True)
    down, across = (in_order(data[one]) for one in (rows, columns))
    if len(down) * len(across) > MOST:
        raise ValueError(f"{len(down)} × {len(across)} cells are more than {MOST:,}; select some")
    grid = np.full((len(down), len(across)), np.nan)
    grid[down.get_indexer(data[rows]), across.get_indexer(data[columns])] = data[value]
    if ranks:
        if np.nanmin(grid) < 1:
            raise ValueError(f"{value!r} has values below 1, which are no ranks")
        grid, diverging = np.log10(grid), False
    if not diverging and np.nanmin(grid) < 0:
        raise ValueError(f"{value!r} has values below zero; draw it with diverging=True")
    largest = float(np.nanmax(np.abs(grid)))
    limit = limit or largest or 1.0
    if noise is not None and not 0 <= noise < math.inf:
        raise ValueError(f"noise={noise}: expected a size, 0 or more")
    limit = max(limit, noise or 0.0)
    tall = min(TALL, HEIGHT / len(down))
    texts = [_texts(one, key, names) for one, key in ((down, rows), (across, columns))]
    room = 1.6 + 0.075 * max(map(len, texts[0]))
    wide = max(min(WIDE, (WIDTH - room) / len(across)), 0.004)
    # Names below the columns are turned, and need the height of the longest.
    below = 0.55 + 0.075 * max(map(len, texts[1])) * (columns in (names or {}))
    title = textwrap.fill(name(axis, LONG) + (", clipped" if largest > limit else ""), 78)
    height = max(tall * len(down), 0.9) + below + 0.15 + LINE * (1 + title.count("\n"))
    width = max(room + wide * len(across), 2.6, 0.3 + 0.075 * len(title.split("\n")[0]))
    with canvas(height, min(width, WIDTH)) as figure:
        axes, scale = figure.subplots(1, 2, width_ratios=[max(wide * len(across), 1.0), 0.13])
        quiet = None if noise is None else noise / limit
        _cells(
            axes,
            1 - grid / limit if ranks else grid / limit,
            quiet,
            gaps=len(across) <= 40 and len(down) <= 60,
        )
        for one, turned in ((axes.yaxis, False), (axes.xaxis, columns in (names or {}))):
            labels, cell = (texts[1], wide) if one is axes.xaxis else (texts[0], tall)
            step = math.ceil(LINE * (1.6 if one is axes.xaxis and not turned else 1) / cell)
            one.set_ticks(range(0, len(labels), step), labels[::step])
            one.set_tick_params(length=0, labelrotation=90 if turned else 0, labelcolor=INK)
        titles = {rows: rows, columns: columns, **(titles or {})}
        axes.set(xlabel=name(titles[columns], LONG), ylabel=name(titles[rows], LONG))
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, color=INK)
        _scale(scale, limit, diverging, noise)
        if ranks:
            _as_ranks(scale, limit)
        return finish(figure, alt, data)


def in_order(values: pd.Series) -> pd.Index:
    """The distinct values along an axis: numbers in order, all else as it comes."""
    found = pd.Index(values.unique(), dtype=None if values.dtype != object else object)
    return found.sort_values() if pd.api.types.is_numeric_dtype(values) else found


def _texts(values: pd.Index, key: str, names: Mapping[str, Sequence[str]] | None) -> list[str]:
    own = (names or {}).get(key)
    if own is None:
        return [name(one) for one in values]
    if values.max() >= len(own):
        raise ValueError(f"{key} {values.max()} has no name: there are {len(own)}")
    return [name(own[one]) for one in values]


def _cells(axes: Axes, share: np.ndarray, quiet: float | None, gaps: bool) -> None:
    """One path per shade, of runs of equal cells: a picture of 10,000 cells stays small."""
    n_rows, n_columns = share.shape
    level = np.full(share.shape, -1)
    there = ~np.isnan(share)
    level[there] = np.rint(share[there].clip(-1, 1) * STEPS) + STEPS
    if quiet is not None:
        level[there & (np.abs(share) <= quiet)] = GREY_LEVEL
    runs: dict[int, list] = {}
    for y, row in enumerate(level):
        starts = np.flatnonzero(np.diff(row, prepend=-2))
        for x0, x1 in zip(starts, [*starts[1:], n_columns], strict=True):
            box = [
                (x0 - 0.5, y - 0.5),
                (x1 - 0.5, y - 0.5),
                (x1 - 0.5, y + 0.5),
                (x0 - 0.5, y + 0.5),
            ]
            runs.setdefault(int(row[x0]), []).append([*box, box[0]])
    runs.pop(-1, None)
    for one, boxes in sorted(runs.items()):
        path = Path.make_compound_path(*(Path(box, closed=True) for box in boxes))
        axes.add_patch(PathPatch(path, facecolor=_shade(one), linewidth=0, antialiased=False))
    if gaps:
        axes.hlines(np.arange(1, n_rows) - 0.5, -0.5, n_columns - 0.5, PAPER, linewidth=0.7)
        axes.vlines(np.arange(1, n_columns) - 0.5, -0.5, n_rows - 0.5, PAPER, linewidth=0.7)
    axes.set(xlim=(-0.5, n_columns - 0.5), ylim=(n_rows - 0.5, -0.5))
    axes.spines[:].set_visible(False)


def _shade(level: int) -> str:
    return RULE if level == GREY_LEVEL else SHADES[level]


def _scale(axes: Axes, limit: float, diverging: bool, noise: float | None) -> None:
    shades = SHADES if diverging else SHADES[STEPS:]
    edges = np.linspace(-limit if diverging else 0, limit, len(shades) + 1)
    for shade, low, high in zip(shades, edges, edges[1:], strict=False):
        axes.axhspan(low, high, facecolor=shade, linewidth=0, antialiased=False)
    if noise:
        axes.axhspan(-noise if diverging else 0, noise, facecolor=RULE, linewidth=0)
    axes.set(ylim=(edges[0], edges[-1]), xticks=[])
    axes.yaxis.tick_right()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _as_ranks(axes: Axes, limit: float) -> None:
    """The scale turned over, the first rank on top, marked at powers of ten."""
    for patch, shade in zip(axes.patches, SHADES[STEPS:][::-1], strict=False):
        patch.set_facecolor(shade)
    powers = range(int(limit) + 1)
    axes.set_yticks([*powers], [f"{10**power:,}" for power in powers])
    axes.set_ylim(limit, 0)
