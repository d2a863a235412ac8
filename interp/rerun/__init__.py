"""The exact partial rerun: an edit can only change what lies downstream of it.

`plan`: one base run keeps what re-entering needs; every (node, example) whose edit changes
something becomes a row, which knows where it enters and which positions it changes. `carry`: the
rows of one pass go through the layers together. Nothing is computed here: the blocks compute, a tap
edits.
"""

from .carry import Rerun
from .plan import (
    Base,
    Row,
    base_bytes,
    base_run,
    forward_multiplies,
    lines_that_fit,
    multiplies,
    pass_bytes,
    passes,
    plan_rows,
)

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
