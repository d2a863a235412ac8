"""One line of progress on a terminal: step k of n, what it is, how far its loop is, what is left.

    with Steps(3) as steps:
        steps.begin("removes every head")
        interp.sweep(…)  # its count goes onto the same line
        steps.begin("removes the strongest together")

The line goes to standard error and is wiped at the end. Into a file or pipe nothing of it is
written. A loop outside of any step has a line of its own.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
COUNTED = "{desc} {percentage:3.0f}%|{bar:12}| {remaining} left"
"""A line while a loop counts; what is left is of that loop."""
WIDTH = 34
"""Columns that the count takes beside the words."""
_line: ContextVar[tqdm | None] = ContextVar("line", default=None)
"""The line of the steps that are running, if any are."""


def shows_progress() -> bool:
    """Whether somebody watches standard error: it is a terminal, or the cell of a notebook."""
    stream = sys.stderr
    if stream is None or getattr(stream, "closed", False):
        return False
    return stream.isatty() or type(stream).__module__.startswith("ipykernel")


@contextmanager
def counting(total: int | None, title: str, shown: bool = True) -> Iterator[tqdm]:
    """What a loop counts on, by `update(n)`; `reset(total)` begins anew. `shown` is what the caller
    asked for: nothing is shown where nobody watches."""
    line = _line.get()
    if line is not None and shown:
        line.bar_format = COUNTED
        line.reset(total)
        try:
            yield line
        finally:
            line.bar_format = "{desc}"
            line.reset(0)
        return
    hidden = not (shown and shows_progress())
    with tqdm(total=total, desc=title, disable=hidden, leave=False) as bar:
        yield bar


def counted(items: Sequence[Item], title: str, shown: bool = True) -> Iterator[Item]:
    """The items, counted as they are taken."""
    with counting(len(items), title, shown) as bar:
        for item in items:
            yield item
            bar.update()


class Steps:
    """The steps of a long piece of work on one line; a context manager. Steps do not nest: those of
    a piece within another belong to the step that runs."""

    def __init__(self, total: int) -> None:
        self.total, self.number = total, 0
        self._inner = _line.get() is not None
        self._bar: tqdm | None = None

    def __enter__(self) -> Steps:
        if not self._inner:
            self._bar = tqdm(
                bar_format="{desc}", total=0, leave=False, disable=not shows_progress()
            )
            self._before = _line.set(self._bar)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            _line.reset(self._before)
            self._bar.close()

    def begin(self, what: str) -> None:
        """The next step, in words that follow “step 2 of 5: ”."""
        self.number += 1
        if self._bar is None or self._bar.disable:
            return
        total = max(self.total, self.number)  # a wrong count is no reason to end a long run
        text = f"step {self.number} of {total}: {what}"
        room = max(20, shutil.get_terminal_size().columns - WIDTH)
        self._bar.set_description_str(text if len(text) <= room else f"{text[: room - 1]}…")
