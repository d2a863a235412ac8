"""Linear probes: what can be read from activations, beside what a probe reads from nothing.

`LinearProbe` and `LinearProbeRegressor` are scikit-learn estimators that also take tensors of any
device; `probe_sweep` solves all layers, positions, folds and control labellings together, and gives
one row per place with its controls (Hewitt & Liang 2019; Voita & Titov 2020). `text_examples`
reads labelled texts, and `compare_probes` sets the best place of a model beside what needs none.
"""

from .compare import Compared, compare_probes
from .controls import random_copy
from .estimator import LinearProbe, LinearProbeRegressor
from .heldout import held_out_predictions
from .sweep import probe_sweep
from .texts import TextExamples, text_examples

__all__ = [
    "Compared",
    "LinearProbe",
    "LinearProbeRegressor",
    "TextExamples",
    "compare_probes",
    "held_out_predictions",
    "probe_sweep",
    "random_copy",
    "text_examples",
]
