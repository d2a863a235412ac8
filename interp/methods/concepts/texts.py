"""Concepts: texts of two classes, and the prompts that ask for them.

Directions are found on one half of the texts; everything that is claimed of them is measured on the
other half. A text that stands in both halves counts in the first alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.core.tokens import Tokens
from interp.data.tasks import Pairs
from interp.model import HookedTransformer
from interp.sweeps import metrics
from interp.sweeps.metrics import Metric, Where

LEAST = 2
"""Texts of each class that each half needs."""


@dataclass(frozen=True, eq=False)
class Concept:
    """Texts of two classes, read at one position each."""

    name: str
    classes: tuple[str, str]
    """What label 0 and label 1 are called; directions lead from the first to the second."""
    tokens: Tokens
    labels: Int[Tensor, " n"]
    task: Metric
    """Of all texts: what a model without the concept would be worse at."""
    task_name: str
    pos: Where = None
    """Where a text is read; None: at its last token."""
    paired: bool = False
    """Whether texts i and i + n/2 are the two sides of a pair."""
    texts: Sequence[str] = ()
    """The texts as they were brought; of bundled pairs, whose words a model knows, none."""

    def __len__(self) -> int:
        return len(self.tokens)

    def halves(self, seed: int) -> Halves:
        """Two random halves; of pairs both sides lie in one.

        Raises ValueError where a half has fewer than two texts of a class.
        """
        rng = np.random.default_rng(seed)
        labels = self.labels.numpy()
        if self.paired:
            m = len(self) // 2
            drawn = rng.permutation(m)[: (m + 1) // 2]
            chosen = np.concatenate([drawn, drawn + m])
        else:
            of_class = [rng.permutation(np.flatnonzero(labels == label)) for label in (0, 1)]
            chosen = np.concatenate([rows[: (len(rows) + 1) // 2] for rows in of_class])
        fit = np.isin(np.arange(len(self)), chosen)
        texts = _texts(self.tokens)
        known = {texts[i] for i in np.flatnonzero(fit)}
        seen = np.array([text in known for text in texts])
        held = np.flatnonzero(~fit & ~seen)
        twice = int((~fit & seen).sum())
        for half, rows in (("that is fitted", np.flatnonzero(fit)), ("held out", held)):
            counts = np.bincount(labels[rows], minlength=2)
            if counts.min() < LEAST:
                raise ValueError(
                    f"{self.name}: the half {half} has {counts[0]} different texts of "
                    f"{self.classes[0]!r} and {counts[1]} of {self.classes[1]!r}; {LEAST} of each "
                    "are needed, so give more texts"
                )
        return Halves(np.flatnonzero(fit), held, twice)

    def shuffled(self, rng: np.random.Generator) -> Int[Tensor, " n"]:
        """The labels dealt out anew; of pairs, within each."""
        if not self.paired:
            return self.labels[torch.from_numpy(rng.permutation(len(self)))]
        turned = torch.from_numpy(np.tile(rng.random(len(self) // 2) < 0.5, 2))
        return torch.where(turned, 1 - self.labels, self.labels)


@dataclass(frozen=True, eq=False)
class Halves:
    """Rows of a concept's texts."""

    fit: np.ndarray
    held: np.ndarray
    twice: int = 0
    """Held-out texts that were left out since they also stand in the other half."""


