"""A planted vocabulary: analogies that hold exactly, an axis along which words are graded."""

from __future__ import annotations

from itertools import permutations

import pandas as pd
import tokenizers
import torch
from jaxtyping import Float
from tokenizers import models, pre_tokenizers
from torch import Tensor

from interp.core import chance
from interp.core.chance import seeded
from interp.core.config import TransformerConfig
from interp.core.tokenizer import Tokenizer

from .base import Planted, Spaces, Truth, blank
from .controls import with_state

RELATIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "gender": (
        ("man", "woman"), ("king", "queen"), ("prince", "princess"), ("uncle", "aunt"),
        ("brother", "sister"), ("son", "daughter"), ("father", "mother"), ("nephew", "niece"),
        ("actor", "actress"), ("duke", "duchess"),
    ),
    "plural": (
        ("cat", "cats"), ("dog", "dogs"), ("tree", "trees"), ("house", "houses"), ("car", "cars"),
        ("bird", "birds"), ("book", "books"), ("apple", "apples"), ("river", "rivers"),
        ("stone", "stones"),
    ),
    "capital": (
        ("france", "paris"), ("italy", "rome"), ("japan", "tokyo"), ("egypt", "cairo"),
        ("spain", "madrid"), ("greece", "athens"), ("cuba", "havana"), ("peru", "lima"),
        ("norway", "oslo"), ("kenya", "nairobi"),
    ),
}  # fmt: skip
SCALE = ("freezing", "cold", "cool", "mild", "warm", "hot", "boiling")
N_NOISE = 150
UNKNOWN = "[unk]"
OWN_ON_SCALE = 0.25
"""Length of what a graded word has of its own, beside its place −1 … 1 on the axis."""


def vocabulary(*, seed: int = 0, dtype: torch.dtype = torch.float64) -> Planted:
    """A table of 218 words for `interp.embedding`: W_E is the whole model.

    Blocks: pair (one axis per pair of words) | gender, plural, capital, temperature (one axis
    each) | grade (one axis per graded word) | rest.

    - the two words of pair i are e(i) − r and e(i) + r, with r the axis of their relation. All have
      length √2, so b − a + c = e(c's pair) + r is the answer itself, before and after normalising:
      the highest cosine there can be. The two are orthogonal, and c is nearer to the first words of
      all other pairs (cosine ½): who answers with a neighbour of c is always wrong.
    - the graded words lie at −1, −⅔ … 1 on temperature, plus a quarter of an axis of their own.
    - 150 words and the unknown token are random vectors of about length one, moved together so that
      the mean of the table is zero and centring changes nothing.

    Attention is zero and the unembedding is the embedding (tied): logits are dot products of words.
    `analogies` asks every ordered couple of pairs of a relation.
    """
    generator = seeded(seed)
    pairs = [(kind, *pair) for kind, found in RELATIONS.items() for pair in found]
    spaces = Spaces(
        pair=len(pairs), **dict.fromkeys(RELATIONS, 1), temperature=1, grade=len(SCALE), rest=22
    )
    words = [UNKNOWN, *(word for _, *pair in pairs for word in pair), *SCALE]
    words += [f"noise{i}" for i in range(N_NOISE)]
    backend = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN)
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = Tokenizer(backend.to_str(), {"unk_token": UNKNOWN}, name="planted-words")
    cfg = TransformerConfig(
        n_layers=1, d_model=spaces.d_model, n_heads=1, d_vocab=len(words), n_ctx=16, norm="none",
        final_norm=False, positions="none", qkv_bias=False, attn_out_bias=False, tied=True,
    )  # fmt: skip
    model = blank(cfg, "vocabulary", tokenizer)
    model.W_E.copy_(_table(spaces, [kind for kind, *_ in pairs], len(words), generator))
    truth = Truth(
        directions=spaces.directions(*RELATIONS, "temperature"),
        note="The difference of every pair is its relation's axis; the graded words lie in order.",
    )
    asked = [
        (kind, *one, *two)
        for kind, found in RELATIONS.items()
        for one, two in permutations(found, 2)
    ]
    analogies = pd.DataFrame(asked, columns=["category", "a", "b", "c", "expected"])
    return Planted(
        "vocabulary", model.to(dtype), truth, analogies=analogies, scales={"temperature": SCALE}
    )


def _table(
    spaces: Spaces, kinds: list[str], n_words: int, generator: torch.Generator
) -> Float[Tensor, "word d_model"]:
    """The vectors, in the order of the words: unknown, pairs, graded, noise."""
    n_pairs, n_planted = len(kinds), 1 + 2 * len(kinds) + len(SCALE)
    table = chance.normal(n_words, spaces.d_model, generator=generator)
    table /= table.norm(dim=1, keepdim=True)
    table[1:n_planted] = 0.0
    first, pair = 1 + 2 * torch.arange(n_pairs), spaces["pair"]
    relation = torch.cat([spaces[kind] for kind in kinds])
    table[first, pair], table[first, relation] = 1.0, -1.0
    table[first + 1, pair], table[first + 1, relation] = 1.0, 1.0
    graded = torch.arange(1 + 2 * n_pairs, n_planted)
    places = torch.linspace(-1, 1, len(SCALE), dtype=torch.float64)
    table[graded, spaces["temperature"]] = places
    table[graded, spaces["grade"]] = OWN_ON_SCALE
    noise = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(n_planted, n_words)])
    table[noise] -= table.sum(0) / len(noise)
    return table


def shuffled_control(planted: Planted, seed: int = 0) -> Planted:
    """The vocabulary with its vectors dealt out to the words at random: no analogy holds.

    Raises ValueError on a model without planted analogies.
    """
    if planted.analogies is None:
        raise ValueError(
            f"{planted.name!r} has no planted analogies to shuffle; use random_control or "
            "permuted_control"
        )
    order = chance.permutation(planted.model.cfg.d_vocab, seeded(seed))
    state = planted.model.state_dict()
    state["embed.W_E"] = state["embed.W_E"][order.to(planted.model.device)]
    truth = Truth(note="Control: the vectors belong to other words; there is nothing to find.")
    return with_state(planted, "shuffled", state, truth)
