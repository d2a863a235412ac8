"""The hooked transformer and its parts."""

from __future__ import annotations

from typing import Literal

import pandas as pd
import torch

from interp.core.config import TransformerConfig

from .factored import FactoredMatrix
from .generate import Generation, Step
from .hooked import HookedTransformer
from .layout import Layout, Places, SourceLayout
from .prefix import Encoded, GrowingPrefix, Prefix
from .weights import count_params

__all__ = [
    "Encoded",
    "FactoredMatrix",
    "Generation",
    "GrowingPrefix",
    "HookedTransformer",
    "Layout",
    "Places",
    "Prefix",
    "SourceLayout",
    "Step",
    "num_params",
]


def num_params(
    cfg: TransformerConfig, by: Literal["component", "layer"] | None = None
) -> pd.Series | int:
    """`model.num_params(by)` of an architecture, without allocating any of it."""
    with torch.device("meta"):
        return count_params(HookedTransformer(cfg), by)
