"""The exact partial rerun: an edit can only change what lies downstream of it.

`stages`: where a run may be entered. `base`: one unedited run keeps what re-entering needs. `plan`:
every (node, example) whose edit changes something becomes a row, which knows where it enters and
which positions it changes; which rows run together. `cost`: what that takes. `carry`: one pass,
whose rows (`rows`) `walk` through the layers of a stack, are edited by a `tap`, read their source
(`cross`), and are read by the metric (`read`). Nothing is computed here but in the blocks.
"""

from .base import Base, base_bytes, base_run
from .carry import Rerun
from .cost import forward_multiplies, lines_that_fit, multiplies, pass_bytes
from .plan import passes, plan_rows
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