@dataclass(frozen=True, eq=False)
class Ask:
    """Prompts, and tokens of which the model should say those of `toward` more along a concept;
    without such tokens, texts of which it is asked how far the next token moves."""

    tokens: Tokens
    toward: Int[Tensor, "n k"] | None
    away: Int[Tensor, "n m"] | None
    name: str
    """Of logit(toward) − logit(away), or of the divergence, in words."""
    pos: Where = "end"
    own: bool = True
    """Whether the prompts are the first texts of the concept, and divided as these are."""

    def rows(self, index: Sequence[int] | np.ndarray | Tensor) -> Ask:
        """Some of the prompts."""
        at = torch.as_tensor(index)
        pos = self.pos[at.to(self.pos.device)] if isinstance(self.pos, Tensor) else self.pos
        toward, away = (None if ids is None else ids[at] for ids in (self.toward, self.away))
        return dataclasses.replace(self, tokens=self.tokens[at], toward=toward, away=away, pos=pos)

    @property
    def metric(self) -> Metric:
        if self.toward is None or self.away is None:
            return metrics.kl(self.pos)
        return metrics.logit_diff(self.toward, self.away, self.pos)

    def halves(self, halves: Halves, seed: int) -> tuple[Ask, Ask]:
        """Prompts to choose a layer with, and those that everything else is measured on."""
        n = len(self.tokens)
        if self.own:
            fit, held = (rows[rows < n] for rows in (halves.fit, halves.held))
            if len(fit) and len(held):
                return self.rows(fit), self.rows(held)
        if n < 4:
            return self, self
        order = np.random.default_rng(seed).permutation(n)
        return self.rows(np.sort(order[: n // 2])), self.rows(np.sort(order[n // 2 :]))


def of_pairs(model: HookedTransformer, pairs: Pairs) -> tuple[Concept, Ask]:
    """The two classes of a task: by its two answers, by grammatical number, or else clean and
    corrupted; and its clean prompts, asked for the answers of the second class."""
    classes, labels = _classes(model, pairs)
    answer, wrong = (ids.reshape(len(pairs), -1).cpu() for ids in (pairs.answer, pairs.wrong))
    task = metrics.logit_diff(_stacked(answer, wrong), _stacked(wrong, answer), pos="end")
    concept = Concept(
        pairs.name.replace("_", " "), classes, pairs.both, torch.cat([labels, 1 - labels]),
        task, "logit(right answer) − logit(wrong one)", "end", paired=True,
    )  # fmt: skip
    return concept, asked(pairs, classes, labels)


def asked(
    pairs: Pairs, classes: tuple[str, str], labels: Int[Tensor, " n"], own: bool = True
) -> Ask:
    """The clean prompts of a task, asked for what the second class answers."""
    answer, wrong = (ids.reshape(len(pairs), -1).cpu() for ids in (pairs.answer, pairs.wrong))
    width = min(answer.shape[1], wrong.shape[1])  # a mean of fewer ids: both sides swap rows
    answer, wrong = answer[:, :width], wrong[:, :width]
    second = (labels == 1)[:, None]
    toward, away = torch.where(second, answer, wrong), torch.where(second, wrong, answer)
    name = f"logit({classes[1]}) − logit({classes[0]})"
    return Ask(pairs.clean, toward, away, name, "end", own)


def of_texts(concept: Concept) -> Ask:
    """The texts of a concept themselves, asked for nothing: what a direction changes of the next
    token, whichever it is."""
    name = "the next token's distribution (KL, nats)"
    return Ask(concept.tokens, None, None, name, concept.pos)


def of_words(
    model: HookedTransformer,
    first: Sequence[str],
    second: Sequence[str],
    *,
    bos: bool | None = None,
) -> Concept:
    """Words as texts of their own, paired in order where there are as many on both sides."""
    tokens = model.to_tokens([*first, *second], bos=bos)
    labels = torch.tensor([0] * len(first) + [1] * len(second))
    classes = (first[0], second[0])
    paired = len(first) == len(second)
    kl, name = metrics.kl(), "KL of the next token, before and after"
    texts = [*first, *second]
    return Concept("the words", classes, tokens, labels, kl, name, paired=paired, texts=texts)


def _classes(model: HookedTransformer, pairs: Pairs) -> tuple[tuple[str, str], Int[Tensor, " n"]]:
    """The names of both classes, and which of them each clean prompt belongs to."""
    answer, wrong = (ids.reshape(len(pairs), -1).tolist() for ids in (pairs.answer, pairs.wrong))
    kinds = sorted({tuple(row) for row in [*answer, *wrong]})
    if len(kinds) == 2:
        names = [_word(model, kind[0]) for kind in kinds]
        return (names[0], names[1]), torch.tensor([kinds.index(tuple(row)) for row in answer])
    if pairs.table is not None and "number" in pairs.table:
        number = (pairs.table["number"] == "plural").to_numpy()
        return ("singular", "plural"), torch.from_numpy(number.astype(int))
    return ("corrupted", "clean"), torch.ones(len(pairs), dtype=torch.long)


def _word(model: HookedTransformer, token: int) -> str:
    return str(token) if model.tokenizer is None else model.tokenizer.str_tokens([token])[0].strip()


def _stacked(first: Tensor, second: Tensor) -> Tensor:
    width = min(first.shape[1], second.shape[1])
    return torch.cat([first[:, :width], second[:, :width]])


def _texts(tokens: Tokens) -> list[tuple[int, ...]]:
    if tokens.ids is None:
        raise ValueError("a concept needs texts; these tokens are vectors")
    return [tuple(ids[real].tolist()) for ids, real in zip(tokens.ids, tokens.real, strict=True)]
