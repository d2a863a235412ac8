"""Maps side by side whose columns are of different kinds: tokens in one, heads in the next."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import pandas as pd

from .canvas import INK, LETTER, TITLE, WIDTH, Figure, axis_title, canvas, check, finish, name
from .described import map_words
from .grids import (
    HEIGHT,
    LINE,
    MOST,
    TALL,
    WIDE,
    axis_texts,
    draw_cells,
    draw_scale,
    grid_of,
    in_order,
    mark_ticks,
    shades_of,
)

NARROWEST = 3
"""Cells that a map is as wide as at least, so that its heading has room."""


def heatmaps(
    data: pd.DataFrame,
    *,
    panel: str,
    rows: str,
    columns: str,
    value: str,
    axis: str,
    alt: str | None = None,
    limit: float | None = None,
    noise: float | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
    titles: Mapping[str, str] | None = None,
) -> Figure:
    """Maps that share their rows, their scale and the size of their cells, one for each value of
    `panel`, which stands above it.

    `names` gives the integers below a panel their names (`{panel: tokens}`), and `titles` says what
    they are (`{panel: "token"}`); all else is as in `heatmap`. Where all panels have the same
    columns, use `heatmap` with its own `panel`.
    """
    check(data, (value,), (panel, rows, columns), once=True)
    named = names or {}
    shades = shades_of(data[value], False, None, limit, noise)
    down, maps = in_order(data[rows]), dict(tuple(data.groupby(panel, sort=False)))
    across = {label: in_order(frame[columns]) for label, frame in maps.items()}
    if len(down) * sum(map(len, across.values())) > MOST:
        raise ValueError(f"{panel!r}: the maps have more than {MOST:,} cells together; select some")
    below = {
        label: axis_texts(index, columns, {columns: named[label]} if label in named else None)
        for label, index in across.items()
    }
    left = axis_texts(down, rows, None)
    cells = [max(len(index), NARROWEST) for index in across.values()]
    tall = min(TALL, HEIGHT / len(down))
    room = 1.2 + LETTER * max(map(len, left)) + 0.1 * len(maps)
    wide = max(min(WIDE, (WIDTH - room) / sum(cells)), 0.004)
    title = axis + (", clipped" if shades.clipped else "")
    words = textwrap.fill(axis_title(title), int(WIDTH / 0.075))
    longest = max((len(text) for label in named for text in below.get(label, ())), default=0)
    height = max(tall * len(down), 0.9) + 0.8 + LETTER * longest + 0.14 * (1 + words.count("\n"))
    spare = max(WIDTH - room - wide * sum(cells), 0.01)
    with canvas(height, WIDTH) as figure:
        ratios = [*(wide * count for count in cells), 0.13, spare]
        *places, scale, blank = figure.subplots(1, len(maps) + 2, width_ratios=ratios)
        blank.set_axis_off()
        for place, (label, frame) in zip(places, maps.items(), strict=True):
            grid = grid_of(frame, rows, columns, value, down, across[label])
            draw_cells(place, shades.levels(grid), len(across[label]) <= 40 and len(down) <= 60)
            turned = label in named
            mark_ticks(place.yaxis, left if place is places[0] else [], LINE / tall, False)
            mark_ticks(place.xaxis, below[label], LINE * (1 if turned else 1.6) / wide, turned)
            place.set_xlabel(axis_title((titles or {}).get(label, columns)))
            place.set_title(name(label, 40), fontsize=8, color=INK, loc="left")
        places[0].set_ylabel(axis_title(rows))
        figure.suptitle(words, x=0.01, ha="left", fontsize=TITLE, color=INK)
        draw_scale(scale, shades)
        described = alt or map_words(data, (panel, rows, columns), value, axis, noise, {}, False)
        return finish(figure, described, data)
