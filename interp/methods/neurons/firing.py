"""MLP neurons: how often and on what they fire, and what they say to the vocabulary.

A neuron is one entry of mlp.hook_post: act(x W_in), of a gated MLP act(x W_gate) · (x W_in); of
experts, neuron e · d_expert + i is neuron i of expert e, times that expert's weight. Texts are
read some rows at a time, so that memory does not grow with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.core.finite import finite, finite_cache
from interp.core.indices import Indices, check_once, index, indices, pair
from interp.core.tokens import Tokens
from interp.sweeps.nodes import as_frame

NeuronId = tuple[int, int]
"""(layer, neuron)."""
SITE = "mlp.hook_post"
ELEMENTS = 2**24
"""Activations that are held at once."""


@torch.no_grad()
def neuron_stats(
    model: Any, tokens: Any, *, layers: Indices | None = None, threshold: float = 0.0
) -> pd.DataFrame:
    """How every neuron fires over the real tokens: layer neuron n mean sd active kurtosis min max.

    `active` is the share of tokens above `threshold`; `kurtosis` the excess kurtosis m₄ / m₂² − 3
    (0: a Gaussian; large: rarely far from the mean), NaN for a neuron that never changes. Moments
    are of the n tokens themselves (no n − 1), merged in float64 (Pébay 2008). Raises ValueError on
    a model without an MLP, and on layers that it does not have.
    """
    chosen = _checked_layers(model, layers)
    tokens = model.accept(tokens)
    found: dict[int, Moments] = {}
    for part, layer, x in _activations(model, tokens, chosen):
        own = Moments.of(x[part.real].double(), threshold)
        found[layer] = own if layer not in found else found[layer].merged(own)
    frames = []
    for layer in chosen:
        columns = found[layer].columns()
        numbers = {name: value.cpu().numpy() for name, value in columns.items()}
        frame = pd.DataFrame({"layer": layer, "neuron": np.arange(model.cfg.d_mlp), **numbers})
        frame.insert(2, "n", found[layer].n)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def top_activations(
    model: Any, tokens: Any, neurons: Sequence[NeuronId], k: int = 10
) -> pd.DataFrame:
    """Where neurons fire most: layer neuron rank example pos value, rank 1 the strongest.

    Of each row only its strongest token counts, so that k different texts are shown (fewer where
    there are fewer); of equal values the earlier row is first. Raises ValueError as `neuron_stats`.
    """
    neurons = checked_neurons(model, neurons)
    if k < 1:
        raise ValueError(f"k={k}: expected at least 1")
    tokens, first = model.accept(tokens), 0
    by_layer: dict[int, list[int]] = {}
    for layer, neuron in neurons:
        by_layer.setdefault(layer, []).append(neuron)
    best: dict[int, tuple[Tensor, Tensor]] = {}
    for part, layer, x in _activations(model, tokens, sorted(by_layer)):
        if layer == min(by_layer):
            start, first = first, first + len(part)
        own = x[:, :, by_layer[layer]].double()
        value, pos = own.masked_fill(~part.real[..., None], -torch.inf).max(1)
        row = torch.arange(start, first, device=pos.device)[:, None].expand_as(pos)
        where = torch.stack([row, pos])
        if layer in best:
            value = torch.cat([best[layer][0], value])
            where = torch.cat([best[layer][1], where], dim=1)
        order = value.sort(stable=True, dim=0, descending=True).indices[:k]
        best[layer] = value.gather(0, order), where.gather(1, order.expand(2, *order.shape))
    rows = [
        (layer, neuron, rank + 1, *(int(w[rank, i]) for w in where), float(value[rank, i]))
        for layer, neuron in neurons
        for value, where in [best[layer]]
        for i in [by_layer[layer].index(neuron)]
        for rank in range(len(value))
    ]
    columns = ["layer", "neuron", "rank", "example", "pos", "value"]
    return pd.DataFrame(rows, columns=columns)


@torch.no_grad()
def neuron_logits(model: Any, neurons: Sequence[NeuronId]) -> Float[Tensor, "neuron d_vocab"]:
    """What each neuron adds to the logits, directly and per unit of activation: W_out W_U, with the
    final norm's gain (and, of LayerNorm, its centring) folded in and its scale left out, less the
    mean over the vocabulary.

    Raises ValueError where there is no such product: no unembedding, a masked-LM head, and a norm
    between neuron and residual stream, or on it.
    """
    neurons, cfg = checked_neurons(model, neurons), model.cfg
    if cfg.head != "unembed":
        raise ValueError(f"head={cfg.head!r}: the logits are no linear map of the residual stream")
    if cfg.norm != "none" and cfg.norm_position != "pre":
        raise ValueError(
            f"norm_position={cfg.norm_position!r}: a norm stands between neurons and the residual "
            "stream, or on it, so that what they say to the logits depends on the others"
        )
    blocks = model.blocks
    written = torch.stack([blocks[layer].mlp.W_out[neuron] for layer, neuron in neurons])
    size = 1.0 if blocks[0].scale is None else blocks[0].scale
    written, norm = written.double() * size, model.ln_final
    if norm is not None:
        if norm.kind == "layernorm":
            written = written - written.mean(-1, keepdim=True)
        written = written if norm.gain is None else written * norm.gain
    logits = written @ model.W_U.double()
    logits = logits if cfg.logit_scale is None else logits * cfg.logit_scale
    finite(logits, model, "what neurons add to the logits")
    return logits - logits.mean(-1, keepdim=True)


def promoted_tokens(model: Any, neurons: Sequence[NeuronId], k: int = 10) -> pd.DataFrame:
    """The tokens whose logits a neuron raises and lowers most: layer neuron side rank id token
    value, of `neuron_logits`. side: "promoted" or "suppressed"; rank 1 is the strongest; token is
    the id where the model has no tokenizer."""
    rows = []
    tokenizer = model.tokenizer
    logits = neuron_logits(model, neurons).cpu()
    for (layer, neuron), own in zip(checked_neurons(model, neurons), logits, strict=True):
        for side, signed in (("promoted", own), ("suppressed", -own)):
            ids = signed.sort(stable=True, dim=0, descending=True).indices[:k].tolist()
            words = map(str, ids) if tokenizer is None else tokenizer.str_tokens(ids)
            for rank, (i, word) in enumerate(zip(ids, words, strict=True), start=1):
                rows.append((layer, neuron, side, rank, i, word, float(own[i])))
    columns = ["layer", "neuron", "side", "rank", "id", "token", "value"]
    frame = pd.DataFrame(rows, columns=columns, dtype=object)  # a piece may be half a character
    return frame.astype(dict.fromkeys(("layer", "neuron", "rank", "id"), int) | {"value": float})


def neuron_nodes(model: Any, sets: Iterable[Sequence[NeuronId]]) -> pd.DataFrame:
    """Nodes of a sweep: each set of neurons is edited together; node i is set i."""
    lines = [
        {"row": row, "site": SITE, "layer": layer, "neuron": neuron}
        for row, own in enumerate(sets)
        for layer, neuron in checked_neurons(model, own)
    ]
    return as_frame(lines)


def neuron_ids(model: Any, names: Iterable[str]) -> list[NeuronId]:
    """Neurons by name, "2.17": neuron 17 of layer 2. Raises ValueError naming the range."""
    found = []
    for name in names:
        layer, dot, neuron = str(name).partition(".")
        if not (dot and layer.isdecimal() and neuron.isdecimal()):
            raise ValueError(f"neuron {name!r}: expected layer.neuron, as in 0.17")
        found.append((int(layer), int(neuron)))
    return checked_neurons(model, found)


def checked_neurons(model: Any, neurons: Iterable[NeuronId]) -> list[NeuronId]:
    """Neurons (layer, neuron) that the model has, counted from the start; raises ValueError on
    others, and on one that is there twice."""
    _check_mlp(model)
    cfg, chosen = model.cfg, []
    for layer, neuron in (pair(one, "neurons", "(layer, neuron)") for one in neurons):
        one = f"of neuron {layer}.{neuron}"
        chosen.append((
            index(layer, cfg.n_layers, f"layer {one}"), index(neuron, cfg.d_mlp, f"number {one}")
        ))  # fmt: skip
    if not chosen:
        raise ValueError("no neurons are given")
    check_once(chosen, "neurons")
    return chosen


class Moments(NamedTuple):
    """Sums over n tokens: the mean, and Σ (x − mean)ᵖ for p = 2, 3, 4; each [d_mlp]."""

    n: int
    mean: Tensor
    m2: Tensor
    m3: Tensor
    m4: Tensor
    active: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, x: Float[Tensor, "n d_mlp"], threshold: float) -> Moments:
        """Of some tokens."""
        mean = x.mean(0)
        powers = ((x - mean).pow(p).sum(0) for p in (2, 3, 4))
        active = (x > threshold).double().sum(0)
        return cls(len(x), mean, *powers, active, x.amin(0), x.amax(0))

    def merged(self, other: Moments) -> Moments:
        """Of both (Pébay 2008, eq. 2.1 for orders 2 to 4)."""
        a, b, n = self.n, other.n, self.n + other.n
        d = other.mean - self.mean
        m2 = self.m2 + other.m2 + d**2 * (a * b / n)
        m3 = self.m3 + other.m3 + d**3 * (a * b * (a - b) / n**2)
        m3 = m3 + 3 * d * (a * other.m2 - b * self.m2) / n
        m4 = self.m4 + other.m4 + d**4 * (a * b * (a * a - a * b + b * b) / n**3)
        m4 = m4 + 6 * d**2 * (a * a * other.m2 + b * b * self.m2) / n**2
        m4 = m4 + 4 * d * (a * other.m3 - b * self.m3) / n
        low, high = self.low.minimum(other.low), self.high.maximum(other.high)
        return Moments(
            n, self.mean + d * (b / n), m2, m3, m4, self.active + other.active, low, high
        )

    def columns(self) -> dict[str, Tensor]:
        """mean sd active kurtosis min max."""
        variance = self.m2 / self.n
        # A constant neuron has no kurtosis; what rounding leaves of its variance is not one.
        varies = variance.sqrt() > 1e-12 * self.high.abs().maximum(self.low.abs())
        kurtosis = (self.m4 / self.n / variance**2 - 3).where(varies, torch.nan)
        return {
            "mean": self.mean,
            "sd": variance.sqrt(),
            "active": self.active / self.n,
            "kurtosis": kurtosis,
            "min": self.low,
            "max": self.high,
        }


def _activations(
    model: Any, tokens: Tokens, layers: Sequence[int]
) -> Iterator[tuple[Tokens, int, Float[Tensor, "batch pos d_mlp"]]]:
    """Some rows of the tokens, a layer, and its neurons there; all layers of the rows in turn."""
    width = tokens.shape[1]
    size = max(1, ELEMENTS // (width * model.cfg.d_mlp * len(layers)))
    names = [(SITE, layer) for layer in layers]
    for rows in torch.arange(len(tokens)).split(size):
        part = tokens[rows]
        cache = finite_cache(model, part, names, stop_at_layer=max(layers) + 1)
        for layer in layers:
            yield part, layer, cache[SITE, layer]


def _checked_layers(model: Any, layers: Indices | None) -> list[int]:
    _check_mlp(model)
    n = model.cfg.n_layers
    return sorted(range(n) if layers is None else indices(layers, n, "layers"))


def _check_mlp(model: Any) -> None:
    if not model.cfg.d_mlp:
        raise ValueError("d_mlp=0: this model has no MLP, and so no neurons; look at its heads")
    if model.encoder is not None:
        raise ValueError("an encoder–decoder has two stacks of layers; give model.encoder for one")
