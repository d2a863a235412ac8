"""Training of a tuned lens: a regression in closed form, then Adam on the divergence itself.

Belrose et al. (2023) start at the identity and descend on KL(final ‖ lens). Where the start is the
ridge regression of the last stream on a layer's own, most of the way is done before the first step,
and nothing of it depends on a step size. Streams are scaled to unit variance for both, so that `lr`
and `l2` mean the same in every layer and model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.core import chance
from interp.core.indices import Indices
from interp.core.progress import counted
from interp.core.tokens import Tokens
from interp.loading import weights_hash

from .. import stats
from .reading import check_layers, check_readable, divergence, log_probs, streams
from .tuned import TABLE, Translator, TunedLens


class Start(NamedTuple):
    """A layer's translator as it is trained: h + to · (((h − mean) / of) W + c)."""

    mean: Float[Tensor, " d_model"]
    of: float
    """Root mean variance of the layer's stream."""
    to: float
    """Root mean variance of the last stream."""
    W: Float[Tensor, "d_model d_model"]
    c: Float[Tensor, " d_model"]

    def __call__(self, resid: Tensor) -> Tensor:
        x = (resid.to(self.W) - self.mean) / self.of
        return resid + self.to * (x @ self.W + self.c)

    def translator(self) -> Translator:
        """The same as A and b."""
        W = self.W.detach() * (self.to / self.of)
        return Translator(W.T.contiguous(), self.to * self.c.detach() - self.mean @ W)


def fit_tuned_lens(
    model: Any,
    tokens: Any,
    *,
    layers: Indices | None = None,
    steps: int = 100,
    lr: float = 2e-3,
    l2: float = 1e-3,
    seed: int = 0,
    held_out: float = 0.2,
    positions: int = 256,
    progress: bool = True,
) -> TunedLens:
    """A translator for each layer (0 to n_layers − 1), trained on every real position of `tokens`.

    held_out: the share of rows, drawn by `seed`, that training never sees and that `lens.table`
    reports beside the plain lens. steps: of Adam, each on rows of about `positions` positions, the
    rate falling from `lr` to 0 along a cosine; 0: the regression alone. l2: what a translator's
    distance from the identity costs, in the regression as a share of the stream's mean variance,
    then in nats per ‖W‖² / d_model. Positions are weighted in the regression by 1 / (‖h‖² +
    ‖h_last‖²), so that a few huge streams, as of the first token, do not decide it. Streams are
    computed as they are needed; none is kept. The same seed gives the same lens on one machine.

    Raises ValueError on fewer than two rows, on a model without logits or behind the bridge, and on
    layers that it does not have.
    """
    _check(steps, lr, l2, held_out, positions)
    check_readable(model)
    tokens, last = model.accept(tokens), model.cfg.n_layers
    chosen = check_layers(model, range(last) if layers is None else layers)
    chosen = [layer for layer in chosen if layer < last]
    if not chosen:
        raise ValueError(f"layers={layers}: the last stream needs no translator; give 0 to "
                         f"{last - 1}")  # fmt: skip
    train, other = _split(tokens, held_out, seed)
    starts = _regressed(model, train, chosen, l2)
    _descend(model, train, starts, steps, lr, l2, seed, positions, progress)
    translators = {layer: one.translator() for layer, one in starts.items()}
    lens = TunedLens(translators, last, weights_hash(model))
    made_of = {
        "steps": steps, "lr": lr, "l2": l2, "seed": seed,
        "rows": len(train), "positions": int(train.real.sum()),
        "held_out_rows": len(other), "held_out_positions": int(other.real.sum()),
    }  # fmt: skip
    table = _table(model, lens, train[: len(other)], other)
    return TunedLens(translators, last, lens.weights, table, made_of)


def _check(steps: int, lr: float, l2: float, held_out: float, positions: int) -> None:
    if steps < 0 or positions < 1:
        raise ValueError(f"steps={steps}, positions={positions}: expected at least 0 and 1")
    if not (lr > 0 and l2 > 0):
        raise ValueError(f"lr={lr}, l2={l2}: expected numbers above 0")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out}: expected a share between 0 and 1")


def _split(tokens: Tokens, held_out: float, seed: int) -> tuple[Tokens, Tokens]:
    n = len(tokens)
    if n < 2:
        raise ValueError(f"{n} row of tokens: one is held out, so a tuned lens needs at least two")
    size = min(max(1, round(n * held_out)), n - 1)
    order = chance.permutation(n, chance.seeded(seed))
    return tokens[order[size:]], tokens[order[:size]]


