"""What a picture says to who cannot see it, made from the numbers that were drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from interp.core.visible import one_line

NAMED = 3
"""Cells, bars or points that are named, from the largest."""
MOST_POINTS = 12
"""Points whose places are listed one by one."""


def number(value: float) -> str:
    """Three digits, with a true minus sign."""
    return f"{value:.3g}".replace("-", "−")


def map_words(
    data: pd.DataFrame,
    keys: Sequence[str],
    value: str,
    axis: str,
    noise: float | None,
    names: Mapping[str, Sequence[str]],
    ranks: bool,
) -> str:
    """Of a map: its range, its largest cells (of ranks the first), and how many are within the
    noise."""
    data = data.reset_index(drop=True)
    numbers = data[value].astype(float)
    largest = numbers.abs().sort_values(ascending=ranks, kind="stable").index[:NAMED]
    cells = (
        f"{number(numbers[at])} at "
        + ", ".join(f"{key} {_named(data.at[at, key], names.get(key))}" for key in keys)
        for at in largest
    )
    quiet = int((numbers.abs() <= noise).sum()) if noise is not None else 0
    return _sentences(
        f"Map of {axis} over {' and '.join(keys)}: {len(data):,} cells from {_range(numbers)}",
        f"{'First' if ranks else 'Largest in size'}: {'; '.join(cells)}",
        f"{quiet:,} lie within the noise of ±{number(noise)}" if noise is not None else "",
    )


def curve_words(
    data: pd.DataFrame, x: str, value: str, x_axis: str, axis: str, group: str | None
) -> str:
    """Of curves: where each begins, ends, and is highest."""
    lines = []
    for label, rows in [("", data)] if group is None else data.groupby(group, sort=False):
        ordered = rows.sort_values(x, kind="stable").reset_index(drop=True)
        first, last = (ordered.iloc[at] for at in (0, -1))
        top = ordered.loc[ordered[value].astype(float).idxmax()]
        start, end, best = (_spot(row, x, value) for row in (first, last, top))
        lines.append(f"{label}: " * bool(str(label)) + f"from {start} to {end}, highest {best}")
    return _sentences(f"Curves of {axis} over {x_axis}", *lines)


def ranked_words(
    data: pd.DataFrame, label: str, value: str, axis: str, group: str | None, outside: int | None
) -> str:
    """Of bars or places: how many, the highest, the lowest, and how many lie outside a band."""
    data = data.reset_index(drop=True)
    numbers = data[value].astype(float)
    order = numbers.sort_values(ascending=False, kind="stable").index

    def listed(rows: Iterable) -> str:
        return "; ".join(
            f"{data.at[at, label]}"
            + (f" ({data.at[at, group]})" if group and len(set(data[group])) > 1 else "")
            + f" {number(numbers[at])}"
            for at in rows
        )

    lowest = order[: -NAMED - 1 : -1] if len(order) > 2 * NAMED else order[NAMED:][::-1]
    return _sentences(
        f"{len(data):,} values of {axis}, from {_range(numbers)}",
        f"Highest: {listed(order[:NAMED])}",
        f"Lowest: {listed(lowest)}" if len(lowest) else "",
        f"{outside} lie outside the band of the control" if outside is not None else "",
    )


def plane_words(
    data: pd.DataFrame, label: str | None, x: str, y: str, x_axis: str, y_axis: str
) -> str:
    """Of points: their ranges, and the place of each where they are few and have names."""
    places = ""
    if label is not None and len(data) <= MOST_POINTS:
        places = "; ".join(
            f"{row[label]} at {number(row[x])}, {number(row[y])}" for _, row in data.iterrows()
        )
    return _sentences(
        f"{len(data):,} points: {x_axis} from {_range(data[x].astype(float))}, "
        f"{y_axis} from {_range(data[y].astype(float))}",
        places,
    )


def wall_words(counts: pd.Series, rows: str, columns: str) -> str:
    """Of a wall: how many cells each group has."""
    groups = ", ".join(f"{label} {count:,}" for label, count in counts.items())
    return _sentences(f"Wall of {counts.sum():,} cells by {rows} and {columns}: {groups}")


def _sentences(*texts: str) -> str:
    return one_line(" ".join(f"{text.rstrip('.')}." for text in texts if text))


def _range(numbers: pd.Series) -> str:
    return f"{number(numbers.min())} to {number(numbers.max())}"


def _spot(row: pd.Series, x: str, value: str) -> str:
    at = row[x]
    return f"{number(row[value])} at {number(at) if isinstance(at, float) else at}"


def _named(value: object, names: Sequence[str] | None) -> str:
    return str(value) if names is None else f"{value} ({str(names[int(str(value))]).strip()})"
