"""What all figures share: widths, colours and their dark counterparts, type, checks, the files.

A figure is 88 or 180 mm wide, as the columns of a journal are, with letters of 7 points or more; a
page shows it in the same size.

Blue and orange survive every common colour blindness; lightness alone orders the shades of a map.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import FontProperties, findfont, get_font

from interp.core.visible import escape, visible

from ..text import in_house_style

PAPER, INK, QUIET, RULE = "#ffffff", "#1f2328", "#5a6270", "#d5d9df"
BLUE, ORANGE, GREEN, PLUM, GREY = "#2f6db5", "#d9822b", "#1c8573", "#8b4a8f", "#7b828d"
LINES = {BLUE: "-", ORANGE: "--", GREEN: "-.", PLUM: ":", GREY: (0, (6, 1.5, 1, 1.5, 1, 1.5))}
"""The colours of up to five groups, and what tells them apart without colour."""
PALE = {
    BLUE: "#a9c7ea",
    ORANGE: "#f2cfa2",
    GREEN: "#a5d8cd",
    PLUM: "#dcb9de",
    GREY: "#c3c8cf",
}
"""A pale sister of each colour, for a sixth to a tenth group."""
STEPS = 24
"""Shades on either side of a map's middle."""


def _ramp(*anchors: str) -> list[str]:
    """STEPS + 1 colours along the anchors."""
    stops = np.linspace(0, 1, len(anchors))
    mixed = [np.interp(np.linspace(0, 1, STEPS + 1), stops, one)
             for one in zip(*map(to_rgb, anchors), strict=True)]  # fmt: skip
    return [to_hex(rgb) for rgb in zip(*mixed, strict=True)]


def _both_ways(middle: str, below: Sequence[str], above: Sequence[str]) -> list[str]:
    return [*_ramp(middle, *below)[:0:-1], *_ramp(middle, *above)]


