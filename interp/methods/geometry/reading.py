"""Word vectors read from a model: its tables, and what its layers make of words in texts.

Of an encoder–decoder, vectors in texts are the encoder's, as those of `model.pool`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from interp.core.finite import finite, finite_cache
from interp.core.indices import index
from interp.core.precision import to_numpy

from .vectors import Embedding

BATCH = 32
"""Texts per forward pass of contextual vectors."""


def embedding(
    model: Any,
    side: Literal["embed", "unembed"] = "embed",
    layer: int | None = None,
    texts: Sequence[str] | None = None,
    site: Literal["resid_pre", "resid_post"] = "resid_post",
) -> Embedding:
    """The word vectors of a model: rows of W_E, columns of W_U, or what it makes of words in texts.

    With `layer` and `texts`: one row per distinct token of the texts (special tokens left out), the
    mean of `site` of that layer over all places where the token stands; of an encoder–decoder, of
    its encoder.

    A word is looked up as running text holds it, after a space (" king"), and if that is not one
    token as it is written ("king"); a word that begins with a space is taken literally. Case is the
    tokenizer's: an uncased one folds it, any other does not. A word of several tokens raises
    ValueError, naming the pieces. A model without tokenizer names its rows by number; one without
    unembedding raises at side="unembed".
    """
    if (layer is None) != (texts is None):
        raise ValueError("contextual vectors need both layer= and texts=")
    if side not in ("embed", "unembed"):
        raise ValueError(f"side={side!r}: expected 'embed' or 'unembed'")
    if layer is not None:
        return _contextual(reader(model), list(texts or ()), layer, site)
    table = model.W_U.T if side == "unembed" else model.W_E
    vectors = to_numpy(finite(table, model, "word vectors"))
    ids = range(len(vectors))
    if model.tokenizer is None:
        return Embedding(vectors, [str(i) for i in ids])
    return Embedding(vectors, model.tokenizer.str_tokens(ids), lambda w: _token(model.tokenizer, w))


def reader(model: Any) -> Any:
    """The stack that reads texts: the encoder of an encoder–decoder, with the model's hooks."""
    encoder = getattr(model, "encoder", None)
    return model if encoder is None else encoder.with_hooks(model.fwd_hooks)


def _contextual(model: Any, texts: list[str], layer: int, site: str) -> Embedding:
    if site not in ("resid_pre", "resid_post"):
        raise ValueError(f"site={site!r}: expected 'resid_pre' or 'resid_post'")
    if model.tokenizer is None:
        raise ValueError("contextual vectors need a tokenizer, and this model has none")
    layer = index(layer, model.cfg.n_layers, "layer")
    if not texts:
        raise ValueError("contextual vectors need at least one text")
    sums: dict[int, np.ndarray] = {}
    counts: dict[int, int] = {}
    for start in range(0, len(texts), BATCH):
        tokens = model.to_tokens(texts[start : start + BATCH])
        cache = finite_cache(model, tokens, (site, layer))
        vectors = to_numpy(cache[site, layer][tokens.real])
        ids = tokens.ids[tokens.real].cpu().numpy()
        for token in np.unique(ids).tolist():
            here = vectors[ids == token]
            sums[token] = sums.get(token, 0.0) + here.sum(axis=0, dtype=np.float64)
            counts[token] = counts.get(token, 0) + len(here)
    ids = sorted(sums.keys() - model.tokenizer.special_ids)
    if not ids:
        raise ValueError("the texts hold nothing but special tokens")
    means = np.stack([sums[token] / counts[token] for token in ids]).astype(vectors.dtype)
    place = {token: row for row, token in enumerate(ids)}

    def resolve(word: str) -> int:
        token = _token(model.tokenizer, word)
        if token not in place:
            raise ValueError(f"{word!r} does not stand in any of the {len(texts)} texts")
        return place[token]

    return Embedding(means, model.tokenizer.str_tokens(ids), resolve)


def _token(tokenizer: Any, word: str) -> int:
    """The id of a word; see `embedding` for the spellings tried."""
    if not word.strip():
        raise ValueError(f"{word!r} is not a word")
    if not word[0].isspace():
        try:
            return tokenizer.single(f" {word}")
        except ValueError:
            pass
    return tokenizer.single(word)
