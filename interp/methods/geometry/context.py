"""What a model makes of places in texts, at every layer.

Layer l is what layer l reads, n_layers what the last one leaves (before the final norm), as in
`interp.lens`. Of an encoder–decoder it is the encoder that reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from interp.core.finite import finite_cache
from interp.core.indices import Indices, indices, whole_number
from interp.core.occurrence import word_span
from interp.core.precision import to_numpy
from interp.core.tokens import Tokens
from interp.core.unknown import warn_of_unknown

from .reading import BATCH, reader
from .vectors import Embedding


@dataclass(frozen=True, eq=False)
class Places:
    """The residual stream at some places of some texts."""

    vectors: np.ndarray
    """[layer, place, d_model], float32 or float64."""
    layers: Sequence[int]
    """What `vectors` runs over."""
    tokens: Sequence[str]
    """[place] the token that stands there, or the text whose mean it is."""
    text: np.ndarray
    """[place] which text it is in."""

    def at(self, layer: int) -> np.ndarray:
        """[place, d_model] of one of the layers that were read."""
        number = whole_number(layer, "layer")
        if number not in self.layers:
            raise ValueError(f"layer={number}: expected one of {list(self.layers)}")
        return self.vectors[list(self.layers).index(number)]

    def by_layer(self) -> dict[int, np.ndarray]:
        """Layer to vectors, as `alignment` takes them."""
        return {layer: self.vectors[i] for i, layer in enumerate(self.layers)}

    def embedding(self, layer: int) -> Embedding:
        """The vectors of one layer, a row for each place; a word is the first place where it
        stands."""
        return Embedding(self.at(layer), list(self.tokens))


def at_words(
    model: Any, texts: Sequence[str], words: Sequence[str], layers: Indices | None = None
) -> Places:
    """One place per text: the last token of its word.

    A word is found between letters that are none of its own and whatever its case ("bank" is not in
    "banks"); "bank#2" is its second occurrence. Raises ValueError, naming the text, where the word
    is missing, stands there more than once without such a number, lies beyond the context, or is
    read differently in the text than at its beginning.
    """
    model = _checked(model, texts)
    if len(words) != len(texts):
        raise ValueError(f"{len(words)} words for {len(texts)} texts: expected one per text")
    rows, at = [], []
    for text, word in zip(texts, words, strict=True):
        ids, place = _find(model, text, word)
        rows.append(ids)
        at.append([place])
    return _read(model, rows, at, layers)


def at_tokens(
    model: Any,
    texts: Sequence[str],
    n: int = 1000,
    seed: int = 0,
    layers: Indices | None = None,
) -> Places:
    """At most `n` places of the texts, drawn with `seed`; special tokens are left out.

    A text longer than the context is cut to it. Raises ValueError where the texts hold nothing but
    special tokens.
    """
    model = _checked(model, texts)
    rows = [model.tokenizer.encode(text)[: model.cfg.n_ctx] for text in texts]
    there = _plain(model, rows)
    if len(there) > n:
        drawn = np.random.default_rng(seed).choice(len(there), n, replace=False)
        there = [there[i] for i in np.sort(drawn)]
    at: list[list[int]] = [[] for _ in rows]
    for row, place in there:
        at[row].append(place)
    return _read(model, rows, at, layers)


def of_texts(model: Any, texts: Sequence[str], layers: Indices | None = None) -> Places:
    """One vector per text: the mean over its tokens, special ones left out. So models with
    different tokenizers can be compared.

    A text longer than the context is cut to it. Raises ValueError on a text of nothing but special
    tokens.
    """
    model = _checked(model, texts)
    rows = [model.tokenizer.encode(text)[: model.cfg.n_ctx] for text in texts]
    at: list[list[int]] = [[] for _ in rows]
    for row, place in _plain(model, rows):
        at[row].append(place)
    empty = next((i for i, places in enumerate(at) if not places), None)
    if empty is not None:
        raise ValueError(f"{texts[empty]!r} holds nothing but special tokens")
    chosen = _layers(model, layers)
    means = []
    for part, owner in _batches(model, rows, at, chosen):
        own = [np.flatnonzero(owner == text) for text in np.unique(owner)]
        means.append(np.stack([part[:, one].mean(axis=1) for one in own], axis=1))
    return Places(np.concatenate(means, axis=1), chosen, list(texts), np.arange(len(texts)))


def _checked(model: Any, texts: Sequence[str]) -> Any:
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"texts={texts!r}: expected a list of one text or more")
    model = reader(model)
    if model.tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer, so it cannot read texts")
    warn_of_unknown(model.tokenizer, texts)
    return model


def _layers(model: Any, layers: Indices | None) -> list[int]:
    """0 is what the first layer reads, n_layers (or −1) what the last one leaves."""
    n_streams = model.cfg.n_layers + 1
    return sorted(range(n_streams) if layers is None else indices(layers, n_streams, "layers"))


def _plain(model: Any, rows: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Row and position of every token that stands for text."""
    special = model.tokenizer.special_ids
    there = [
        (i, p) for i, row in enumerate(rows) for p, one in enumerate(row) if one not in special
    ]
    if not there:
        raise ValueError("the texts hold nothing but special tokens")
    return there


def _find(model: Any, text: str, word: str) -> tuple[list[int], int]:
    """The ids of a text, and the position of its word's last token."""
    encode, cut = model.tokenizer.encode, model.cfg.n_ctx
    end = word_span(text, word, fold=True)[1]
    ids, bare, part = encode(text), encode(text, bos=False), encode(text[:end], bos=False)
    lead = next(
        (k for k in range(len(ids) - len(bare) + 1) if ids[k : k + len(bare)] == bare), None
    )
    if lead is None or not part or bare[: len(part)] != part:
        raise ValueError(f"the tokens of {text[:end]!r} are not those of the whole text {text!r}")
    place = lead + len(part) - 1
    if place >= cut:
        raise ValueError(
            f"{word!r} is token {place} of {text[:40]!r}…, and the model reads {cut}; shorten it"
        )
    return ids[:cut], place


def _read(
    model: Any,
    rows: Sequence[Sequence[int]],
    at: Sequence[Sequence[int]],
    layers: Indices | None,
) -> Places:
    chosen = _layers(model, layers)
    parts, owners = zip(*_batches(model, rows, at, chosen), strict=True)
    ids = [rows[i][p] for i, places in enumerate(at) for p in places]
    tokens = model.tokenizer.str_tokens(ids)
    return Places(np.concatenate(parts, axis=1), chosen, tokens, np.concatenate(owners))


@torch.no_grad()
def _batches(
    model: Any, rows: Sequence[Sequence[int]], at: Sequence[Sequence[int]], layers: Sequence[int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Vectors [layer, place, d_model] of some texts, and which text each place is in [place]."""
    sites = [("resid_pre", 0) if layer == 0 else ("resid_post", layer - 1) for layer in layers]
    pad = model.tokenizer.pad_id
    wanted = [i for i, places in enumerate(at) if places]
    for start in range(0, len(wanted), BATCH):
        some = wanted[start : start + BATCH]
        tokens = model.accept(
            Tokens.from_rows([rows[i] for i in some], pad_id=0 if pad is None else pad)
        )
        cache = finite_cache(model, tokens, sites)
        row = torch.tensor([number for number, i in enumerate(some) for _ in at[i]])
        pos = torch.tensor([p for i in some for p in at[i]])
        streams = [to_numpy(cache[site][row.to(tokens.device), pos.to(tokens.device)])
                   for site in sites]  # fmt: skip
        yield np.stack(streams), np.array([some[number] for number in row.tolist()])
