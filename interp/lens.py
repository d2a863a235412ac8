"""The logit lens: what the model would say if it stopped early (nostalgebraist 2020)."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from .metrics import answer_ids

ROWS = 2048
"""Positions whose logits are held at once."""


@torch.no_grad()
def logit_lens(model: Any, tokens: Any, answer: Tensor | None = None) -> pd.DataFrame:
    """Each residual stream read by the final norm, computed anew on it, and the unembedding:
    example layer pos top top_prob entropy kl, and with `answer` its logit, prob and rank.

    Layer l is what layer l reads, n_layers what the last one leaves. `top` is the likeliest id,
    `entropy` in bits, `kl` in nats: of the model's own output from this one. `answer` [batch] is
    one id per row; `rank` 1 is the likeliest. Pads are left out. Raises ValueError on a model
    without logits.
    """
    if model.cfg.head == "none":
        raise ValueError("head='none': this model has no unembedding, so there is no logit lens")
    tokens, n_layers = model.accept(tokens), model.cfg.n_layers
    asked = None if answer is None else answer_ids(answer, tokens, model)
    if asked is not None and asked.shape[1] != 1:
        raise ValueError(f"answer {list(asked.shape)}: the lens follows one id per row")
    names = [model.blocks[0].hook_resid_pre, *(block.hook_resid_post for block in model.blocks)]
    _, cache = model.run_with_cache(tokens, names)
    where = tokens.real.nonzero()
    frames = []
    for part in where.split(ROWS):
        rows, places = part.T
        final = _log_probs(model, cache[names[-1]][rows, places])
        ids = None if asked is None else asked[rows]
        for layer in range(n_layers + 1):
            logits = _logits(model, cache[names[layer]][rows, places])
            read = _read(logits, final, ids)
            at = {"example": rows.cpu().numpy(), "layer": layer, "pos": places.cpu().numpy()}
            frames.append(read.assign(**at))
    frame = pd.concat(frames, ignore_index=True)
    first = ["example", "layer", "pos"]
    frame = frame[[*first, *(name for name in frame if name not in first)]]
    return frame.sort_values(first, ignore_index=True)


def _read(logits: Tensor, final: Tensor, ids: Tensor | None) -> pd.DataFrame:
    own = logits.log_softmax(-1)
    top_prob, top = own.exp().max(-1)
    columns = {
        "top": top,
        "top_prob": top_prob,
        "entropy": -(own.exp() * own).nan_to_num().sum(-1) / math.log(2),
        "kl": (final.exp() * (final - own)).nan_to_num().sum(-1),
    }
    if ids is not None:
        mine = logits.gather(1, ids)
        columns["logit"] = mine[:, 0]
        columns["prob"] = own.gather(1, ids)[:, 0].exp()
        columns["rank"] = (logits > mine).sum(-1) + 1
    return pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})


def _log_probs(model: Any, resid: Tensor) -> Tensor:
    return _logits(model, resid).log_softmax(-1)


def _logits(model: Any, resid: Tensor) -> Tensor:
    """In float32 at least: probabilities in half precision lose the tails that entropy needs."""
    logits = model.to_logits(resid[None])[0]
    return logits if logits.dtype.itemsize >= 4 else logits.float()
