"""The hooked transformer and its parts."""

from __future__ import annotations

from typing import Literal

import pandas as pd
import torch

from interp.core.config import TransformerConfig

from .factored import FactoredMatrix
from .generate import Generation, Step
from .positions import GrowingPrefix, Layout, Memory, Prefix
from .transformer import HookedTransformer
from .weights import count_params

__all__ = [
    "FactoredMatrix",
    "Generation",
    "GrowingPrefix",
    "HookedTransformer",
    "Layout",
    "Memory",
    "Prefix",
    "Step",
    "num_params",
]


def num_params(
    cfg: TransformerConfig, by: Literal["component", "layer"] | None = None
) -> pd.Series | int:
    """`model.num_params(by)` of an architecture, without allocating any of it."""
    with torch.device("meta"):
        return count_params(HookedTransformer(cfg), by)
