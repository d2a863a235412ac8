"""A planted lookup table in an MLP, behind features that are linear, only XOR, or absent.

Geva et al. 2021 read MLPs as key-value memories: a neuron that fires on its key adds its value.
Here a key is a pair (a, b), and its features show what a linear probe can and cannot find.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from interp.core import chance
from interp.core.chance import seeded
from interp.core.config import TransformerConfig
from interp.core.tokens import Tokens
from interp.model import HookedTransformer

from .base import (
    BOS,
    GAIN,
    Attends,
    Labelled,
    Planted,
    Prompts,
    Spaces,
    Truth,
    blank,
    distinct,
    links,
)  # fmt: skip
from .crowd import HeadWeights, check_count, elsewhere, seats

SIDE = 4
"""How many a, how many b, how many c there are."""
A, B, C = (range(1 + SIDE * i, 1 + SIDE * (i + 1)) for i in range(3))
FILLERS = range(13, 37)
VALUES = range(37, 37 + SIDE * SIDE)
D_VOCAB = VALUES.stop
N_FILLERS = 8
LENGTH = N_FILLERS + 4
D_HEAD = len(FILLERS)
SHARPNESS = 16.0


def lookup(
    n_distractors: int = 16, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Planted:
    """One layer: a head brings a to the last token b, and neuron (a, b) writes their value.

    Residual stream: tok (token, one-hot) | key (the a of the prompt) | bag (how often each filler
    stands in it) | out (values; W_U reads 8 × it) | junk. β = 16:

    - head "key mover". W_Q: every b → β e(0). W_K: every a → e(0). W_V: a i → e(i). W_O: e(i) →
      key i.
    - head "bag". W_Q = W_K = 0, so it attends alike to all 12 tokens. W_V: filler f → e(f), and
      nothing else. W_O: e(f) → 12 bag f. It has no part in the lookup.
    - neuron (i, j): relu(key i + tok b j − 1) is 1 on its own pair and 0 on all others. It writes
      out value(i, j); the table of values is a random permutation.
    - distractor neurons: inputs and outputs of the same norms at random, bias 0, written to junk.

    Prompts: BOS; c, a and eight fillers in random order; b. The corrupted prompt has another a.
    Bits: bit(a i) = i mod 2, and so for b and c. Probed at the last token behind attention
    (resid_mid), where a and b stand one-hot:

    - "a" = bit(a) is linear; so is "b".
    - "xor" = bit(a) ⊕ bit(b) is not: a linear map can say f(a) + g(b), and over the balanced pairs
      that has no correlation with the XOR. Behind the MLP, where every pair has its own direction,
      it is linear.
    - "c" = bit(c) is absent: no head reads a c, so the stream at the last token is the same for
      all.

    `labelled(n)` goes through all 64 triples (a, b, c) equally often (up to the remainder of n), in
    random order; the random fillers are the noise that a probe can overfit.
    """
    check_count(n_distractors)
    generator = seeded(seed)
    n_keys = SIDE * SIDE
    spaces = Spaces(tok=D_VOCAB, key=SIDE, bag=len(FILLERS), out=n_keys, junk=n_keys)
    model = _model(spaces, d_mlp=n_keys + n_distractors)
    mover, bag = seats(2, 2, generator)
    for head, weights in zip((mover, bag), _heads(spaces), strict=True):
        for name, matrix in weights._asdict().items():
            getattr(model.blocks[0].attn, f"W_{name}")[head] = matrix
    value = chance.permutation(n_keys, generator).view(SIDE, SIDE)
    own = chance.permutation(model.cfg.d_mlp, generator)[:n_keys]
    _set_neurons(model.blocks[0].mlp, spaces, own, value, generator)
    truth = Truth(
        roles={"key_mover": ((0, mover),)},
        neurons=tuple(sorted((0, int(neuron)) for neuron in own)),
        attends=(Attends((0, mover), "end", "a"),),
        directions=spaces.directions("tok", "key", "bag", "out", "junk"),
        note=(
            f"Head 0.{mover} brings a; 16 neurons, one per pair, hold the table, each needed by a "
            f"sixteenth of the prompts. Head 0.{bag} is noise for probes."
        ),
    )
    return Planted("lookup", model.to(dtype), truth, lambda n, g: _prompts(n, g, value), _labelled)


def _model(spaces: Spaces, d_mlp: int) -> HookedTransformer:
    """One layer without positions; "out" is read as the logits of the values."""
    cfg = TransformerConfig(
        n_layers=1, d_model=spaces.d_model, n_heads=2, d_head=D_HEAD, d_vocab=D_VOCAB, d_mlp=d_mlp,
        n_ctx=LENGTH, norm="none", final_norm=False, positions="none", attn_scale=1.0,
        qkv_bias=False, attn_out_bias=False, activation="relu",
    )  # fmt: skip
    model = blank(cfg, "lookup")
    model.W_E[:, spaces["tok"]] = torch.eye(D_VOCAB, dtype=torch.float64)
    model.W_U[spaces["out"], torch.tensor(VALUES)] = GAIN
    return model


def _heads(spaces: Spaces) -> tuple[HeadWeights, HeadWeights]:
    """Key mover and bag."""
    tok, read, write = spaces["tok"], (spaces.d_model, D_HEAD), (D_HEAD, spaces.d_model)
    side, words = torch.arange(SIDE), torch.arange(len(FILLERS))
    mover = HeadWeights(
        Q=links(read, (tok[B], 0, SHARPNESS)),
        K=links(read, (tok[A], 0, 1.0)),
        V=links(read, (tok[A], side, 1.0)),
        O=links(write, (side, spaces["key"], 1.0)),
    )
    bag = HeadWeights(
        Q=links(read),
        K=links(read),
        V=links(read, (tok[FILLERS], words, 1.0)),
        O=links(write, (words, spaces["bag"], float(LENGTH))),
    )
    return mover, bag


def _set_neurons(
    mlp, spaces: Spaces, own: Tensor, value: Tensor, generator: torch.Generator
) -> None:
    """Neuron own[4 i + j] is that of the pair (i, j); all others are distractors."""
    others = torch.ones(mlp.d_mlp, dtype=torch.bool)
    others[own] = False
    n_others = int(others.sum())
    noise = chance.normal(spaces.d_model, n_others, generator=generator)
    mlp.W_in[:, others] = noise / noise.norm(dim=0) * 2**0.5
    if n_others:
        narrow = chance.normal(n_others, SIDE * SIDE, generator=generator)
        written = elsewhere(narrow, spaces, generator)
        mlp.W_out[others] = written / written.norm(dim=1, keepdim=True)
    i, j = (index.flatten() for index in torch.meshgrid(*[torch.arange(SIDE)] * 2, indexing="ij"))
    mlp.W_in[spaces["key"][i], own] = 1.0
    mlp.W_in[spaces["tok"][B][j], own] = 1.0
    mlp.b_in[own] = -1.0
    mlp.W_out[own, spaces["out"][value[i, j]]] = 1.0


def _ids(abc: Int[Tensor, "batch 3"], generator: torch.Generator) -> tuple[Tensor, dict]:
    """Prompts that hold these a, b, c (0 … 3), and where a and c stand."""
    n = len(abc)
    fill = chance.integers(FILLERS.start, FILLERS.stop, n, LENGTH - 2, generator=generator)
    ends = torch.full((n, 1), BOS), abc[:, 1:2] + B.start
    ids = torch.cat([ends[0], fill, ends[1]], dim=1)
    at_a, at_c = distinct(n, 2, range(1, LENGTH - 1), generator).T
    row = torch.arange(n)
    ids[row, at_a], ids[row, at_c] = abc[:, 0] + A.start, abc[:, 2] + C.start
    return ids, {"a": at_a, "c": at_c, "end": torch.full((n,), LENGTH - 1)}


def _prompts(n: int, generator: torch.Generator, value: Int[Tensor, "a b"]) -> Prompts:
    abc = chance.integers(0, SIDE, n, 3, generator=generator)
    ids, roles = _ids(abc, generator)
    other = (abc[:, 0] + chance.integers(1, SIDE, n, generator=generator)) % SIDE
    corrupted = ids.clone()
    corrupted[torch.arange(n), roles["a"]] = other + A.start
    answer, wrong = (value[a, abc[:, 1]] + VALUES.start for a in (abc[:, 0], other))
    return Prompts.of(ids, corrupted, answer, wrong, roles)


def _labelled(n: int, generator: torch.Generator) -> Labelled:
    cell = torch.arange(n)[chance.permutation(n, generator)] % SIDE**3
    abc = torch.stack([cell // SIDE**2, cell // SIDE % SIDE, cell % SIDE], dim=1)
    ids, roles = _ids(abc, generator)
    a, b, c = (abc % 2).T
    return Labelled(
        Tokens(ids, roles=roles, bos=True),
        {"a": a, "b": b, "xor": a ^ b, "c": c},
        ("resid_mid", 0),
        -1,
        linear=("a", "b"),
        hidden=("xor", "c"),
    )
