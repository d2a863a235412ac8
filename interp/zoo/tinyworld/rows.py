"""Training rows: whole sentences one behind the other, and spans of random words, repeated."""

from __future__ import annotations

import hashlib
import json
from functools import cache

import numpy as np

from interp.core.tokenizer import Tokenizer
from interp.training.data import SampledData
from interp.training.data import Split as DataSplit
from interp.training.vocabulary import SPECIAL, from_words

from . import grammar
from .lexicon import read

SPANS = 0.15
"""Share of rows that hold nothing but repeated spans."""
ENDS = 0.3
"""Share of the other rows that end in one, of random words or of sentences of the row itself."""
SPAN = (4, 40)
"""Shortest and longest span, in words; its logarithm is uniform."""
TIMES = (2, 4)
"""How often a span stands there, at least and at most."""
ROOM = 24
"""Words of a row, at least, that its ending takes."""


@cache
def tokenizer() -> Tokenizer:
    """Whole words, marks, pairs of digits; `<s>` comes first of its own accord."""
    pairs = [f"{number:02}" for number in range(100)]
    words = [word for word in grammar.words() if word not in pairs]
    return from_words([*pairs, *words], "tinyworld", digits=2, bos=True)


@cache
def vocab() -> dict[str, int]:
    """The id of each word."""
    return tokenizer().vocab()


def special(role: str) -> int:
    """The id of a special token: special("bos_token")."""
    return vocab()[SPECIAL[role]]


@cache
def language(split: str = "trained", kind: str | None = None) -> grammar.Grammar:
    """The sentences of a split, of all kinds or of one."""
    chosen = [t for t in grammar.templates() if t.split == split and kind in (None, t.kind)]
    return grammar.Grammar(chosen, vocab())


@cache
def ordinary() -> np.ndarray:
    """Ids of all words that are not special."""
    return np.arange(len(SPECIAL), tokenizer().vocab_size)


def data(n_ctx: int = 128, seed: int = 0) -> SampledData:
    """Rows of n_ctx + 1 ids without end, each beginning with `<s>`; a row is a function of the
    seed, the split and the batch's number.

    Sentences are drawn from the trained ones alone. What nobody can know is not asked: the words of
    a random span where they first stand, and its first word where it begins again.
    """
    longest, start = 2 * SPAN[1], special("bos_token")
    if n_ctx < longest:
        raise ValueError(f"n_ctx={n_ctx}: a span and its repetition need {longest}")

    def draw(rng: np.random.Generator, split: DataSplit, size: int) -> np.ndarray:
        rows = np.full((size, n_ctx + 1), start)
        spans = rng.random(size) < SPANS
        rows[~spans, 1:] = packed(rng, int((~spans).sum()), n_ctx)
        for row in np.flatnonzero(spans):
            rows[row, 1:] = repeated(rng, n_ctx)
        for row in np.flatnonzero(~spans & (rng.random(size) < ENDS)):
            _end_again(rng, rows[row])
        return rows

    return SampledData(draw, tokenizer(), f"tinyworld {n_ctx} {_digest()}", seed=seed)


def packed(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    """n rows that begin with a sentence and are full; the last one may be cut off."""
    known = language()
    rows = np.empty((n, width), dtype=int)
    ids, starts = np.empty(0, dtype=int), np.empty(0, dtype=int)
    at = 0
    for row in range(n):
        while at + width > len(ids):
            missing = (n - row) * (width + known.longest) + at - len(ids)
            more = known.draw(rng, int(missing / known.mean_length) + 1).ids
            real = more >= 0
            ends = np.cumsum(real.sum(axis=1))
            starts = np.concatenate([starts, len(ids) + ends - real.sum(axis=1)])
            ids = np.concatenate([ids, more[real]])
        rows[row] = ids[at : at + width]
        found = np.searchsorted(starts, at + width)
        at = int(starts[found]) if found < len(starts) else len(ids)
    return rows


def repeated(rng: np.random.Generator, width: int) -> np.ndarray:
    """A row of repeated spans; the last one may be cut off."""
    parts, total = [], 0
    while total < width:
        length = round(np.exp(rng.uniform(*np.log(SPAN))))
        parts.append(_span(rng, length, length * int(rng.integers(TIMES[0], TIMES[1] + 1))))
        total += len(parts[-1])
    return np.concatenate(parts)[:width]


def _span(rng: np.random.Generator, length: int, total: int) -> np.ndarray:
    """A span of random words, again and again: ids, or ~id where the word cannot be known."""
    ids = np.resize(rng.choice(ordinary(), length, replace=False), total)
    unknown = np.arange(total) % length == 0
    unknown[:length] = True
    return np.where(unknown, ~ids, ids)


def _end_again(rng: np.random.Generator, row: np.ndarray) -> None:
    """Put something that comes again behind the last sentence that leaves room for it.

    It begins where a sentence does: were a sentence broken off, the two parts might make one that
    is held out.
    """
    starts = 1 + np.flatnonzero(np.isin(row[: len(row) - ROOM], _marks()))
    if not starts.size:
        return
    room = len(row) - int(starts[-1])
    before = [int(start) for start in (1, *starts) if start + room <= starts[-1]]
    if before and rng.random() < 0.5:
        source = int(rng.choice(before))
        row[-room:] = row[source : source + room]
    else:
        row[-room:] = _span(rng, room // 2, room)


@cache
def _marks() -> np.ndarray:
    """Ids of the marks that end a sentence."""
    return np.array([vocab()[mark] for mark in ".?!"])


def _digest() -> str:
    lists = [read(file) for file in ("words.json", "sentences.json")]
    return hashlib.sha256(json.dumps(lists).encode()).hexdigest()[:16]
