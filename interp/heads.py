"""What attention heads do, in numbers: where they look, what their weights copy, who feeds whom.

Frames only, one row per head or pair of heads; scores are descriptions, not causes: ask `ablate` or
`patch` whether a head matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .model import FactoredMatrix
from .tokens import Tokens

LOOKS = ("previous_token", "duplicate_token", "induction", "bos", "self")
"""Where a head may look, by the columns of `head_scores`."""
COMPOSITIONS = ("q", "k", "v")
ELEMENTS = 2**26
"""Numbers of all patterns that are held at once."""


@torch.no_grad()
def head_scores(
    model: Any, tokens: Any = None, *, n: int = 16, length: int = 25, seed: int = 0
) -> pd.DataFrame:
    """What every head does: layer head previous_token duplicate_token induction bos self entropy
    copying qk_norm ov_norm.

    The first five are shares of attention, averaged over the positions that have such a token:
    the one before, an equal one, the one behind an equal one (Olsson et al. 2022), the first, and
    itself. Of a causal model only what stands to the left counts, and the first position is left
    out. `entropy` is the mean entropy of a position's attention in bits. `copying` is
    Σ Re λ / Σ |λ| over the eigenvalues of W_E W_V W_O W_U, from −1 (what is attended to becomes
    less likely) to 1 (it becomes likelier; Elhage et al. 2021), with norms folded where they can
    be; NaN where there is no unembedding of words. Norms are Frobenius norms of W_Q W_Kᵀ and of
    W_V W_O.

    tokens: what to look at; by default `n` rows of `length` random tokens, repeated once, in which
    nothing but the repetition can be known. Raises ValueError where no token is repeated: two
    columns would be empty.
    """
    given = random_repeats(model, n, length, seed) if tokens is None else model.accept(tokens)
    looks = _targets(given, model.cfg.causal)
    empty = [name for name, mask in looks.items() if not mask.any()]
    if empty:
        raise ValueError(
            f"no position of these tokens has a token to score {', '.join(empty)} by; give longer "
            "texts with repetitions, or leave tokens out for random repeated ones"
        )
    found, entropy = _attention(model, given, looks)
    cfg = model.cfg
    layer, head = np.divmod(np.arange(cfg.n_layers * cfg.n_heads), cfg.n_heads)
    columns: dict[str, Any] = {"layer": layer, "head": head}
    columns |= {name: found[..., i].flatten().numpy() for i, name in enumerate(LOOKS)}
    columns["entropy"] = entropy.flatten().numpy()
    columns["copying"] = _copying(model).flatten().numpy()
    columns["qk_norm"] = model.QK.norm().double().cpu().flatten().numpy()
    columns["ov_norm"] = model.OV.norm().double().cpu().flatten().numpy()
    return pd.DataFrame(columns)


def random_repeats(model: Any, n: int, length: int, seed: int = 0) -> Tokens:
    """n rows of `length` random tokens that stand twice, behind the beginning-of-sequence token
    where the tokenizer has one."""
    tokenizer, cfg = model.tokenizer, model.cfg
    bos = None if tokenizer is None else tokenizer.bos_id
    special = () if tokenizer is None else tokenizer.special_ids
    ordinary = np.setdiff1d(np.arange(cfg.d_vocab), list(special))
    length = min(length, (cfg.n_ctx - (bos is not None)) // 2, len(ordinary))
    if length < 2:
        raise ValueError(f"n_ctx={cfg.n_ctx}, {len(ordinary)} ordinary tokens: nothing can repeat")
    rng = np.random.default_rng(seed)
    half = np.stack([rng.choice(ordinary, length, replace=False) for _ in range(n)])
    start = np.full((n, int(bos is not None)), 0 if bos is None else bos)
    ids = torch.from_numpy(np.concatenate([start, half, half], axis=1))
    return Tokens(ids, bos=bos is not None).to(model.device)


@torch.no_grad()
def composition(model: Any) -> pd.DataFrame:
    """How much later heads read what earlier ones write: kind from_layer from_head to_layer to_head
    value baseline.

    ‖A B‖ / ‖A‖ ‖B‖ (Frobenius) of W_V W_O of the earlier head and, of the later one, W_Q W_Kᵀ read
    as a query ("q") or as a key ("k"), or W_V W_O ("v") (Elhage et al. 2021). `baseline` is the
    root mean square of the same number when the earlier head writes in a random direction, exactly
    1/√d_model. Weights are taken as they are: give `model.folded()` for what norms do to them.
    """
    OV, QK = model.OV, model.QK
    readers = {"q": QK, "k": QK.T, "v": OV}
    # ‖A B‖ = ‖R_A B‖ where A = Q R with orthonormal columns Q: all products stay d_head wide.
    written = torch.linalg.qr(OV.A)[1] @ OV.B
    frames = []
    for kind in COMPOSITIONS:
        read = readers[kind]
        reading = read.A @ torch.linalg.qr(read.B.mT)[1].mT
        ours, theirs = OV.norm(), read.norm()
        for to in range(1, model.cfg.n_layers):
            products = torch.einsum("lhrd,gds->lhgrs", written[:to], reading[to])
            sizes = ours[:to, :, None] * theirs[to][None, None]
            value = products.flatten(-2).norm(dim=-1) / sizes
            index = np.stack(np.unravel_index(np.arange(value.numel()), value.shape), axis=1)
            frame = pd.DataFrame(index, columns=["from_layer", "from_head", "to_head"])
            frames.append(frame.assign(kind=kind, to_layer=to, value=value.flatten().cpu().numpy()))
    columns = ["kind", "from_layer", "from_head", "to_layer", "to_head", "value", "baseline"]
    if not frames:
        return pd.DataFrame(columns=columns)
    return pd.concat(frames, ignore_index=True).assign(baseline=model.cfg.d_model**-0.5)[columns]


def _targets(tokens: Tokens, causal: bool) -> dict[str, Bool[Tensor, "batch q k"]]:
    """Which keys each query would look at, per score."""
    real = tokens.real
    place = real.cumsum(1) - 1
    both = real[:, :, None] & real[:, None, :]
    behind = place[:, :, None] - place[:, None, :]  # how far the key stands to the left
    both &= (behind >= 0) & (place > 0)[:, :, None] if causal else True
    masks = {
        "previous_token": both & (behind == 1),
        "bos": both & (place == 0)[:, None, :],
        "self": both & (behind == 0),
    }
    if tokens.ids is None:
        same = torch.zeros_like(both)
    else:
        same = (tokens.ids[:, :, None] == tokens.ids[:, None, :]) & (behind != 0)
    masks["duplicate_token"] = both & same
    # A key's left neighbour equals the query: shift the keys by one real place.
    before = torch.zeros_like(same)
    before[:, :, 1:] = same[:, :, :-1] & real[:, None, :-1]
    masks["induction"] = both & before
    return {name: masks[name] for name in LOOKS}


def _attention(
    model: Any, tokens: Tokens, looks: dict[str, Tensor]
) -> tuple[Float[Tensor, "layer head look"], Float[Tensor, "layer head"]]:
    cfg = model.cfg
    total = torch.zeros(cfg.n_layers, cfg.n_heads, len(LOOKS), dtype=torch.float64)
    bits = torch.zeros(cfg.n_layers, cfg.n_heads, dtype=torch.float64)
    counts, rows_counted = torch.zeros(len(LOOKS), dtype=torch.float64), 0
    for rows in _chunks(model, tokens):
        part = tokens[rows]
        _, cache = model.run_with_cache(part, "attn.pattern")
        asked = part.real & (part.real.cumsum(1) > 1 if cfg.causal else True)
        masks = [looks[name][rows.to(looks[name].device)] for name in LOOKS]
        has = [mask.any(-1) for mask in masks]
        counts += torch.tensor([float(one.sum()) for one in has], dtype=torch.float64)
        rows_counted += int(asked.sum())
        for layer in range(cfg.n_layers):
            pattern = cache["attn.pattern", layer].float()
            for i, (mask, one) in enumerate(zip(masks, has, strict=True)):
                share = torch.einsum("bhqk,bqk->bhq", pattern, mask.to(pattern))
                total[layer, :, i] += (share * one[:, None]).sum((0, 2)).double().cpu()
            own = -(pattern * pattern.clamp_min(1e-30).log2()).sum(-1)
            bits[layer] += (own * asked[:, None]).sum((0, 2)).double().cpu()
    return total / counts, bits / rows_counted


def _chunks(model: Any, tokens: Tokens) -> Iterator[Tensor]:
    """Rows whose patterns fit together."""
    cfg, (n, width) = model.cfg, tokens.shape
    size = max(1, ELEMENTS // (cfg.n_layers * cfg.n_heads * width * width))
    yield from torch.arange(n).split(size)


def _copying(model: Any) -> Float[Tensor, "layer head"]:
    cfg = model.cfg
    if cfg.head == "none" or cfg.inputs != "tokens":
        return torch.full((cfg.n_layers, cfg.n_heads), float("nan"), dtype=torch.float64)
    foldable = cfg.norm_position in ("pre", "both") and cfg.norm != "none"
    model = model.folded() if foldable and not model.fwd_hooks else model
    # The eigenvalues of W_E W_V W_O W_U that can differ from zero are those of W_O W_U W_E W_V.
    words = model.W_U.double() @ model.W_E.double()
    circuit = FactoredMatrix(words @ model.OV.A.double(), model.OV.B.double())
    values = circuit.eigenvalues
    return (values.real.sum(-1) / values.abs().sum(-1).clamp_min(1e-30)).cpu()
