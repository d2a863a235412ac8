"""Addition modulo a prime: the model that groks (Power et al. 2022, Nanda et al. 2023).

A sequence is a, b, =; the answer (a + b) mod p is asked at the last position. Every pair is known,
and the training pairs are a fixed share of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.core.config import TransformerConfig
from interp.model import HookedTransformer
from interp.training.config import TrainConfig
from interp.training.data import SPLITS, SampledData, Split

P = 113
SHARE = 0.3
"""Of all pairs, those trained on."""
KEY = 0.01
"""A frequency is a key one where it explains so much of the logits' variance."""


def config(p: int = P) -> TransformerConfig:
    """One layer, 4 heads, d_model 128, 512 neurons, no norm, as in Nanda et al. 2023."""
    return TransformerConfig(
        n_layers=1,
        d_model=128,
        n_heads=4,
        d_mlp=512,
        d_vocab=p + 1,
        n_ctx=3,
        norm="none",
        final_norm=False,
        activation="relu",
        qkv_bias=False,
        attn_out_bias=False,
    )


def training() -> TrainConfig:
    """Full batches and strong weight decay. With smaller initial weights it does not memorise
    first."""
    return TrainConfig(
        steps=15_000,
        lr=1e-3,
        min_lr=1e-3,
        warmup=10,
        weight_decay=1.0,
        decay_all=True,
        betas=(0.9, 0.98),
        grad_clip=None,
        init_std=0.0884,
        eval_every=100,
        eval_batches=1,
        checkpoints=40,
        double_loss=True,
    )


def pairs(p: int = P) -> np.ndarray:
    """All sequences with their answers: [p², 4], a, b, =, (a + b) mod p."""
    a, b = np.divmod(np.arange(p * p), p)
    return np.stack([a, b, np.full(p * p, p), (a + b) % p], axis=1)


def split(p: int = P, share: float = SHARE, seed: int = 0) -> dict[Split, np.ndarray]:
    """The pairs trained on, and all others."""
    order = np.random.default_rng(seed).permutation(p * p)
    cut = int(p * p * share)
    every = pairs(p)
    return {"train": every[order[:cut]], "val": every[order[cut:]]}


def data(p: int = P, share: float = SHARE, seed: int = 0) -> SampledData:
    """The whole split as every batch, asked at the last position alone; the size of a batch is
    that of the split."""
    parts = split(p, share, seed)

    def draw(rng: np.random.Generator, which: Split, size: int) -> np.ndarray:
        rows = parts[which].copy()
        rows[:, :3] = ~rows[:, :3]  # given, not asked
        return rows

    return SampledData(draw, None, f"modadd {p} {share} {sorted(SPLITS)}", seed=seed)


@torch.no_grad()
def logits(model: HookedTransformer) -> Float[Tensor, "a b c"]:
    """The logit of each answer c to each pair, in float64; that of "=" is left out."""
    p = model.cfg.d_vocab - 1
    every = torch.from_numpy(pairs(p)[:, :3])
    asked = torch.tensor([[False, False, True]]).expand(len(every), -1)
    found = model.logits_at(every.to(model.device), asked.to(model.device))
    return found.double().cpu()[:, :p].view(p, p, p)


