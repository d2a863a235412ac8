"""What the weights of heads say: what they copy, how large they are, who feeds whom."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.core.finite import finite
from interp.core.precision import to_numpy, wide, wide_dtype
from interp.model import FactoredMatrix

from .looks import LOOKS, attention_scores, random_repeats

COMPOSITIONS = ("q", "k", "v")
WORDS = 8192
"""Words of the vocabulary that are multiplied at once."""


@torch.no_grad()
def head_scores(
    model: Any, tokens: Any = None, *, n: int = 16, length: int = 25, seed: int = 0
) -> pd.DataFrame:
    """What every head does: the columns of `attention_scores`, then copying qk_norm ov_norm.

    `copying` is Σ Re λ / Σ |λ| over the eigenvalues of W_E W_V W_O W_U, from −1 (what is attended
    to becomes less likely) to 1 (it becomes likelier; Elhage et al. 2021), with norms folded where
    they can be; NaN where there is no unembedding of words. Norms are Frobenius norms of W_Q W_Kᵀ
    and of W_V W_O.

    tokens: what to look at; by default `n` rows of `random_repeats`, in which nothing but the
    repetition can be known. Raises ValueError where no token is repeated: two columns would be
    empty.
    """
    given = random_repeats(model, n, length, seed) if tokens is None else model.accept(tokens)
    frame = attention_scores(model, given)
    empty = [name for name in LOOKS if bool(frame[name].isna().any())]
    if empty:
        raise ValueError(
            f"no position of these tokens has a token to score {', '.join(empty)} by; give longer "
            "texts with repetitions, or leave tokens out for random repeated ones"
        )
    return frame.assign(
        copying=copying(model).score.flatten().numpy(),
        qk_norm=model.QK.norm().double().cpu().flatten().numpy(),
        ov_norm=model.OV.norm().double().cpu().flatten().numpy(),
    )


class Copying(NamedTuple):
    """Of every head, on the CPU."""

    score: Float[Tensor, "layer head"]
    """From −1 to 1."""
    z: Float[Tensor, "layer head"]
    """How far Σ Re λ lies above 0, in standard deviations of a random rotation between the head's
    values and its outputs."""


def copying(model: Any) -> Copying:
    """Whether what a head attends to becomes likelier: NaN where there is no unembedding of words.

    A rotation R drawn at random between W_V and W_O leaves both as they are but for how they meet:
    tr(M R) then has the mean 0 and the variance ‖M‖² / d_head, and is close to normal (Diaconis &
    Shahshahani 1994).
    """
    cfg = model.cfg
    if cfg.head == "none" or cfg.inputs != "tokens":
        empty = torch.full((cfg.n_layers, cfg.n_heads), torch.nan, dtype=torch.float64)
        return Copying(empty, empty)
    foldable = cfg.norm_position in ("pre", "both") and cfg.norm != "none"
    plain = bool(model.fwd_hooks or model.opaque) or not foldable
    read = model if plain else model.folded()
    # The eigenvalues of W_E W_V W_O W_U that can differ from zero are those of W_O W_U W_E W_V.
    words = read.W_E.new_zeros(cfg.d_model, cfg.d_model, dtype=torch.float64)
    for to_word, from_word in zip(read.W_U.split(WORDS, 1), read.W_E.split(WORDS), strict=True):
        words += wide(to_word) @ wide(from_word)
    circuit = FactoredMatrix(words @ read.OV.A.double(), read.OV.B.double())
    for factor in (circuit.A, circuit.B):
        finite(factor, model, "what heads copy")
    values = circuit.eigenvalues
    score = values.real.sum(-1) / values.abs().sum(-1).clamp_min(1e-30)
    z = rotation_z(circuit.B, circuit.A, model.dtype)
    return Copying(torch.where(z == 0, 0.0, score).cpu(), z.cpu())


def rotation_z(
    A: Float[Tensor, "*batch d m"], B: Float[Tensor, "*batch m d"], dtype: torch.dtype
) -> Float[Tensor, " *batch"]:
    """tr(A B) in standard deviations of tr(A B R) over random rotations R; 0 where A B is nothing
    but the rounding of `dtype` (of half precision, that of float32, in which this is computed)."""
    M = (wide(A) @ wide(B)).double()
    trace, size = M.diagonal(dim1=-2, dim2=-1).sum(-1), M.flatten(-2).norm(dim=-1)
    sizes = wide(A).flatten(-2).norm(dim=-1) * wide(B).flatten(-2).norm(dim=-1)
    rounding = 64 * torch.finfo(wide_dtype(dtype)).eps * sizes
    z = trace * M.shape[-1] ** 0.5 / size.clamp_min(1e-300)
    return torch.where(size > rounding, z, 0.0)


@torch.no_grad()
def composition(model: Any) -> pd.DataFrame:
    """How much later heads read what earlier ones write: kind from_layer from_head to_layer to_head
    value baseline.

    ‖A B‖ / ‖A‖ ‖B‖ (Frobenius) of W_V W_O of the earlier head and, of the later one, W_Q W_Kᵀ read
    as a query ("q") or as a key ("k"), or W_V W_O ("v") (Elhage et al. 2021). `baseline` is the
    root mean square of the same number when the earlier head writes in a random direction, exactly
    1/√d_model. Weights are taken as they are: give `model.folded()` for what norms do to them.
    """
    OV, QK = (FactoredMatrix(wide(one.A), wide(one.B)) for one in (model.OV, model.QK))
    for factor in (OV.A, OV.B, QK.A, QK.B):
        finite(factor, model, "the composition of heads")
    readers = {"q": QK, "k": QK.T, "v": OV}
    # ‖A B‖ = ‖R_A B‖ where A = Q R with orthonormal columns Q: all products stay d_head wide.
    written, ours = torch.linalg.qr(OV.A)[1] @ OV.B, OV.norm()
    frames = []
    for kind in COMPOSITIONS:
        read = readers[kind]
        reading = read.A @ torch.linalg.qr(read.B.mT)[1].mT
        theirs = read.norm()
        for to in range(1, model.cfg.n_layers):
            products = torch.einsum("lhrd,gds->lhgrs", written[:to], reading[to])
            sizes = ours[:to, :, None] * theirs[to][None, None]
            value = products.flatten(-2).norm(dim=-1) / sizes
            index = np.stack(np.unravel_index(np.arange(value.numel()), value.shape), axis=1)
            frame = pd.DataFrame(index, columns=["from_layer", "from_head", "to_head"])
            frames.append(frame.assign(kind=kind, to_layer=to, value=to_numpy(value.flatten())))
    columns = ["kind", "from_layer", "from_head", "to_layer", "to_head", "value", "baseline"]
    if not frames:
        return pd.DataFrame(columns=columns)
    return pd.concat(frames, ignore_index=True).assign(baseline=model.cfg.d_model**-0.5)[columns]
