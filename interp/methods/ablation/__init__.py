"""Removal: what single parts of a model, pairs of them and growing sets cost when they are gone.

`ablate_parts` removes all heads, MLPs and neurons by every kind of `removal_edits`; it rests on
`second_removals`, `cumulative_ablation` and `significance`, which take any nodes and metric.
"""

from .joint import cumulative_ablation, default_counts, second_removals
from .kinds import KINDS, Kind, mean_edit, removal_edits, usual_per
from .options import ALPHA, Options, Removals
from .parts import Ablations, ablate_parts
from .significance import significance
from .together import KEPT, carriers

__all__ = [
    "ALPHA",
    "KEPT",
    "KINDS",
    "Ablations",
    "Kind",
    "Options",
    "Removals",
    "ablate_parts",
    "carriers",
    "cumulative_ablation",
    "default_counts",
    "mean_edit",
    "removal_edits",
    "second_removals",
    "significance",
    "usual_per",
]
