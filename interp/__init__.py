"""interp: a hooked transformer and the analyses that run on it.

Names are imported when first used; `import interp` computes nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "ActivationCache": "interp.tap",
    "FactoredMatrix": "interp.model",
    "HookedTransformer": "interp.model",
    "Tokens": "interp.tokens",
    "TransformerConfig": "interp.config",
    "ablate": "interp.engine",
    "convert": "interp.loading.old.convert",
    "doctor": "interp.checkup",
    "embedding": "interp.geometry",
    "head_scores": "interp.heads",
    "info": "interp.loading.info",
    "load": "interp.loading",
    "logit_attribution": "interp.attribution",
    "logit_lens": "interp.lens",
    "nodes": "interp.selection",
    "num_params": "interp.model",
    "patch": "interp.engine",
    "save": "interp.loading",
    "sweep": "interp.engine",
    "train": "interp.training",
    "explain": "interp.engine",
}
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from .attribution import logit_attribution
    from .checkup import doctor
    from .config import TransformerConfig
    from .engine import ablate, explain, patch, sweep
    from .geometry import embedding
    from .heads import head_scores
    from .lens import logit_lens
    from .loading import load, save
    from .loading.info import info
    from .loading.old.convert import convert
    from .model import FactoredMatrix, HookedTransformer, num_params
    from .selection import nodes
    from .tap import ActivationCache
    from .tokens import Tokens
    from .training import train


def __getattr__(name: str):
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'interp' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
