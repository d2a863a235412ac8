"""What parity is measured on: rows of random ids, full or padded on either side."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tests.parity.layout import D_VOCAB

Padding = Literal["none", "left", "right"]
LENGTH = 20
LENGTHS = (LENGTH, 11, 5)


class Batch(NamedTuple):
    """Random ids, the mask of real tokens and the positions, counted over real tokens."""

    ids: Tensor
    mask: Tensor
    positions: Tensor

    def for_reference(self) -> dict[str, Tensor]:
        return {
            "input_ids": self.ids,
            "attention_mask": self.mask.long(),
            "position_ids": self.positions,
        }


def batch(padding: Padding = "none", seed: int = 0) -> Batch:
    """Three rows of random ids; pads hold random ids too, which must not matter."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, D_VOCAB, (len(LENGTHS), LENGTH), generator=generator)
    place = torch.arange(LENGTH)
    lengths = torch.tensor(LENGTHS)[:, None]
    mask = {
        "none": torch.ones_like(ids, dtype=torch.bool),
        "left": place >= LENGTH - lengths,
        "right": place < lengths,
    }[padding]
    return Batch(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0))
