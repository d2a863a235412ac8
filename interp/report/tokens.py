"""Text with a number for each token (a loss, a logit difference, an activation), as shaded tokens.

The shade is a class of the style sheet, so that a page without scripts has it too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from .table import Table
from .text import number, token_text

LEVELS = 8
"""Shades of a colour."""
Values = Sequence[Sequence[float | None]]


@dataclass(frozen=True, eq=False)
class TokenText:
    """Rows of tokens, each with its value; the table behind holds the same."""

    tokens: list[list[str]]
    values: list[list[float | None]]
    table: Table
    unit: str
    diverging: bool

    @property
    def name(self) -> str:
        return self.table.name

    @property
    def caption(self) -> str:
        return self.table.caption

    @property
    def largest(self) -> float:
        """The value, or its amount, that has the darkest shade."""
        return max((abs(v) for row in self.values for v in row if v is not None), default=0.0)

    @property
    def legend(self) -> str:
        """What the shades mean, in words."""
        most = number(float(self.largest))
        if self.diverging:
            return f"Blue: above 0, up to {most} {self.unit}. Orange, underlined: as far below 0."
        return f"Unshaded: 0; darkest: {most} {self.unit}."

    @property
    def rows(self) -> list[list[tuple[str, str, str]]]:
        """Per token: what is shown, its value in words ("" where it has none), its shade."""
        return [
            [
                (token_text(str(t)), self._words(v), self._shade(v))
                for t, v in zip(*row, strict=True)
            ]
            for row in zip(self.tokens, self.values, strict=True)
        ]

    def _words(self, value: float | None) -> str:
        return "" if value is None else f"{number(float(value))} {self.unit}"

    def _shade(self, value: float | None) -> str:
        if value is None or not self.largest:
            return "s0"
        level = round(LEVELS * abs(value) / self.largest)
        return f"{'m' if value < 0 else 's'}{level}" if level else "s0"


def check_tokens(
    tokens: Sequence[str] | Sequence[Sequence[str]], values: Sequence, diverging: bool
) -> tuple[list[list[str]], list[list[float | None]]]:
    """Rows of tokens and of values of the same lengths; one row may be given bare.

    Raises ValueError on lengths that differ, values that are no finite numbers (None stands for no
    value), and values below 0 where only one colour is asked for.
    """
    if len(tokens) and all(isinstance(one, str) for one in tokens):
        tokens, values = [tokens], [values]
    words = [list(row) for row in tokens]
    numbers = [[None if v is None else float(v) for v in row] for row in values]
    if not words or len(words) != len(numbers):
        raise ValueError(
            f"{len(words)} rows of tokens and {len(numbers)} of values: give one of each per text, "
            "and at least one"
        )
    for at, (row, own) in enumerate(zip(words, numbers, strict=True)):
        if len(row) != len(own):
            raise ValueError(
                f"row {at}: {len(row)} tokens and {len(own)} values; give None where a token has "
                "no value"
            )
        for position, value in enumerate(own):
            if value is not None and not math.isfinite(value):
                raise ValueError(
                    f"row {at}: the value of token {position} is {value}; give None where a token "
                    "has no value"
                )
            if value is not None and value < 0 and not diverging:
                raise ValueError(
                    f"row {at}: the value of token {position} is {value:.4g}, below 0; "
                    "diverging=True shades both ways"
                )
    return words, numbers


def tokens_table(
    tokens: list[list[str]], values: list[list[float | None]], unit: str
) -> pd.DataFrame:
    """row pos token "value (unit)", one row per token; NaN where there is no value."""
    rows = [
        (row, position, token, math.nan if value is None else value)
        for row, (words, own) in enumerate(zip(tokens, values, strict=True))
        for position, (token, value) in enumerate(zip(words, own, strict=True))
    ]
    frame = pd.DataFrame(rows, columns=["row", "pos", "token", f"value ({unit})"], dtype=object)
    return frame.astype({"row": int, "pos": int, f"value ({unit})": float})
