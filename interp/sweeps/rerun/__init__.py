"""The exact partial rerun: an edit can only change what lies downstream of it.

`stages`: where a run may be entered. `plan`: one base run keeps what re-entering needs; every
(node, example) whose edit changes something becomes a row, which knows where it enters and which
positions it changes. `carry`: the rows of one pass go through the layers together, those of an
encoder first; `memory`: what a decoder's rows read of their source. Nothing is computed here: the
blocks compute, a tap edits.
"""

from .carry import Rerun
from .plan import (
    Base,
    base_bytes,
    base_run,
    forward_multiplies,
    lines_that_fit,
    multiplies,
    pass_bytes,
    passes,
    plan_rows,
)
from .stages import Row

__all__ = [
    "Base",
    "Rerun",
    "Row",
    "base_bytes",
    "base_run",
    "forward_multiplies",
    "lines_that_fit",
    "multiplies",
    "pass_bytes",
    "passes",
    "plan_rows",
]
