"""Planted models: hand-written weights whose circuit is known by construction.

Each builder returns a `Planted`: an ordinary `HookedTransformer`, the truth about it, and what a
test of a method needs: seeded clean and corrupted prompts, labelled inputs, or analogies. There is
no LayerNorm (norm="none"), so every step can be followed on paper, and `rotated` can turn the whole
residual stream without changing an output.

    from interp.zoo import planted
    known = planted.induction(n_distractors=3, seed=0)
    known.truth.heads, known.truth.note
    prompts = known.prompts(200, seed=0)     # clean, corrupted, answer, wrong

`fixtures` are smaller still: what a method must say of their nodes is a number on paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from . import fixtures
from .base import Attends, Labelled, Planted, Prompts, Truth
from .controls import permuted_control, random_control, rotated
from .copying import grouped_induction, induction, rotary_previous_token
from .features import lookup
from .movers import backup_movers, copy_suppression
from .words import shuffled_control, vocabulary

BUILDERS: Mapping[str, Callable[..., Planted]] = MappingProxyType(
    {
        "induction": induction,
        "backup_movers": backup_movers,
        "copy_suppression": copy_suppression,
        "grouped_induction": grouped_induction,
        "rotary_previous_token": rotary_previous_token,
        "lookup": lookup,
        "vocabulary": vocabulary,
    }
)
"""Every planted model by name; all take seed= and dtype=."""

__all__ = [
    "BUILDERS",
    "Attends",
    "Labelled",
    "Planted",
    "Prompts",
    "Truth",
    "backup_movers",
    "copy_suppression",
    "fixtures",
    "grouped_induction",
    "induction",
    "lookup",
    "permuted_control",
    "random_control",
    "rotary_previous_token",
    "rotated",
    "shuffled_control",
    "vocabulary",
]
