"""Heatmaps: head × layer, position × layer, or any two axes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from .canvas import (
    INK,
    LETTER,
    NARROW,
    PAPER,
    RULE,
    SHADES,
    STEPS,
    TITLE,
    WIDTH,
    Figure,
    axis_title,
    canvas,
    check,
    finish,
    name,
)
from .described import map_words

TALL, WIDE, MIN_WIDE = 0.22, 0.4, 0.16
"""Inches of a cell where there is room, and the least in one column where two would give more."""
PANELS = 6
"""Maps side by side."""
HEIGHT = 10.0
"""Inches that all rows may take together."""
LINE = 0.13
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
    alt: str | None = None,
    panel: str | None = None,
    diverging: bool | None = None,
    ranks: bool = False,
    limit: float | None = None,
    noise: float | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
    titles: Mapping[str, str] | None = None,
) -> Figure:
    """A cell for each row of `data`; a place without one stays empty.

    Diverging: zero is neutral, blue above, orange below, both ends equally far. Else the shade
    grows from zero, as shares ask for. By default a map is diverging where values lie below zero,
    further than `noise`. With `ranks` (1 or more, 1 is the top) the first rank is darkest and
    shades fade with the logarithm of the rank. `limit` is the value of the last shade, by default
    the largest there is; what lies beyond has the last shade too. What lies no further from zero
    than `noise`, as the control does, is grey, and so is that part of the scale.

    `panel` is a column whose values (at most six) get a map each, side by side, of one size and
    one scale. Numbers are in order, other values as they come. `names` gives the integers of an
    axis their names (`{"pos": tokens}`), `titles` the axes theirs. `axis` says above the picture
    what the shades measure, with its unit.
    """
    keys = (rows, columns) if panel is None else (panel, rows, columns)
    check(data, (value,), keys, once=True)
    shades = shades_of(data[value], ranks, diverging, limit, noise)
    down, across = (in_order(data[one]) for one in (rows, columns))
    grids = {
        label: grid_of(of_panel, rows, columns, value, down, across)
        for label, of_panel in ([("", data)] if panel is None else data.groupby(panel, sort=False))
    }
    if len(grids) > PANELS:
        raise ValueError(f"{panel!r} has {len(grids)} values; {PANELS} maps fit side by side")
    if len(down) * len(across) > MOST:
        raise ValueError(f"{len(down)} × {len(across)} cells are more than {MOST:,}; select some")
    texts = [axis_texts(one, key, names) for one, key in ((down, rows), (across, columns))]
    turned = columns in (names or {})
    layout = _layout(texts, turned, len(grids), axis + (", clipped" if shades.clipped else ""))
    with canvas(layout.height, layout.width) as figure:
        *maps, scale, spare = figure.subplots(
            1, len(grids) + 2, width_ratios=[*[layout.map] * len(grids), 0.13, layout.spare]
        )
        spare.set_axis_off()
        gaps = len(across) <= 40 and len(down) <= 60
        titles = {rows: rows, columns: columns, **(titles or {})}
        for axes, (label, grid) in zip(maps, grids.items(), strict=True):
            draw_cells(axes, shades.levels(grid), gaps)
            mark_ticks(axes.yaxis, texts[0] if axes is maps[0] else [], LINE / layout.tall, False)
            mark_ticks(axes.xaxis, texts[1], LINE * (1 if turned else 1.6) / layout.wide, turned)
            axes.set_xlabel(axis_title(titles[columns]))
            if panel is not None:
                axes.set_title(name(label, 40), fontsize=8, color=INK, loc="left")
        maps[0].set_ylabel(axis_title(titles[rows]))
        figure.suptitle(layout.title, x=0.01, ha="left", fontsize=TITLE, color=INK)
        draw_scale(scale, shades)
        words = alt or map_words(data, keys, value, axis, noise, names or {}, ranks)
        return finish(figure, words, data)


class Shades(NamedTuple):
    """How values become shades."""

    limit: float
    """The value, or logarithm of a rank, of the last shade."""
    diverging: bool
    ranks: bool
    noise: float | None
    clipped: bool

    def levels(self, grid: np.ndarray) -> np.ndarray:
        """The shade of each cell; −1 where there is none."""
        share = 1 - np.log10(grid) / self.limit if self.ranks else grid / self.limit
        level, there = np.full(share.shape, -1), ~np.isnan(share)
        lowest = -1 if self.diverging else 0
        level[there] = np.rint(share[there].clip(lowest, 1) * STEPS) + STEPS
        if self.noise is not None:
            level[there & (np.abs(grid) <= self.noise)] = GREY_LEVEL
        return level


def shades_of(
    values: pd.Series,
    ranks: bool,
    diverging: bool | None,
    limit: float | None,
    noise: float | None,
) -> Shades:
    """Raises ValueError on a noise that is no size, on ranks below 1, and on values below zero
    where there is to be one side only."""
    numbers = values.to_numpy(float)
    if noise is not None and not 0 <= noise < math.inf:
        raise ValueError(f"noise={noise}: expected a size, 0 or more")
    if ranks:
        if numbers.min() < 1:
            raise ValueError(f"{values.name!r} has values below 1, which are no ranks")
        numbers, diverging = np.log10(numbers), False
    negative = bool(numbers.min() < -(noise or 0.0))
    if diverging is False and negative:
        raise ValueError(f"{values.name!r} has values below zero; draw it with diverging=True")
    largest = float(np.abs(numbers).max())
    last = max(limit or largest or 1.0, noise or 0.0)
    return Shades(last, negative if diverging is None else diverging, ranks, noise, largest > last)


class Layout(NamedTuple):
    """Sizes of a map, in inches."""

    width: float
    height: float
    map: float
    wide: float
    tall: float
    spare: float
    """What is left of the column beside the maps."""
    title: str


def _layout(texts: list[list[str]], turned: bool, panels: int, title: str) -> Layout:
    """The narrow column where the maps fit into it, else the wide one."""
    down, across = texts
    tall = min(TALL, HEIGHT / len(down))
    room = 0.45 + LETTER * max(map(len, down)) + 0.75
    for column in (NARROW, WIDTH):
        wide = min(WIDE, (column - room) / len(across) / panels - 0.1 / len(across))
        if wide >= min(WIDE, MIN_WIDE):
            break
    wide = max(wide, 0.004)
    size = max(wide * len(across), 0.6)
    words = textwrap.fill(axis_title(title), int(column / 0.075))
    # Names below the columns are turned, and need the height of the longest.
    below = 0.5 + LETTER * max(map(len, across)) * turned + 0.2 * (panels > 1)
    height = max(tall * len(down), 0.9) + below + 0.1 + 0.14 * (1 + words.count("\n"))
    spare = max(column - room - panels * (size + 0.1), 0.01)
    return Layout(column, height, size, wide, tall, spare, words)


def grid_of(
    data: pd.DataFrame, rows: str, columns: str, value: str, down: pd.Index, across: pd.Index
) -> np.ndarray:
    """The values as they stand in a map; NaN where there is none."""
    grid = np.full((len(down), len(across)), np.nan)
    grid[down.get_indexer(data[rows]), across.get_indexer(data[columns])] = data[value]
    return grid


def mark_ticks(axis: Axis, texts: list[str], lines: float, turned: bool) -> None:
    """The names along an axis, as many as have room."""
    step = math.ceil(lines)
    axis.set_ticks(range(0, len(texts), step), texts[::step])
    axis.set_tick_params(length=0, labelrotation=90 if turned else 0, labelcolor=INK)


def in_order(values: pd.Series) -> pd.Index:
    """The distinct values along an axis: numbers in order, all else as it comes."""
    found = pd.Index(values.unique(), dtype=None if values.dtype != object else object)
    return found.sort_values() if pd.api.types.is_numeric_dtype(values) else found


def axis_texts(values: pd.Index, key: str, names: Mapping[str, Sequence[str]] | None) -> list[str]:
    """What stands along an axis: the names of its integers where there are any."""
    own = (names or {}).get(key)
    if own is None:
        return [name(one) for one in values]
    if values.max() >= len(own):
        raise ValueError(f"{key} {values.max()} has no name: there are {len(own)}")
    return [name(own[one]) for one in values]


def draw_cells(axes: Axes, level: np.ndarray, gaps: bool) -> None:
    """One path per shade, of runs of equal cells: a picture of 10,000 cells stays small."""
    n_rows, n_columns = level.shape
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


def draw_scale(axes: Axes, shades: Shades) -> None:
    """The shades and what they stand for; of ranks the first on top, marked at powers of ten."""
    limit, noise = shades.limit, shades.noise
    colours = SHADES if shades.diverging else SHADES[STEPS:]
    edges = np.linspace(-limit if shades.diverging else 0, limit, len(colours) + 1)
    for shade, low, high in zip(
        colours[::-1] if shades.ranks else colours, edges, edges[1:], strict=False
    ):
        axes.axhspan(low, high, facecolor=shade, linewidth=0, antialiased=False)
    if noise:
        axes.axhspan(-noise if shades.diverging else 0, noise, facecolor=RULE, linewidth=0)
    axes.set(ylim=(edges[0], edges[-1]), xticks=[])
    if shades.ranks:
        powers = range(int(limit) + 1)
        axes.set_yticks([*powers], [f"{10**power:,}" for power in powers])
        axes.set_ylim(limit, 0)
    axes.yaxis.tick_right()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
