"""Rows of ids as tokens of a model."""

from __future__ import annotations

from collections.abc import Sequence

from interp.core.tokens import Tokens
from interp.model import HookedTransformer


def tokens_of_rows(model: HookedTransformer, rows: Sequence[Sequence[int]]) -> Tokens:
    """Rows of ids as the model's tokens, padded on the right, with their pieces as strings."""
    tokenizer = model.tokenizer
    pad = tokenizer.pad_id if tokenizer.pad_id is not None else 0
    padded = Tokens.from_rows(rows, pad_id=pad)
    width = padded.shape[1]
    strings = [[*tokenizer.str_tokens(row), *[""] * (width - len(row))] for row in rows]
    bos = tokenizer.bos_id is not None and all(row[0] == tokenizer.bos_id for row in rows)
    return model.accept(Tokens(padded.ids, mask=padded.mask, strings=strings, bos=bos))
