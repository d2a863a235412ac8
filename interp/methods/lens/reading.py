"""The logit lens: what the model would say if it stopped early (nostalgebraist 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.core.finite import finite, finite_cache
from interp.core.indices import Indices, indices
from interp.core.precision import wide
from interp.core.tokens import Tokens
from interp.sweeps.metrics import Where, answer_ids, one_position

POSITIONS = 2048
"""Positions whose streams and logits are held at once; at least one row."""
PLACE = ("example", "layer", "pos")

Translate = Callable[[int, Tensor], Tensor]
"""(layer, streams [n d_model]) → what the final norm reads in their place."""


class Streams(NamedTuple):
    """The residual streams of some positions."""

    examples: Int[Tensor, " n"]
    places: Int[Tensor, " n"]
    resid: Mapping[int, Float[Tensor, "n d_model"]]
    """By layer: what layer l reads; n_layers: what the last one leaves."""


class Reading(NamedTuple):
    """What one layer says at some positions."""

    examples: Int[Tensor, " n"]
    places: Int[Tensor, " n"]
    layer: int
    logits: Float[Tensor, "n d_vocab"]
    final: Float[Tensor, "n d_vocab"]
    """Log-probabilities of the model's own output there."""


def logit_lens(
    model: Any,
    tokens: Any,
    answer: Tensor | None = None,
    *,
    pos: Where = None,
    layers: Indices | None = None,
) -> pd.DataFrame:
    """Each residual stream read by the final norm, computed anew on it, and the unembedding:
    example layer pos top top_prob entropy kl, and with `answer` its logit, prob and rank.

    Layer l is what layer l reads, n_layers (or −1) what the last one leaves; `layers`: some of
    these.
    `pos`: one position per row (an index, a role, one each); by default every real one. `top` is
    the likeliest id, `entropy` in bits, `kl` in nats: of the model's own output from this one.
    `answer` [batch] is one id per row, or [batch k] a set of them, which has the mean logit, the
    summed prob and the best rank. `rank` counts the tokens with at least the answer's logit, itself
    included: 1 is first alone. Raises ValueError on a model without logits or behind the bridge,
    and on a layer that it does not have.
    """
    return lens_frame(model, tokens, answer, pos, layers, _as_it_is)


def top_tokens(
    model: Any,
    tokens: Any,
    k: int = 5,
    *,
    pos: Where = None,
    layers: Indices | None = None,
    lens: Any = None,
) -> pd.DataFrame:
    """The k likeliest tokens of every layer: example layer pos rank token (id) prob; read by a
    `TunedLens` where `lens` is one. Arguments and errors as for `logit_lens`."""
    if not 1 <= k <= model.cfg.d_vocab:
        raise ValueError(f"k={k}: this model has 1 to {model.cfg.d_vocab} tokens to show")
    if lens is not None:
        lens.check(model)
        layers = lens.readable if layers is None else layers
    translate = _as_it_is if lens is None else lens.translate
    frames = []
    for one in readings(model, model.accept(tokens), pos, layers, translate):
        prob, token = one.logits.softmax(-1).topk(k)
        n = len(one.examples)
        frames.append(
            pd.DataFrame(
                {
                    "example": one.examples.repeat_interleave(k).cpu().numpy(),
                    "layer": one.layer,
                    "pos": one.places.repeat_interleave(k).cpu().numpy(),
                    "rank": torch.arange(1, k + 1).repeat(n).numpy(),
                    "token": token.flatten().cpu().numpy(),
                    "prob": prob.flatten().cpu().numpy(),
                }
            )
        )
    frame = pd.concat(frames, ignore_index=True)
    return frame.sort_values([*PLACE, "rank"], ignore_index=True)


def lens_frame(
    model: Any,
    tokens: Any,
    answer: Tensor | None,
    pos: Where,
    layers: Indices | None,
    translate: Translate,
) -> pd.DataFrame:
    """The frame of `logit_lens`, of streams that `translate` has changed."""
    check_readable(model)
    tokens = model.accept(tokens)
    asked = None if answer is None else answer_ids(answer, tokens, model)
    frames = []
    for one in readings(model, tokens, pos, layers, translate):
        read = _measured(one, None if asked is None else asked[one.examples])
        at = (one.examples.cpu().numpy(), one.layer, one.places.cpu().numpy())
        frames.append(read.assign(**dict(zip(PLACE, at, strict=True))))
    frame = pd.concat(frames, ignore_index=True)
    frame = frame[[*PLACE, *(name for name in frame if name not in PLACE)]]
    return frame.sort_values(list(PLACE), ignore_index=True)


