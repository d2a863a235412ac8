"""interp: a hooked transformer and the analyses that run on it.

Names are imported when first used; `import interp` computes nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Fresh memory is most of what it costs to keep all activations of a run. torch asks Linux for it in
# large pages if it is told so before its first large tensor; 0 leaves that as it was.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_HOMES = {
    "ActivationCache": "interp.tap",
    "Direction": "interp.directions",
    "FactoredMatrix": "interp.model",
    "HookedTransformer": "interp.model",
    "LinearProbe": "interp.probes",
    "LinearProbeRegressor": "interp.probes",
    "Tokens": "interp.tokens",
    "TransformerConfig": "interp.config",
    "TunedLens": "interp.lens",
    "ablate": "interp.engine",
    "causal_check": "interp.steering",
    "causal_trace": "interp.tracing",
    "convert": "interp.loading.old.convert",
    "doctor": "interp.checkup",
    "embedding": "interp.geometry",
    "explain": "interp.engine",
    "fit_eraser": "interp.erasure",
    "fit_tuned_lens": "interp.lens",
    "harvest": "interp.harvesting",
    "head_roles": "interp.heads",
    "head_scores": "interp.heads",
    "info": "interp.loading.info",
    "load": "interp.loading",
    "logit_attribution": "interp.attribution",
    "logit_lens": "interp.lens",
    "nodes": "interp.selection",
    "num_params": "interp.model",
    "patch": "interp.engine",
    "path_patch": "interp.paths",
    "probe_sweep": "interp.probes",
    "save": "interp.loading",
    "sweep": "interp.engine",
    "train": "interp.training",
    "unknown_tokens": "interp.unknown",
}
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from .attribution import logit_attribution
    from .checkup import doctor
    from .config import TransformerConfig
    from .directions import Direction
    from .engine import ablate, explain, patch, sweep
    from .erasure import fit_eraser
    from .geometry import embedding
    from .harvesting import harvest
    from .heads import head_roles, head_scores
    from .lens import TunedLens, fit_tuned_lens, logit_lens
    from .loading import load, save
    from .loading.info import info
    from .loading.old.convert import convert
    from .model import FactoredMatrix, HookedTransformer, num_params
    from .paths import path_patch
    from .probes import LinearProbe, LinearProbeRegressor, probe_sweep
    from .selection import nodes
    from .steering import causal_check
    from .tap import ActivationCache
    from .tokens import Tokens
    from .tracing import causal_trace
    from .training import train
    from .unknown import unknown_tokens


def __getattr__(name: str):
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'interp' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
