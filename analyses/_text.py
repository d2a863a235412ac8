"""Text that an analysis reads: the user's file in windows, or the prompts of its task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from analyses._unknown import check_unknown
from interp.core.files import read_beginning
from interp.core.tokens import Tokens
from interp.data.rows import tokens_of_rows
from interp.report import Report

MAX_BYTES = 16 << 20
"""What is read of a file; a longer one is read in part, and the report says so."""
LEAST = 2
"""Tokens of a window: one has nothing to predict."""


class TextConfig(Protocol):
    """What a config says about a text."""

    @property
    def text(self) -> Path | None: ...
    @property
    def width(self) -> int: ...
    @property
    def windows(self) -> int: ...
    @property
    def bos(self) -> bool | None: ...
    @property
    def allow_unknown(self) -> bool: ...


class Text(NamedTuple):
    """Windows of a text file."""

    tokens: Tokens
    left: str | None
    """What of it was left out."""
    lines: list[str]
    """The lines that the windows are of."""


def text_windows(report: Report, model: Any, config: TextConfig) -> Tokens:
    """The windows of config.text; the report says what was left out, and how much is unknown.

    Raises ValueError as `read_windows` and `check_unknown` do.
    """
    assert config.text is not None
    read = _read(model, config.text, config.width, config.windows, config.bos)
    if read.left is not None:
        report.skip(read.left)
    name = f"the text {config.text.name}"
    check_unknown(report, model, read.lines, name, allowed=config.allow_unknown)
    return read.tokens


def read_windows(
    model: Any, path: Path, *, width: int, windows: int, bos: bool | None = None
) -> tuple[Tokens, str | None]:
    """The first `windows` windows of at most `width` tokens of a text file, padded on the right;
    and what was left out, if anything was.

    Lines are texts of their own; a window never spans two. `width` counts the beginning-of-sequence
    token and is cut to the model's context. Raises ValueError on a file that `interp.files` refuses
    or that holds no line of two tokens, and on a model without a tokenizer.
    """
    return _read(model, path, width, windows, bos)[:2]


def _read(model: Any, path: Path, width: int, windows: int, bos: bool | None) -> Text:
    if width < LEAST or windows < 1:
        raise ValueError(f"windows={windows} of width={width}: expected at least 1 of {LEAST}")
    if model.tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer, so it cannot read {path}")
    text, whole = read_beginning(path, MAX_BYTES)
    lines = [line for line in text.split("\n") if line.strip()]
    rows, used, left = _windows(model, lines, min(width, model.cfg.n_ctx), windows, bos)
    if not rows:
        raise ValueError(f"{path}: no line has {LEAST} tokens or more")
    part = f"the first {windows} windows" if left else f"the first {MAX_BYTES >> 20} MB"
    told = f"Of {path.name} {part} were read." if left or not whole else None
    return Text(tokens_of_rows(model, rows), told, lines[:used])


def _windows(
    model: Any, lines: Sequence[str], width: int, windows: int, bos: bool | None
) -> tuple[list[list[int]], int, bool]:
    """Rows of ids, how many lines they are of, and whether text is left."""
    tokenizer, rows = model.tokenizer, []
    for number, line in enumerate(lines, 1):
        bare, ids = tokenizer.encode(line, bos=False), tokenizer.encode(line, bos=bos)
        # What the tokenizer puts around a text ([CLS] … [SEP]) stands around every window.
        own = len(ids) - len(bare)
        at = next((i for i in range(own + 1) if ids[i : i + len(bare)] == bare), 0)
        lead, tail = ids[:at], ids[at + len(bare) :]
        step = max(1, width - own)
        for at in range(0, len(bare), step):
            row = [*lead, *bare[at : at + step], *tail]
            if len(row) < LEAST:
                continue
            if len(rows) == windows:
                return rows, number, True
            rows.append(row)
    return rows, len(lines), False
