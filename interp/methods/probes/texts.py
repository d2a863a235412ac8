"""Texts with labels as a probe gets them: cut to the context, and where each of them is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.core.finite import finite_cache
from interp.core.occurrence import bare_word, word_span
from interp.core.tokenizer import Tokenizer
from interp.core.tokens import Tokens
from interp.data.rows import tokens_of_rows
from interp.model import HookedTransformer

Position = Literal["last", "mean", "word"]
BATCH = 64
NAMED = 3
"""Words that a sentence names."""


@dataclass(frozen=True, eq=False)
class TextExamples:
    """Labelled texts, one a row of everything."""

    frame: pd.DataFrame
    """line text label read, and where they were given group, word, side (train or test). `read`:
    the token, or how many, that the probe looks at. Labels of a regression are floats."""
    tokens: Tokens
    weight: Float[Tensor, "n pos"]
    """1 at the position that is read, or a share of 1 at each."""
    what: str
    """What the label is called."""
    left_out: tuple[str, ...] = ()
    """Sentences on what is not among the examples, or not whole."""
    position: Position = "last"
    """Where texts are read."""

    @property
    def regression(self) -> bool:
        """Whether labels are numbers."""
        return bool(pd.api.types.is_float_dtype(self.frame["label"]))

    def __len__(self) -> int:
        return len(self.frame)

    def some(self, rows: np.ndarray, *left_out: str) -> TextExamples:
        """The examples of these rows; `left_out` says why the others are not there."""
        index = torch.from_numpy(rows)
        return replace(
            self,
            frame=self.frame.iloc[rows].reset_index(drop=True),
            tokens=self.tokens[index],
            weight=self.weight[index],
            left_out=(*self.left_out, *left_out),
        )


class _Row(NamedTuple):
    """The ids of one text, and from where to where it is read."""

    ids: list[int]
    start: int
    end: int
    cut: bool
    pieces: int
    """Tokens of the word that is read; 0 where no word is."""


def text_examples(
    model: HookedTransformer,
    frame: pd.DataFrame,
    what: str = "label",
    *,
    position: Position = "last",
    width: int | None = None,
    bos: bool | None = None,
) -> TextExamples:
    """Texts of a frame with the columns text and label as examples for `compare_probes`.

    position: the last token of the text, the mean over its tokens (special tokens around it left
    out of both), or the last token of the word in the column `word` ("bank#2" is its second place).
    width: tokens of a text that are read, at most the context. The columns line (of the file that
    the texts are from, for errors), group and side are kept. Rows whose word lies behind the width,
    or melts with what follows it, are left out. Raises ValueError on a model without a tokenizer,
    on a text without tokens or without its word, and where no row is left.
    """
    if model.tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer, so it cannot read texts")
    if "line" not in frame:
        frame = frame.assign(line=range(1, len(frame) + 1))
    width = min(width or model.cfg.n_ctx, model.cfg.n_ctx)
    found = [_row(model.tokenizer, row, position, width, bos) for row in frame.to_dict("records")]
    rows = [row for row in found if row is not None]
    if not rows:
        raise ValueError(f"no word can be read: all lie behind the first {width} tokens")
    tokens = tokens_of_rows(model, [row.ids for row in rows])
    weight = torch.zeros(tokens.shape)
    for i, row in enumerate(rows):
        weight[i, row.start : row.end] = 1 / (row.end - row.start)
    strings = tokens.strings or []
    seen = [
        strings[i][row.end - 1]
        if row.end - row.start == 1
        else f"the mean of {row.end - row.start} tokens"
        for i, row in enumerate(rows)
    ]
    there = np.array([row is not None for row in found])
    kept = frame[there].reset_index(drop=True).assign(read=seen)
    left_out = _left_out(frame, there, rows, width)
    return TextExamples(kept, tokens, weight, what, left_out, position)


def _row(
    tokenizer: Tokenizer, row: dict, position: Position, width: int, bos: bool | None
) -> _Row | None:
    """None where the word of the row cannot be read."""
    lead, bare, tail = _parts(tokenizer, str(row["text"]), bos)
    room = max(1, width - len(lead) - len(tail))
    if not bare:
        raise ValueError(f"line {row['line']}: the text {row['text']!r} has no tokens")
    span = _span(tokenizer, row, bare, position, room)
    if span is None:
        return None
    start = span[0] if position == "mean" else span[1] - 1
    pieces = span[1] - span[0] if position == "word" else 0
    ids = [*lead, *bare[:room], *tail]
    return _Row(ids, len(lead) + start, len(lead) + span[1], len(bare) > room, pieces)


def _left_out(
    frame: pd.DataFrame, there: np.ndarray, rows: list[_Row], width: int
) -> tuple[str, ...]:
    sentences = []
    cut = sum(row.cut for row in rows)
    if cut:
        sentences.append(
            f"{cut} of {len(frame)} texts are longer than {width} tokens and were cut."
        )
    if not there.all():
        sentences.append(
            f"{(~there).sum()} rows whose word lies behind the first {width} tokens, or melts with "
            f"what follows it; the first in line {frame['line'][~there].iloc[0]}."
        )
    several = [row.pieces > 1 for row in rows]
    if any(several):
        words = [*dict.fromkeys(map(bare_word, frame["word"][there][several]))]
        more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
        sentences.append(
            f"Of {sum(several)} words that are several tokens here "
            f"({', '.join(words[:NAMED])}{more}) the last token is read."
        )
    return tuple(sentences)


def _parts(
    tokenizer: Tokenizer, text: str, bos: bool | None
) -> tuple[list[int], list[int], list[int]]:
    """What the tokenizer puts before a text, the text, and what it puts behind."""
    bare, ids = tokenizer.encode(text, bos=False), tokenizer.encode(text, bos=bos)
    around = len(ids) - len(bare)
    at = next((i for i in range(around + 1) if ids[i : i + len(bare)] == bare), 0)
    return ids[:at], bare, ids[at + len(bare) :]


def _span(
    tokenizer: Tokenizer, row: dict, bare: list[int], position: Position, room: int
) -> tuple[int, int] | None:
    """The tokens of the text, or of its word; None where they are not the word's own, or cut."""
    if position != "word":
        return 0, min(len(bare), room)
    start, end = _find(row)
    through = tokenizer.encode(row["text"][:end], bos=False)
    if bare[: len(through)] != through or not 0 < len(through) <= room:
        return None
    before = tokenizer.encode(row["text"][:start].rstrip(), bos=False)
    apart = bare[: len(before)] == before and len(before) < len(through)
    first = len(before) if apart else 0
    return (first or len(through) - 1), len(through)


