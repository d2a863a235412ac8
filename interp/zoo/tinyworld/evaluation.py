"""What a model of the language can do, measured on sentences that it was never trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.core.tokens import Tokens
from interp.data import tasks
from interp.data.tasks.prompts import mask_token
from interp.methods.geometry import embedding

from .grammar import rules, templates
from .labels import SPLITS, Sentence, sentences
from .rows import SPAN, ordinary, special, vocab

COLUMNS = ("task", "split", "measure", "n", "value")
ANALOGY = ("man", "king", "woman", "queen")
BATCH = 100
Row = tuple[str, str, str, int, float]


@torch.no_grad()
def evaluate(model: Any, n: int = 400, seed: int = 0) -> pd.DataFrame:
    """Everything that the language teaches, measured: task split measure n value.

    A split is "trained" (sentences like those of training), "held-out template", "held-out words"
    (names, or countries in this template), or "baseline": the tasks of `interp.tasks`. Measures:
    "first" is the share of rows whose answer has the highest logit, "above wrong" the share where
    it lies above the wrong answer, "later" and "later mass" the share of rows whose most probable
    next token is a later year, and the mean probability of later years; "rank" is the rank of
    queen for king − man + woman in W_E (3cosadd, centred, the question's words left out).
    """
    rows: list[Row] = []
    for kind, rule in rules().items():
        for split in SPLITS:
            if any(t.kind == kind and t.split == split for t in templates()):
                rows += _sentences(model, kind, rule, split, n, seed)
    rows += _spans(model, max(1, n // 4), seed)
    rows += _baselines(model, n, seed)
    a, b, c, queen = ANALOGY
    question = pd.DataFrame([("royal", *ANALOGY)], columns=["category", "a", "b", "c", "expected"])
    found = embedding(model).evaluate(question, ["3cosadd"], centre=True, exclude_inputs=True)
    rows.append(
        (f"{b} - {a} + {c} = {queen}", "embedding", "rank", 1, float(found["rank"].iloc[0]))
    )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _sentences(model: Any, kind: str, rule: str, split: str, n: int, seed: int) -> Iterator[Row]:
    some = [one for one in sentences(kind, 4 * n, seed, split) if _fits(one, rule)][:n]
    logits = answer_logits(model, some)
    answer = torch.tensor([one.asked for one in some])
    if rule == "later":
        later = _later(some, logits.shape[-1])
        best = later.gather(1, logits.argmax(-1, keepdim=True))
        mass = (logits.softmax(-1) * later).sum(-1)
        yield kind, split, "later", len(some), _share(best)
        yield kind, split, "later mass", len(some), float(mass.mean())
        return
    if rule == "argmax":
        yield kind, split, "first", len(some), _share(logits.argmax(-1) == answer)
    wrong = [one.wrong for one in some if one.wrong is not None]
    if len(wrong) == len(some):
        above = _above(logits, answer[:, None], torch.tensor(wrong)[:, None])
        yield kind, split, "above wrong", len(some), above


def _fits(one: Sentence, rule: str) -> bool:
    return one.answer is not None and (rule != "pair" or one.wrong is not None)


def answer_logits(model: Any, some: Sequence[Sentence]) -> Tensor:
    """[sentence d_vocab]: the logits from which each answer is read. A causal model gets what
    stands before the answer, one that attends both ways the whole sentence with a mask there."""
    masked, start = mask_token(model) is not None, special("bos_token")
    found = []
    for at in range(0, len(some), BATCH):
        rows, ends = [], []
        for one in some[at : at + BATCH]:
            before, after = one.parted()
            blank = [special("mask_token"), *after] if masked else []
            rows.append([start, *before, *blank])
            ends.append(len(before) + masked)
        tokens = Tokens.from_rows(rows, pad_id=special("pad_token")).to(model.device)
        found.append(model(tokens)[torch.arange(len(rows)), torch.tensor(ends)].float().cpu())
    return torch.cat(found)


def _later(some: Sequence[Sentence], d_vocab: int) -> Tensor:
    """[sentence d_vocab]: which tokens are the digits of a later year."""
    years = torch.tensor([vocab()[f"{year:02}"] for year in range(100)])
    start = torch.tensor([one.after for one in some])
    later = torch.zeros(len(some), d_vocab, dtype=torch.bool)
    later[:, years] = torch.arange(100)[None] > start[:, None]
    return later


def _spans(model: Any, n: int, seed: int) -> Iterator[Row]:
    """The second half of repeated random spans, from its second word on: a span of random length,
    then the same span."""
    rng = np.random.default_rng([seed, 9])
    masked, start = mask_token(model) is not None, torch.tensor([special("bos_token")])
    right, asked = 0, 0
    for _ in range(n):
        length = int(rng.integers(SPAN[0], SPAN[1] + 1))
        span = torch.from_numpy(rng.choice(ordinary(), length, replace=False))
        row = torch.cat([start, span, span])
        at = torch.arange(length + 2, 2 * length + 1)
        if masked:  # one word hidden at a time
            rows, number = row.repeat(len(at), 1), torch.arange(len(at))
            rows[number, at] = special("mask_token")
            best = model(rows.to(model.device)).argmax(-1).cpu()[number, at]
        else:
            best = model(row[None].to(model.device))[0].argmax(-1).cpu()[at - 1]
        right, asked = right + int((best == row[at]).sum()), asked + len(at)
    yield "random_spans", "held-out words", "first", asked, right / asked


def _baselines(model: Any, n: int, seed: int) -> Iterator[Row]:
    makers = [tasks.indirect_object, tasks.capitals, tasks.agreement, tasks.gendered_pronoun]
    if mask_token(model) is None:  # a masked model is asked for whole words, and a year is two
        makers.append(tasks.greater_than)
    for make in (*makers, tasks.induction):
        pairs = make(model, n, seed)
        logits = (
            model(pairs.clean)[torch.arange(len(pairs)), pairs.clean.roles["end"]].float().cpu()
        )
        answer, wrong = (ids.reshape(len(pairs), -1).cpu() for ids in (pairs.answer, pairs.wrong))
        first = (logits.argmax(-1, keepdim=True) == answer).any(-1)
        yield pairs.name, "baseline", "first", len(pairs), _share(first)
        yield pairs.name, "baseline", "above wrong", len(pairs), _above(logits, answer, wrong)


def _above(logits: Tensor, answer: Tensor, wrong: Tensor) -> float:
    """The share of rows in which the answers lie above the wrong ones, on average."""
    return _share(logits.gather(1, answer).mean(-1) > logits.gather(1, wrong).mean(-1))


def _share(right: Tensor) -> float:
    return float(right.float().mean())
