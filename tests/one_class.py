"""A planted model whose prompts all have one answer, or answers of two classes: what controls that
share the fault do not see."""

from __future__ import annotations

import numpy as np
import torch

from interp.core.config import TransformerConfig
from interp.core.tokenizer import Tokenizer
from interp.core.tokens import Tokens
from interp.data.tasks import Pairs
from interp.model import HookedTransformer
from interp.zoo.planted.base import blank
from tests.vocabularies import word_level

A, B, YES, NO, FILLERS = 1, 2, 3, 4, range(5, 10)
LENGTH = 4
GAP = 3.0
"""What the head that reads the class adds to the logit difference of either class."""


def one_class_model(**changes) -> HookedTransformer:
    """Uniform attention, no norms: head 0 says YES where A stands in the prompt and NO where B
    does; head 1 says, from the filler before the end, a little of YES or of NO, whatever the class;
    head 2 adds nothing."""
    cfg = TransformerConfig(
        n_layers=1, d_model=10, n_heads=3, d_head=10, d_mlp=0, d_vocab=10, n_ctx=8, norm="none",
        positions="none", final_norm=False, tied=False, causal=True,
    ).replace(**changes)  # fmt: skip
    model = blank(cfg, "one-class", Tokenizer(word_level(10), {"unk_token": "w0"}, "words"))
    with torch.no_grad():
        model.W_E.copy_(torch.eye(10))
        model.W_U.copy_(torch.eye(10))
        attn = model.blocks[0].attn
        d = cfg.d_head
        values = attn.qkv_weight[2 * 3 * d :].view(3, d, 10)
        values.copy_(torch.eye(10).expand(3, -1, -1))
        out = attn.out_weight.view(10, 3, d)
        out[YES, 0, A] = out[NO, 0, B] = GAP * LENGTH  # attention is 1/LENGTH everywhere
        for i, filler in enumerate(FILLERS):
            out[YES, 1, filler] = 0.4 * LENGTH * (i - 2)
    return model


def pairs_of_one_class(n=12, mixed=False, seed=0):
    """Clean prompts of class A (answer YES), corrupted ones of B; mixed: half the other way."""
    rng = np.random.default_rng(seed)
    fill = rng.choice(list(FILLERS), (n, 2))
    flip = np.arange(n) % 2 == 1 if mixed else np.zeros(n, dtype=bool)

    def rows(first, second):
        word = np.where(flip, second, first)
        return torch.tensor([[0, *pair, one] for pair, one in zip(fill, word, strict=True)])

    roles = {"end": torch.full((n,), LENGTH - 1)}
    answer = torch.tensor(np.where(flip, NO, YES))
    wrong = torch.tensor(np.where(flip, YES, NO))
    clean, corrupted = (Tokens(ids, roles=roles, bos=True) for ids in (rows(A, B), rows(B, A)))
    return Pairs("class", clean, corrupted, answer, wrong)