def _find(row: dict) -> tuple[int, int]:
    """Where the word of a row stands in its text, in any case."""
    try:
        return word_span(row["text"], row["word"], fold=True)
    except ValueError as error:
        raise ValueError(f"line {row['line']}: {error}") from None


def word_types(frame: pd.DataFrame) -> np.ndarray | None:
    """The word of each row, which a control task gives one label wherever it stands."""
    if "word" not in frame:
        return None
    return np.array([bare_word(word).casefold() for word in frame["word"]])


@torch.no_grad()
def activations(
    model: HookedTransformer, examples: TextExamples, names: list[str]
) -> dict[str, Float[Tensor, "n d"]]:
    """What stands at these sites where the probe looks, on the CPU; short texts run together."""
    layers = [model.sites[name].layer or 0 for name in names]
    stop = None if model.opaque else max(layers) + 1
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    order = examples.tokens.real.sum(1).cpu().argsort(stable=True)
    for rows in order.split(BATCH):
        tokens, weight = examples.tokens[rows], examples.weight[rows]
        if tokens.mask is not None and tokens.ids is not None:  # padded on the right
            longest = int(tokens.mask.sum(1).max())
            tokens = Tokens(tokens.ids[:, :longest], mask=tokens.mask[:, :longest])
            weight = weight[:, :longest]
        cache = finite_cache(model, model.accept(tokens), names, stop_at_layer=stop)
        for name in names:
            value = cache[name]
            value = value if value.dtype == torch.float64 else value.float()
            parts[name].append((value * weight.to(value)[..., None]).sum(1).cpu())
    home = order.argsort()
    return {name: torch.cat(batches)[home] for name, batches in parts.items()}


def word_counts(examples: TextExamples, most: int = 1000) -> Float[Tensor, "n token"] | None:
    """How often each token stands in each text: those in at least two texts, the commonest `most`.

    None where there are none, or the tokens are no words.
    """
    if examples.tokens.ids is None:
        return None
    ids, real = examples.tokens.ids.cpu(), examples.tokens.real.cpu()
    names, index = torch.unique(ids, return_inverse=True)
    counts = torch.zeros(len(examples), len(names))
    counts.scatter_add_(1, index, real.float())
    texts = (counts > 0).sum(0)
    wanted = (texts > 1) & (counts != counts[:1]).any(0)
    ranked = torch.argsort(texts * wanted, descending=True, stable=True)
    chosen = ranked[: min(most, int(wanted.sum()))]
    return counts[:, chosen] if len(chosen) else None