@torch.no_grad()
def readings(
    model: Any, tokens: Tokens, pos: Where, layers: Indices | None, translate: Translate
) -> Iterator[Reading]:
    """What every layer says, some positions at a time; not in the autograd graph."""
    chosen, last = check_layers(model, layers), model.cfg.n_layers
    for part in streams(model, tokens, pos, {*chosen, last}):
        final = log_probs(model, part.resid[last])
        for layer in chosen:
            logits = logits_of(model, translate(layer, part.resid[layer]))
            yield Reading(part.examples, part.places, layer, logits, final)


@torch.no_grad()
def streams(model: Any, tokens: Tokens, pos: Where, layers: set[int]) -> Iterator[Streams]:
    """The residual streams of the positions asked for, some rows at a time."""
    check_readable(model)
    chosen = None if pos is None else one_position(pos, tokens)[:, 0]
    names = {layer: _site(model, layer) for layer in layers}
    for rows in torch.arange(len(tokens)).split(max(1, POSITIONS // tokens.shape[1])):
        part, here = tokens[rows], rows.to(tokens.device)
        cache = finite_cache(model, part, list(names.values()))
        if chosen is None:
            row, place = part.real.nonzero().T
        else:
            row, place = torch.arange(len(rows), device=tokens.device), chosen[here]
        resid = {layer: cache[name][row, place] for layer, name in names.items()}
        yield Streams(here[row], place, resid)


def check_readable(model: Any) -> None:
    """Raises ValueError on a model of which no stream can be read out."""
    if model.cfg.head == "none":
        raise ValueError("head='none': this model has no unembedding, so there is no logit lens")
    if model.opaque:
        raise ValueError(
            f"{model.opaque}, whose final norm and unembedding cannot be called alone, so there is "
            "no logit lens; load the model as one of the supported families"
        )


def check_layers(model: Any, layers: Indices | None) -> list[int]:
    """The layers asked for, in order; n_layers, or −1, is what the last one leaves."""
    n_streams = model.cfg.n_layers + 1
    return sorted(range(n_streams) if layers is None else indices(layers, n_streams, "layers"))


def log_probs(model: Any, resid: Tensor) -> Tensor:
    """What the final norm and the unembedding make of streams [n d_model]."""
    return logits_of(model, resid).log_softmax(-1)


def logits_of(model: Any, resid: Tensor) -> Tensor:
    """In float32 at least: probabilities in half precision lose the tails that entropy needs."""
    logits = model.to_logits(resid.to(model.dtype)[None])[0]
    return wide(finite(logits, model, "the logits that a lens reads"))


def divergence(final: Tensor, own: Tensor) -> Float[Tensor, " n"]:
    """KL(final ‖ own) in nats, of log-probabilities [n d_vocab]."""
    return (final.exp() * (final - own)).sum(-1)


def _as_it_is(layer: int, resid: Tensor) -> Tensor:
    return resid


def _site(model: Any, layer: int) -> str:
    return model.blocks[layer - 1].hook_resid_post if layer else model.blocks[0].hook_resid_pre


def _measured(one: Reading, ids: Tensor | None) -> pd.DataFrame:
    own = one.logits.log_softmax(-1)
    top_prob, top = own.exp().max(-1)
    columns = {
        "top": top,
        "top_prob": top_prob,
        "entropy": -(own.exp() * own).sum(-1) / math.log(2),
        "kl": divergence(one.final, own),
    }
    if ids is not None:
        mine = one.logits.gather(1, ids)
        columns["logit"] = mine.mean(-1)
        columns["prob"] = own.gather(1, ids).exp().sum(-1)
        columns["rank"] = (one.logits >= mine.amax(-1, keepdim=True)).sum(-1)
    return pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})
