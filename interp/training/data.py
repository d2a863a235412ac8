"""What a model is trained on: batches of ids and of what should be predicted at each.

A batch is a function of its number alone, so that a run which goes on after a stop sees what an
uninterrupted one would have seen, and the number of the step is all that has to be kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.core.tokenizer import Tokenizer
from interp.core.unknown import warn_of_unknown

Split = Literal["train", "val"]
SPLITS = {"train": 0, "val": 1}
LOOKED_AT = 1 << 20
"""Characters of a text whose unknown tokens are counted before training."""
IGNORED = -100
"""The target of a position that is not predicted."""


class Batch(NamedTuple):
    """What goes in, and what should come out: IGNORED where nothing is asked."""

    ids: Int[Tensor, "batch pos"]
    targets: Int[Tensor, "batch pos"]


@runtime_checkable
class Data(Protocol):
    """Batches without end."""

    tokenizer: Tokenizer | None
    fingerprint: str
    """Tells data apart: a run resumes only on the data that it began with."""

    def batch(self, split: Split, number: int, size: int) -> Batch:
        """Batch `number` of a split; the same for the same number."""
        ...


class TextData:
    """Crops of one long text, at random starts; the last part of it is for validation."""

    def __init__(
        self,
        text: str,
        tokenizer: Tokenizer,
        n_ctx: int,
        *,
        val_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction={val_fraction}: expected a share between 0 and 1")
        self.tokenizer, self.n_ctx, self.seed = tokenizer, n_ctx, seed
        warn_of_unknown(tokenizer, [text[:LOOKED_AT]])
        ids = torch.tensor(tokenizer.encode(text, bos=False))
        cut = int(len(ids) * (1 - val_fraction))
        self.parts = {"train": ids[:cut], "val": ids[cut:]}
        for split, part in self.parts.items():
            if len(part) <= n_ctx:
                raise ValueError(
                    f"the text has {len(ids)} tokens, {len(part)} of them for {split!r}, and a "
                    f"context of {n_ctx} needs at least {n_ctx + 1}; shorten the context or bring "
                    "more text"
                )
        self.fingerprint = _digest(ids.numpy().tobytes(), n_ctx, seed, cut)

    def batch(self, split: Split, number: int, size: int) -> Batch:
        part, rng = self.parts[split], numbered(self.seed, split, number)
        starts = torch.from_numpy(rng.integers(len(part) - self.n_ctx, size=size))
        crops = part[starts[:, None] + torch.arange(self.n_ctx + 1)]
        return Batch(crops[:, :-1], crops[:, 1:])


class SampledData:
    """Sequences that a generator draws: `draw(rng, split, size)` gives ids [size, n_ctx + 1], and
    each id is to be predicted from those before it. Ids below 0 in a row are what is not asked: the
    position holds ~id."""

    def __init__(
        self,
        draw: Callable[[np.random.Generator, Split, int], np.ndarray],
        tokenizer: Tokenizer | None,
        fingerprint: str,
        *,
        seed: int = 0,
    ) -> None:
        self.draw, self.tokenizer, self.seed = draw, tokenizer, seed
        self.fingerprint = _digest(fingerprint.encode(), seed)

    def batch(self, split: Split, number: int, size: int) -> Batch:
        drawn = torch.from_numpy(self.draw(numbered(self.seed, split, number), split, size)).long()
        asked = drawn >= 0
        ids = torch.where(asked, drawn, ~drawn)
        return Batch(ids[:, :-1], torch.where(asked, drawn, IGNORED)[:, 1:])


class MaskedData:
    """The same sequences for a model that sees both ways: some tokens are hidden and asked for.

    Of the chosen 15 %, 80 % become the mask token, 10 % another token, 10 % stay (Devlin et al.
    2019).
    """

    def __init__(self, data: Data, d_vocab: int, *, share: float = 0.15, seed: int = 0) -> None:
        if data.tokenizer is None or data.tokenizer.mask_id is None:
            raise ValueError("masked-language-model training needs a tokenizer with a mask token")
        self.data, self.tokenizer = data, data.tokenizer
        self.d_vocab, self.share, self.seed = d_vocab, share, seed
        self.fingerprint = _digest(data.fingerprint.encode(), d_vocab, share, seed)

    def batch(self, split: Split, number: int, size: int) -> Batch:
        whole = self.data.batch(split, number, size).ids
        rng = numbered(self.seed, split, number, 1)
        drawn = torch.from_numpy(rng.random((3, *whole.shape)))
        special = torch.tensor(sorted(self.tokenizer.special_ids))
        chosen = (drawn[0] < self.share) & ~torch.isin(whole, special)
        other = (drawn[2] * self.d_vocab).long()
        ids = torch.where(chosen & (drawn[1] < 0.8), self.tokenizer.mask_id, whole)
        ids = torch.where(chosen & (drawn[1] >= 0.9), other, ids)
        return Batch(ids, torch.where(chosen, whole, IGNORED))


def numbered(seed: int, split: Split, *numbers: int) -> np.random.Generator:
    """The random numbers of one batch."""
    return np.random.default_rng([seed, SPLITS[split], *numbers])


def _digest(data: bytes, *more: object) -> str:
    return hashlib.sha256(data + repr(more).encode()).hexdigest()[:16]
