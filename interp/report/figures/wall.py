"""The wall: every head of a model (or any other grid), coloured by the group that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from .canvas import GROUPS, INK, PAPER, RULE, WIDTH, Figure, axis_title, canvas, check, finish, name
from .described import wall_words
from .grids import in_order

WIDEST, TALLEST = 0.66, 0.36
"""Inches of a cell where there is room."""
HEIGHT = 7.0
"""Inches that all rows may take together."""
LETTER = 0.6
"""Width of an average letter, in heights of the type."""
TYPE = 7.0
"""Points of the words in a cell."""


def wall(
    data: pd.DataFrame,
    *,
    rows: str,
    columns: str,
    group: str,
    alt: str | None = None,
    order: Sequence[str] = (),
    quiet: str | None = None,
) -> Figure:
    """A cell for each row of `data`, in the colour of its group, with the group's name in it where
    there is room; the legend counts each group.

    `order` is that of the legend, and a group's place in it gives the group its colour, the same
    in every picture; groups that are not in it follow as they come. `quiet` is the group that means
    none: it is grey. Raises ValueError past ten groups.
    """
    check(data, (), (rows, columns, group))
    check(data, (), (rows, columns), once=True)
    counts = data[group].astype(str).value_counts(sort=False)
    ordered = [one for one in dict.fromkeys([*order, *counts.index]) if one != quiet]
    if len(ordered) > len(GROUPS):
        raise ValueError(
            f"{group!r} has {len(ordered)} groups, and colours tell {len(GROUPS)} apart; join some"
        )
    colours = dict(zip(ordered, GROUPS, strict=False)) | ({quiet: (RULE, INK)} if quiet else {})
    down, across = in_order(data[rows]), in_order(data[columns])
    wide = min(WIDEST, (WIDTH - 0.8) / len(across))
    tall = min(TALLEST, HEIGHT / len(down))
    legend = [one for one in [*ordered, quiet] if one in counts.index]
    lines = -(-len(legend) // 3)
    natural = max(wide * len(across) + 0.8, 4.6)
    with canvas(tall * len(down) + 0.55 + 0.2 * lines, natural) as drawn:
        spare = max(WIDTH - natural, 0.01)
        axes, beside = drawn.subplots(1, 2, width_ratios=[natural, spare])
        beside.set_axis_off()
        cells = zip(
            down.get_indexer(data[rows]), across.get_indexer(data[columns]),
            data[group].astype(str), strict=True,
        )  # fmt: skip
        for y, x, kind in cells:
            paper, ink = colours[kind]
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=paper, edgecolor=PAPER))
            words = "" if kind == quiet else _fitting(kind, wide, tall)
            axes.text(x, y, words, color=ink, fontsize=TYPE, ha="center", va="center")
        _dress(axes, [name(one) for one in down], [name(one) for one in across], tall, wide)
        axes.set(xlabel=axis_title(columns), ylabel=axis_title(rows))
        patches = [Patch(facecolor=colours[one][0], edgecolor="none") for one in legend]
        labels = [f"{name(one)} ({counts[one]})" for one in legend]
        drawn.legend(
            patches, labels, loc="outside upper left", ncols=3, frameon=False, fontsize=8,
            handlelength=1, handleheight=1,
        )  # fmt: skip
        words = alt or wall_words(counts, rows, columns)
        return finish(drawn, words, data)


def _fitting(words: str, wide: float, tall: float) -> str:
    """The words, a line each, where they fit into a cell of so many inches; else nothing."""
    lines = [name(word) for word in words.split()]
    room, height = 72 * wide - 2, 72 * tall - 2
    fits = max(map(len, lines), default=0) * LETTER * TYPE <= room
    return "\n".join(lines) if fits and len(lines) * 1.2 * TYPE <= height else ""


def _dress(axes: Axes, down: list[str], across: list[str], tall: float, wide: float) -> None:
    axes.set(xlim=(-0.5, len(across) - 0.5), ylim=(len(down) - 0.5, -0.5))
    for axis, labels, cell in ((axes.yaxis, down, tall), (axes.xaxis, across, wide)):
        step = max(1, -int(-0.2 // cell))
        axis.set_ticks(range(0, len(labels), step), labels[::step])
        axis.set_tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)
