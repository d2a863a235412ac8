"""Attention in a notebook: the wall of all heads on a text, in one call.

interp.attention(model, "When Mary and John went to the store, John gave a book to Mary")
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from interp.core.finite import finite_cache
from interp.core.precision import dtype_name
from interp.core.tokens import Tokens
from interp.core.unknown import unknown_tokens
from interp.model import HookedTransformer
from interp.model.transformer import Input

from .report import Report


@torch.no_grad()
def attention(model: HookedTransformer, texts: Input) -> Report:
    """Where every head looks, on one text or several: a report that a notebook shows as the wall of
    heads, each of which opens; `.write(directory)` makes a page of it, `.show()` displays it.

    Ids and Tokens are taken, too; what is padded is left out. Of an encoder–decoder the heads are
    the encoder's. Raises ValueError on a text of one token, and where weights are not finite.
    """
    reader = model if getattr(model, "encoder", None) is None else model.encoder
    tokens = reader.accept(texts)
    report = Report(
        f"Attention in {model.name}",
        "Where does every head look?",
        provenance={
            "model": {"name": model.name},
            "device": str(model.device),
            "dtype": dtype_name(model.dtype),
        },
    )
    if reader is not model:
        report.skip("The decoder's heads and cross-attention: these are the encoder's.")
    written = [texts] if isinstance(texts, str) else texts
    if isinstance(written, (list, tuple)) and all(isinstance(text, str) for text in written):
        unknown = unknown_tokens(reader, written)
        if unknown.unknown:
            report.warn(f"{unknown}.")
    readings = [_read(reader, tokens[i : i + 1]) for i in range(len(tokens))]
    patterns, words = zip(*readings, strict=True)
    report.section("Every head").attention(
        list(patterns),
        list(words),
        "Attention of every head: queries downwards, keys to the right",
        name="attention",
    )
    return report


def _read(model: HookedTransformer, row: Tokens) -> tuple[np.ndarray, list[str]]:
    """The pattern [layer head q_pos k_pos] and the tokens of one row, without its padding."""
    cache = finite_cache(model, row, ["pattern"])
    real = row.real[0]
    layers = [cache["pattern", layer][0][:, real][..., real] for layer in range(model.cfg.n_layers)]
    return torch.stack(layers).float().cpu().numpy(), _words(model, row, real.tolist())


def _words(model: HookedTransformer, row: Tokens, real: Sequence[bool]) -> list[str]:
    if row.strings:
        words = list(row.strings[0])
    elif row.ids is None:
        words = [f"{position}" for position in range(len(real))]
    elif model.tokenizer is not None:
        words = model.tokenizer.str_tokens(row.ids[0].tolist())
    else:
        words = [str(one) for one in row.ids[0].tolist()]
    return [word for word, there in zip(words, real, strict=True) if there]