SHADES = _both_ways("#f1f2f4", ("#dd8a36", "#6b3204"), ("#4a83c4", "#0f3363"))
"""From the lowest through the neutral middle, SHADES[STEPS], to the highest."""
DARK_SHADES = _both_ways("#262b32", ("#b3672a", "#ffd9b0"), ("#3f77b8", "#c3ddff"))
"""On dark paper the middle is dark and the ends are light."""
DARK = {
    PAPER: "#15181c",
    INK: "#e4e7eb",
    QUIET: "#a0a8b4",
    RULE: "#363c45",
    BLUE: "#3d79c2",
    ORANGE: "#b9692a",
    GREEN: "#3aa48f",
    PLUM: "#b877bb",
    GREY: "#8d95a1",
    PALE[BLUE]: "#26456b",
    PALE[ORANGE]: "#633c17",
    PALE[GREEN]: "#1d544a",
    PALE[PLUM]: "#5b3a5d",
    PALE[GREY]: "#4a515b",
    **dict(zip(SHADES, DARK_SHADES, strict=True)),
}
GROUPS = [*((colour, PAPER) for colour in LINES), *((pale, INK) for pale in PALE.values())]
"""The colours of up to ten groups, each with that of words on it."""
FONT = "DejaVu Sans"
STYLE: Any = {
    "svg.hashsalt": "interp",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.family": "sans-serif",
    "font.sans-serif": [FONT],
    "font.size": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 8,
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
NARROW, WIDTH = 88 / 25.4, 180 / 25.4
"""Inches of one column and of two, at 96 pixels each on a page."""
PAGE_DPI, PRINT_DPI = 200, 300
TITLE = 8.5
"""Points of what stands above a figure."""
LETTER = 0.066
"""Inches of an average letter on an axis."""
LABEL = 24
"""Characters of a name on an axis."""
LONG = 120
"""Characters of what stands beside an axis."""


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
    drawn: Canvas

    @cached_property
    def pdf(self) -> bytes:
        """The picture for print, with its letters as text."""
        facts = {"CreationDate": None, "Creator": "interp", "Producer": "matplotlib"}
        return _rendered(self.drawn, "pdf", metadata=facts)

    @cached_property
    def print_png(self) -> bytes:
        """The picture in 300 dots per inch."""
        return _rendered(self.drawn, "png", dpi=PRINT_DPI, metadata={"Software": "interp"})


@contextmanager
def canvas(height: float, width: float = WIDTH) -> Iterator[Canvas]:
    """An empty figure of so many inches, in our style while it is drawn; it is as wide as the
    column that holds `width`."""
    column = NARROW if width <= NARROW else WIDTH
    with style.context(["default", STYLE]):  # the user's theme, too, stays out of our figures
        yield Canvas(figsize=(column, height), layout="constrained")


def finish(drawn: Canvas, alt: str, data: pd.DataFrame) -> Figure:
    """The files of a figure; same drawing, same bytes."""
    drawn.draw_without_rendering()
    drawn.set_layout_engine("none")  # it is laid out: no file does that again
    svg = _rendered(drawn, "svg", metadata={"Date": None, "Creator": "interp"})
    png = _rendered(drawn, "png", dpi=PAGE_DPI, metadata={"Software": "interp"})
    width, height = (round(96 * inches) for inches in drawn.get_size_inches())
    return Figure(_adaptive(svg.decode()), png, alt, data, width, height, drawn)


def _rendered(drawn: Canvas, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    with style.context(["default", STYLE]):
        drawn.savefig(file, format=kind, **options)
    return file.getvalue()


def check(
    data: pd.DataFrame, numbers: Sequence[str], names: Sequence[str] = (), once: bool = False
) -> None:
    """Raises ValueError unless `data` can be drawn; with `once`, `names` are a key."""
    missing = [one for one in (*numbers, *names) if one not in data.columns]
    if missing:
        raise ValueError(f"no column {missing[0]!r} to draw; there are: {list(data.columns)}")
    if data.empty:
        raise ValueError("there is nothing to draw: the frame has no rows")
    for one in numbers:
        values = pd.to_numeric(data[one], errors="coerce").to_numpy(float, na_value=np.nan)
        if not np.isfinite(values).all():
            raise ValueError(f"column {one!r} holds values that are no finite numbers; drop them")
    if once and data.duplicated(list(names)).any():
        twice = data[data.duplicated(list(names))]
        told = ", ".join(f"{one} {visible(str(twice[one].iloc[0]))}" for one in names)
        raise ValueError(f"{told} is there more than once; average or select before drawing")


def groups_of(data: pd.DataFrame, group: str | None) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each group, in order of appearance; raises ValueError past five."""
    if group is None:
        return [("", data)]
    found = [(str(name), rows) for name, rows in data.groupby(group, sort=False)]
    if len(found) > len(LINES):
        raise ValueError(
            f"{group!r} has {len(found)} groups, and colours tell {len(LINES)} apart; "
            "select some, or draw several figures"
        )
    return found


def name(text: object, most: int = LABEL) -> str:
    """A name as the font can draw it: bounded, and what it has no sign for as escapes."""
    known, words = _signs(), visible(str(text)[: most + 1])
    if words.isspace():
        words = "␣" * len(words)
    drawn = "".join(c if ord(c) in known else escape(c) for c in words)
    return drawn if len(drawn) <= most else f"{drawn[:most]}…"


def axis_title(text: object) -> str:
    """What stands beside an axis or above a picture, as the font can draw it."""
    return name(in_house_style(str(text)), LONG)


def quiet_axes(axes: Axes, grid: str = "both") -> None:
    """Thin rules behind the data, no tick marks."""
    axes.tick_params(axis="both", length=0)
    axes.grid(axis=grid, color=RULE, linewidth=0.6)  # pyright: ignore[reportArgumentType]
    axes.set_axisbelow(True)


@cache
def _signs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=[FONT]))).get_charmap())


def _adaptive(svg: str) -> bytes:
    """The SVG with a style sheet that swaps its colours for their dark ones."""
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark} !important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
        if f"{what}: {light}" in svg
    )
    sheet = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    return re.sub(r"(<svg\b[^>]*>)", lambda match: match[1] + sheet, svg, count=1).encode()
