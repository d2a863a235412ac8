"""Patching both ways: what a clean value restores in the corrupted run, and a corrupted one costs.

`Study` patches any nodes of a model by both ways and puts effects beside each other as shares of
the gap, with their intervals and two controls; `strongest_heads` and `named_heads` say which heads
matter, `strongest_paths` by which paths they do.
"""

from .effects import EFFECTS, HOLES, OF_HEADS, WAYS, Effects, Study, stacked, unrelated
from .named import named_heads, strongest_heads
from .strongest_paths import PATHS, strongest_paths

__all__ = [
    "EFFECTS",
    "HOLES",
    "OF_HEADS",
    "PATHS",
    "WAYS",
    "Effects",
    "Study",
    "named_heads",
    "stacked",
    "strongest_heads",
    "strongest_paths",
    "unrelated",
]