def key_frequencies(model: HookedTransformer) -> pd.DataFrame:
    """How much each frequency carries: frequency embedding logits key.

    "embedding" is its share of the squared norm of the numbers' embeddings, constant left out, and
    "logits" the share of the logits' variance over answers that cos(2πk(a + b − c)/p) explains
    (Nanda et al. 2023); "key" is whether the latter reaches 1 %.
    """
    p = model.cfg.d_vocab - 1
    found = logits(model)
    centred = found - found.mean(-1, keepdim=True)
    waves = torch.fft.rfft(_by_offset(centred), norm="forward")[1:]
    spectrum = torch.fft.rfft(model.W_E[:p].double().cpu(), dim=0)[1:].abs().square().sum(-1)
    share = 2 * waves.abs().square() / centred.square().mean()
    return pd.DataFrame(
        {
            "frequency": np.arange(1, p // 2 + 1),
            "embedding": (spectrum / spectrum.sum()).numpy(),
            "logits": share.numpy(),
            "key": (share >= KEY).numpy(),
        }
    )


def progress(models: Mapping[int, HookedTransformer], keys: list[int]) -> pd.DataFrame:
    """Through training, by step: accuracy and loss (nats per answer) on trained and held-out pairs,
    two progress measures, and the squared norm of the weights.

    restricted_loss: on all pairs, with the logits' waves of the key frequencies alone, and
    excluded_loss: on trained pairs, without them (Nanda et al. 2023, §5.1).
    """
    rows = []
    for step, model in sorted(models.items()):
        p, found = model.cfg.d_vocab - 1, logits(model)
        waves = _waves(found, keys)
        train, val = (torch.from_numpy(part) for part in split(p).values())
        norm = sum(float(w.double().square().sum()) for w in model.state_dict().values())
        rows.append(
            {
                "step": step,
                "accuracy": _right(found, torch.from_numpy(pairs(p))),
                "train_accuracy": _right(found, train),
                "val_accuracy": _right(found, val),
                "train_loss": _loss(found, train),
                "val_loss": _loss(found, val),
                "restricted_loss": _loss(waves, torch.from_numpy(pairs(p))),
                "excluded_loss": _loss(found - waves, train),
                "squared_norm": norm,
            }
        )
    return pd.DataFrame(rows)


def evaluate(model: HookedTransformer) -> pd.DataFrame:
    """What the model can do, and by which frequencies: task split measure n value."""
    p, found = model.cfg.d_vocab - 1, logits(model)
    table = key_frequencies(model)
    keys = table[table["key"]]
    every, waves = torch.from_numpy(pairs(p)), _waves(found, list(keys["frequency"]))
    rows = [("addition", "all pairs", "first", len(every), _right(found, every))]
    for name, part in split(p).items():
        chosen = torch.from_numpy(part)
        rows.append(("addition", name, "first", len(part), _right(found, chosen)))
        rows.append(("addition", name, "loss", len(part), _loss(found, chosen)))
    rows += [
        (f"frequency {row.frequency}", "all pairs", measure, len(every), float(value))
        for row in keys.itertuples()
        for measure, value in (("embedding", row.embedding), ("logits", row.logits))
    ]
    rows += [
        ("key frequencies alone", "all pairs", "first", len(every), _right(waves, every)),
        ("without them", "all pairs", "first", len(every), _right(found - waves, every)),
        ("without them", "all pairs", "loss", len(every), _loss(found - waves, every)),
    ]
    return pd.DataFrame(rows, columns=["task", "split", "measure", "n", "value"])


def _by_offset(found: Float[Tensor, "a b c"]) -> Float[Tensor, " p"]:
    """The mean logit by how far a + b lies past c."""
    p = len(found)
    a, b, d = torch.meshgrid(*[torch.arange(p)] * 3, indexing="ij")
    return found[a, b, (a + b - d) % p].mean((0, 1))


def _waves(found: Float[Tensor, "a b c"], keys: list[int]) -> Float[Tensor, "a b c"]:
    """The part of the logits that cos(2πk(a + b − c)/p) of these frequencies makes."""
    p, kept = len(found), torch.zeros(len(found) // 2 + 1)
    kept[keys] = 1
    by_offset = torch.fft.irfft(torch.fft.rfft(_by_offset(found)) * kept, n=p)
    a, b, c = torch.meshgrid(*[torch.arange(p)] * 3, indexing="ij")
    return by_offset[(a + b - c) % p]


def _right(found: Tensor, chosen: Tensor) -> float:
    a, b, _, answer = chosen.T
    return float((found[a, b].argmax(-1) == answer).double().mean())


def _loss(found: Tensor, chosen: Tensor) -> float:
    a, b, _, answer = chosen.T
    return float(F.cross_entropy(found[a, b], answer))
