"""What is known of a bridged architecture."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class BridgedConfig:
    """What is known of an architecture that only TransformerLens knows; sizes count elements."""

    architecture: str
    """The class of the Hugging Face model."""
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    """0: no layer has neurons that can be seen."""
    d_vocab: int
    n_ctx: int
    head: Literal["unembed", "mlm"]
    causal: bool
    """Measured: the last token changes no earlier output."""

    encoder: ClassVar[None] = None
    inputs: ClassVar[str] = "tokens"
    n_experts: ClassVar[int] = 0
    rotary_scalings: ClassVar[tuple] = ()

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