def _regressed(model: Any, tokens: Tokens, layers: list[int], l2: float) -> dict[int, Start]:
    """Weighted ridge regression of what is still to come, h_last − h, on h."""
    d, last = model.cfg.d_model, model.cfg.n_layers
    zeros = torch.zeros(2 * d + 1, 2 * d + 1, dtype=torch.float64, device=model.device)
    moments = {layer: zeros.clone() for layer in layers}
    for part in streams(model, tokens, None, {*layers, last}):
        final = part.resid[last].double()
        for layer in layers:
            own = part.resid[layer].double()
            weight = 1 / (own.pow(2).sum(-1) + final.pow(2).sum(-1)).clamp_min(1e-30)
            row = torch.cat([torch.ones_like(weight)[:, None], own, final], dim=1)
            moments[layer] += row.T @ (row * weight[:, None])
    wide = torch.promote_types(model.dtype, torch.float32)
    return {layer: _solved(one / one[0, 0], l2, wide) for layer, one in moments.items()}


def _solved(moments: Tensor, l2: float, dtype: torch.dtype) -> Start:
    """From the weighted means of (1, h, h_last) × (1, h, h_last)."""
    d = len(moments) // 2
    mean = moments[0, 1:]
    cov = moments[1:, 1:] - torch.outer(mean, mean)
    of, to = (max(float(cov[at, at].trace()) / d, 0) ** 0.5 or 1.0
              for at in (slice(d), slice(d, None)))  # fmt: skip
    own = cov[:d, :d] / of**2
    cross = (cov[:d, d:] - cov[:d, :d]) / (of * to)
    W = torch.linalg.solve(own + l2 * torch.eye(d).to(own), cross)
    c = (mean[d:] - mean[:d]) / to
    return Start(mean[:d].to(dtype), of, to, W.to(dtype), c.to(dtype))


def _descend(
    model: Any,
    tokens: Tokens,
    starts: dict[int, Start],
    steps: int,
    lr: float,
    l2: float,
    seed: int,
    positions: int,
    progress: bool,
) -> None:
    """Adam on KL(final ‖ lens) + l2 ‖W‖² / d_model, in place. Layers share nothing but the run."""
    last, d = model.cfg.n_layers, model.cfg.d_model
    parameters = [one.requires_grad_() for start in starts.values() for one in (start.W, start.c)]
    optimiser = torch.optim.Adam(parameters, lr=lr)
    batches = _batches(tokens, positions, seed)
    for step in counted(range(steps), "tuned lens", progress):
        for group in optimiser.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        optimiser.zero_grad()
        batch = next(batches)
        whole = int(batch.real.sum())
        for part in streams(model, batch, None, {*starts, last}):
            with torch.no_grad():
                final = log_probs(model, part.resid[last])
            for layer, start in starts.items():  # one after the other: logits of one layer at once
                with torch.enable_grad():
                    own = log_probs(model, start(part.resid[layer]))
                    (divergence(final, own).sum() / whole).backward()
        for start in starts.values():
            start.W.grad += 2 * l2 / d * start.W.detach()
        optimiser.step()
    for one in parameters:
        one.requires_grad_(False)


def _batches(tokens: Tokens, positions: int, seed: int) -> Iterator[Tokens]:
    """Rows in random order, all of them before any comes again."""
    generator = chance.seeded(seed + 1)
    size = max(1, round(positions * len(tokens) / int(tokens.real.sum())))
    while True:
        for rows in chance.permutation(len(tokens), generator).split(size):
            yield tokens[rows]


def _table(model: Any, lens: TunedLens, train: Tokens, other: Tokens) -> pd.DataFrame:
    """KL of both lenses on text seen and not seen: `TABLE`."""
    seen, unseen = (_divergences(model, lens, some) for some in (train, other))
    rows = []
    for layer in lens.readable:
        plain, tuned = (stats.mean(unseen[layer, which].numpy()) for which in (False, True))
        trained = (float(seen[layer, which].mean()) for which in (False, True))
        rows.append((layer, plain.value, plain.stderr, tuned.value, tuned.stderr, *trained))
    return pd.DataFrame(rows, columns=list(TABLE)).astype(float).astype({"layer": int})


@torch.no_grad()
def _divergences(
    model: Any, lens: TunedLens, tokens: Tokens
) -> dict[tuple[int, bool], Float[Tensor, " rows"]]:
    """By layer and whether tuned: the mean over each row's positions, nats."""
    found = {(layer, which): torch.zeros(len(tokens), dtype=torch.float64)
             for layer in lens.readable for which in (False, True)}  # fmt: skip
    counts = tokens.real.sum(1).double().cpu()
    for part in streams(model, tokens, None, set(lens.readable)):
        final, at = log_probs(model, part.resid[lens.n_layers]), part.examples.cpu()
        for (layer, which), sums in found.items():
            resid = part.resid[layer]
            own = log_probs(model, lens.translate(layer, resid) if which else resid)
            sums.index_add_(0, at, divergence(final, own).double().cpu())
    return {key: sums / counts for key, sums in found.items()}
