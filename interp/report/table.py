"""A frame as a report shows it and its CSV holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from .text import csv_cell, in_house_style, number, shorten

Schema = Mapping[str, Sequence[str | EllipsisType]]
"""The tables of a report by name, and the columns of each in their order: "stderr?" may be blank in
some rows, and a last `...` stands for columns that follow from the data."""
SHOWN_ROWS = 200
"""Rows of a table that the page shows; the CSV holds all."""


@dataclass(frozen=True, eq=False)
class Table:
    """A frame as the page shows it and the CSV holds it."""

    frame: pd.DataFrame
    caption: str
    name: str
    formats: Mapping[str, str] = field(default_factory=dict)
    rows: int = SHOWN_ROWS

    def __post_init__(self) -> None:
        object.__setattr__(self, "caption", in_house_style(self.caption))

    @property
    def columns(self) -> list[tuple[str, bool]]:
        """Heading, and whether its cells are numbers."""
        frame = self.frame
        return [(shorten(str(c)).replace("_", " "), _is_number(frame[c])) for c in frame]

    @property
    def cells(self) -> list[list[str]]:
        """The rows that are shown, as text."""
        head = self.frame.head(self.rows)
        shown = [_shown(head[name], self.formats.get(str(name))) for name in head]
        return [list(row) for row in zip(*shown, strict=True)]

    def csv(self) -> bytes:
        """All rows; text that a spreadsheet would run is disarmed, numbers are as they are."""
        frame = self.frame.copy()
        for name in frame:
            if not types.is_numeric_dtype(frame[name]):
                frame[name] = [csv_cell(_text(value)) for value in frame[name]]
        frame.columns = [csv_cell(str(name)) for name in frame.columns]
        return frame.to_csv(index=False, lineterminator="\n").encode("utf-8")


def blank_columns(schema: Schema, name: str, frame: pd.DataFrame) -> tuple[str, ...]:
    """The columns of a table that may be blank, by the schema of its report. Raises ValueError on a
    table that the schema does not name, and on one that has other columns than it names."""
    if name not in schema:
        raise ValueError(f"table {name!r}: the report declares {', '.join(schema)}")
    declared = [column for column in schema[name] if not isinstance(column, EllipsisType)]
    names = [column.removesuffix("?") for column in declared]
    there = [str(column) for column in frame]
    if there[: len(names)] != names or (len(there) > len(names) and ... not in schema[name]):
        raise ValueError(f"table {name!r} has the columns {there}; the report declares {names}")
    return tuple(column.removesuffix("?") for column in declared if column.endswith("?"))


def check_frame(frame: pd.DataFrame, missing: Sequence[str]) -> None:
    """Raises ValueError on two columns of one name, and on numbers that are none unless `missing`
    names their column."""
    if frame.columns.has_duplicates:
        raise ValueError(f"a table needs distinct columns, got {list(frame.columns)}")
    for name in frame:
        column = frame[name]
        if name in missing or not types.is_numeric_dtype(column):
            continue
        bad = int((~np.isfinite(column.to_numpy(dtype=float, na_value=np.nan))).sum())
        if bad:
            raise ValueError(
                f"column {name!r} holds {bad} values that are no finite numbers; "
                "drop those rows, or declare them with missing="
            )


def _is_number(column: Any) -> bool:
    return types.is_numeric_dtype(column) and not types.is_bool_dtype(column)


def _shown(column: Any, spec: str | None) -> list[str]:
    if types.is_numeric_dtype(column):
        values = column.astype(object)
        return [number(None if value is pd.NA else value, spec) for value in values]
    return [shorten(_text(value)) for value in column]


def _text(value: Any) -> str:
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    return "" if isinstance(value, float) and np.isnan(value) else str(value)
