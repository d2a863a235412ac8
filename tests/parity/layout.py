"""How a model of Hugging Face is compared with ours: what differs from family to family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Side = Literal["in", "out"]

D_VOCAB = 97
N_CTX = 48


class Layout(NamedTuple):
    """Which module holds what a site holds, on its input or output; `{}` is the layer."""

    model: str
    sites: dict[str, tuple[str, Side]]
    attention: tuple[str, str] = ("sdpa", "eager")
    """The implementation to run as it is, and with float32 islands lifted."""
    position_offset: int | None = 0
    """Added to position ids; None: the model takes none."""


@dataclass(frozen=True)
class Family:
    """One model to compare: its layout, the config class and what differs from its defaults."""

    layout: Layout
    config: str
    values: dict[str, Any] = field(default_factory=dict)
    exact: bool = False
    """The library rounds nothing to float32."""
