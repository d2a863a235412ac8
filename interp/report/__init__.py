"""Reports: a directory that opens from disk, with its data, its figures and its provenance.

Names are imported when first used, so that a command can check its destination at no cost.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .folder import check_destination
    from .index import write_index
    from .report import Report, Section

_HOMES = {"Report": ".report", "Section": ".report", "check_destination": ".folder",
          "write_index": ".index"}  # fmt: skip
__all__ = ["Report", "Section", "check_destination", "write_index"]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
