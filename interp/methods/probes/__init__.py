"""Linear probes: what can be read from activations, beside what a probe reads from nothing.

`LinearProbe` and `LinearProbeRegressor` are scikit-learn estimators that also take tensors of any
device; `probe_sweep` solves all layers, positions, folds and control labellings together, and gives
one row per place with its controls (Hewitt & Liang 2019; Voita & Titov 2020).
"""

from .controls import random_copy
from .estimator import LinearProbe, LinearProbeRegressor
from .heldout import held_out_predictions
from .sweep import probe_sweep

__all__ = [
    "LinearProbe",
    "LinearProbeRegressor",
    "held_out_predictions",
    "probe_sweep",
    "random_copy",
]
