"""The induction task: random tokens, repeated, so that only the repetition tells what comes next.

… A B … A → B (Elhage et al. 2021, Olsson et al. 2022). It is made of ids and not of words, so any
vocabulary serves, and a model without a tokenizer too.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from interp.core.tokenizer import Tokenizer
from interp.core.tokens import Tokens
from interp.model import HookedTransformer

from .pairs import Pairs
from .prompts import TRIES, mask_token

PER_LENGTH = 100
"""Tokens drawn from, for each token of the span."""


def induction(
    model: HookedTransformer,
    n: int = 100,
    seed: int = 0,
    *,
    bos: bool | None = None,
    length: int = 10,
) -> Pairs:
    """A span of random tokens and its repetition up to the last but one → the span's last.

    Corrupted: the token to be predicted is another where it first stands, and `wrong` is that
    other one. The span has length / 2 to `length` tokens, balanced, and other tokens before it
    that make up 2 · length − 1. Tokens are ordinary pieces of the vocabulary, never special ones;
    none stands twice but for the repetition. Roles first (A), second (B, which is changed), end
    (A again, or the mask token where the model attends both ways).
    """
    for name, value, least in (("n", n, 1), ("length", length, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r}: expected a whole number, {least} or more")
    rng = np.random.default_rng(seed)
    spans = np.arange(max(2, (length + 1) // 2), length + 1)
    spans = rng.permutation(spans[np.arange(n) % len(spans)])
    pool = _ordinary(model, rng, need=2 * length - int(spans.min()) + 1, most=PER_LENGTH * length)
    bodies: dict[tuple[int, ...], None] = {}  # the row's tokens, then what the changed one becomes
    for row, span in enumerate(spans.tolist()):
        for _ in range(TRIES):
            drawn = rng.choice(pool, 2 * length - span + 1, replace=False).tolist()
            body = (*drawn[:-1], *drawn[-1 - span : -2], drawn[-1])
            if body not in bodies:
                break
        else:
            raise ValueError(
                f"induction: n={n}, but after {row} pairs no different one came in {TRIES} draws; "
                f"ask for n ≤ {row} or a greater length"
            )
        bodies[body] = None
    frame = _frame(model, bos)
    second = len(frame.lead) + 2 * length - spans - 1
    return _pairs(model, list(bodies), second, frame, spans)


class Frame(NamedTuple):
    """What stands before and behind a row: special tokens, and the mask token."""

    lead: list[int]
    tail: list[int]
    masked: bool


def _pairs(
    model: HookedTransformer,
    bodies: list[tuple[int, ...]],
    second: np.ndarray,
    frame: Frame,
    spans: np.ndarray,
) -> Pairs:
    clean = torch.tensor([[*frame.lead, *body[:-1], *frame.tail] for body in bodies])
    rows, at = torch.arange(len(bodies)), torch.as_tensor(second)
    answer, wrong = clean[rows, at], torch.tensor([body[-1] for body in bodies])
    corrupted = clean.index_put((rows, at), wrong)
    end = torch.full_like(at, len(frame.lead) + len(bodies[0]) - 2 + frame.masked)
    roles = {"first": at - 1, "second": at, "end": end}
    device = getattr(model, "device", torch.device("cpu"))
    return Pairs(
        "induction",
        _tokens(model, clean, roles).to(device),
        _tokens(model, corrupted, roles).to(device),
        answer.to(device),
        wrong.to(device),
        *(
            () if model.tokenizer is None else [model.tokenizer.decode(row) for row in ids.tolist()]
            for ids in (clean, corrupted)
        ),
        changed=("second",),
        table=pd.DataFrame({"span": spans}),
    )


def _tokens(model: HookedTransformer, ids: torch.Tensor, roles: dict[str, torch.Tensor]) -> Tokens:
    tokenizer: Tokenizer | None = model.tokenizer
    if tokenizer is None:
        return Tokens(ids, roles=dict(roles), bos=False)
    return Tokens(
        ids,
        strings=[tokenizer.str_tokens(row) for row in ids.tolist()],
        roles=dict(roles),
        bos=tokenizer.bos_id is not None and int(ids[0, 0]) == tokenizer.bos_id,
    )


def _frame(model: HookedTransformer, bos: bool | None) -> Frame:
    tokenizer: Tokenizer | None = model.tokenizer
    if tokenizer is None:
        if bos:
            raise ValueError("induction: bos=True, but the model has no tokenizer to name its BOS")
        return Frame([], [], False)
    bare, whole = tokenizer.encode("the", bos=False), tokenizer.encode("the", bos=bos)
    lead = next(k for k in range(len(whole)) if whole[k : k + len(bare)] == bare)
    mask_id = None if mask_token(model) is None else tokenizer.mask_id
    blank = [] if mask_id is None else [mask_id]
    return Frame(whole[:lead], [*blank, *whole[lead + len(bare) :]], bool(blank))


def _ordinary(
    model: HookedTransformer, rng: np.random.Generator, need: int, most: int
) -> list[int]:
    """Up to `most` ids that stand for readable text by themselves, in random order."""
    tokenizer: Tokenizer | None = model.tokenizer
    size = getattr(getattr(model, "cfg", None), "d_vocab", None)
    # A vocabulary may have holes, and a model more or fewer rows than its tokenizer has entries.
    ids = range(model.cfg.d_vocab) if tokenizer is None else sorted(set(tokenizer.vocab().values()))
    ids = [i for i in ids if size is None or i < size]
    order = rng.permutation(ids).tolist()
    if tokenizer is not None:
        order = itertools.islice((i for i in order if _is_ordinary(tokenizer, i)), most)
    found = list(order)
    if len(found) < need:
        raise ValueError(
            f"induction: {len(found)} of the {len(ids)} ids of the vocabulary are ordinary "
            f"tokens, and {need} different ones are needed; choose a smaller length"
        )
    return found


def _is_ordinary(tokenizer: Tokenizer, id: int) -> bool:
    """Whether an id is not special and is what its own text is read as."""
    if id in tokenizer.special_ids or id in tokenizer.unknown_ids:
        return False
    piece = tokenizer.str_tokens([id])[0]
    if "\ufffd" in piece or not piece.strip() or not piece.isprintable():
        return False
    # Some tokenizers put a space in front of every text by themselves.
    return any(tokenizer.encode(text, bos=False) == [id] for text in (piece, piece.strip()))
