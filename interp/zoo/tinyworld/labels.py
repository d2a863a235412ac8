"""Sentences with what is true of their words: the ground truth that a probe is measured by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from interp.core.tokens import Tokens

from .grammar import Field, Template, templates
from .lexicon import tables
from .rows import language, special, tokenizer, vocab

SPLITS = ("trained", "held-out template", "held-out words")
LABELS = ("sentence", "kind", "template", "text", "index", "word", "value")


@dataclass(frozen=True)
class Sentence:
    """One sentence of the language. Indices count its words and marks from 0, without `<s>`."""

    kind: str
    split: str
    template: str
    """As it is written in `sentences.json`; equal for sentences that are built alike."""
    ids: tuple[int, ...]
    labels: dict[int, dict[str, str]] = field(default_factory=dict)
    """By index what is true of that word: {1: {"gender": "female", "rank": "royal"}}."""
    answer: int | None = None
    """Index of the word that can be known from what stands before it."""
    wrong: int | None = None
    """Id of the word that `answer` is compared with, where there is one."""
    after: int | None = None
    """The year of the century, 0 to 98, that `answer` lies behind, in sentences with years."""

    @property
    def asked(self) -> int:
        """Id of the answer."""
        return self.ids[self._at]

    def parted(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids before the answer, and those behind it."""
        return self.ids[: self._at], self.ids[self._at + 1 :]

    @property
    def _at(self) -> int:
        if self.answer is None:
            raise ValueError(f"{self.text!r} asks for nothing")
        return self.answer

    @property
    def words(self) -> list[str]:
        """The words, without spaces."""
        return [tokenizer().token(i) for i in self.ids]

    @property
    def text(self) -> str:
        """The sentence as it is read."""
        return tokenizer().decode(self.ids)


def kinds() -> list[str]:
    """All kinds of sentence."""
    return list(dict.fromkeys(template.kind for template in templates()))


def sentences(
    kind: str | None = None, n: int = 100, seed: int = 0, split: str = "trained"
) -> list[Sentence]:
    """n labelled sentences of one kind or of all: those trained on, or from templates or with words
    (names; countries in this template) that never are.

    The numbers are other ones than those of training.
    """
    if kind is not None and kind not in kinds():
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(kinds())}")
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(map(repr, SPLITS))}")
    if not any(t.split == split and kind in (None, t.kind) for t in templates()):
        raise ValueError(f"kind={kind!r} has nothing in the split {split!r}")
    known = language(split, kind)
    rng = np.random.default_rng([seed, 2 + SPLITS.index(split)])
    drawn = known.draw(rng, n)
    made = zip(drawn.ids.tolist(), drawn.template, drawn.rows.tolist(), strict=True)
    return [_sentence(known.templates[i], ids, rows) for ids, i, rows in made]


def _sentence(template: Template, ids: list[int], rows: list[int]) -> Sentence:
    row = dict(zip(template.draws, rows, strict=False))
    labels: dict[int, dict[str, str]] = {}
    for index, piece in enumerate(template.pieces):
        if isinstance(piece, Field):
            table = tables()[template.draws[piece.var][0]]
            found = table.labels(row[piece.var], piece.column)
            if found:
                labels[index] = found
    return Sentence(
        template.kind,
        template.split,
        template.source,
        tuple(ids[: len(template.pieces)]),
        labels,
        template.answer,
        _wrong(template, ids, row),
        _after(template, ids),
    )


def _wrong(template: Template, ids: list[int], row: dict[str, int]) -> int | None:
    """The same column of the other variable, or of the paired row; None where it is no other."""
    if template.answer is None:
        return None
    asked = template.pieces[template.answer]
    assert isinstance(asked, Field)
    other = template.wrong or asked
    table = tables()[template.draws[other.var][0]]
    if template.wrong is None and not table.paired:
        return None
    number = row[other.var] if template.wrong is not None else row[other.var] ^ 1
    wrong = vocab()[table.columns[other.column][number]]
    return None if wrong == ids[template.answer] else wrong


def _after(template: Template, ids: list[int]) -> int | None:
    for id, piece in zip(ids, template.pieces, strict=False):
        if isinstance(piece, Field) and template.draws[piece.var][0] == "years":
            return int(tokenizer().token(id))
    return None


def heldout() -> pd.DataFrame:
    """What is never trained on: kind template held. `held` is "all" where the template is held out,
    and otherwise the words that never stand in it."""
    found: dict[tuple[str, str], str] = {}
    for template in templates():
        if template.split == "held-out template":
            found[template.kind, template.source] = "all"
        elif template.split == "held-out words":
            found[template.kind, template.source] = " ".join(sorted(_withheld(template)))
    rows = [(*key, held) for key, held in found.items()]
    return pd.DataFrame(rows, columns=["kind", "template", "held"])


def _withheld(template: Template) -> set[str]:
    """The words of the rows that are drawn here and not in training."""
    held = {"names", "countries"}
    return {
        next(iter(tables()[name].columns.values()))[row]
        for name, rows in template.draws.values()
        for row in rows
        if name in held and len(rows) < len(tables()[name])
    }


def labelled(label: str, some: Sequence[Sentence]) -> tuple[Tokens, pd.DataFrame]:
    """Every word that has a label, as one row: Tokens with the roles "word" and "last" (the
    sentence's last token), and a frame sentence kind template text index word value.

    `index` counts the sentence's words; the role "word" counts `<s>` too. Raises ValueError where
    no sentence has such a label.
    """
    start, pad = special("bos_token"), special("pad_token")
    found = [
        (number, one, index, values[label])
        for number, one in enumerate(some)
        for index, values in one.labels.items()
        if label in values
    ]
    if not found:
        known = sorted({name for one in some for values in one.labels.values() for name in values})
        raise ValueError(f"label {label!r}: the sentences have {', '.join(known) or 'no labels'}")
    tokens = Tokens.from_rows([[start, *one.ids] for _, one, _, _ in found], pad_id=pad)
    roles = {
        "word": torch.tensor([1 + index for _, _, index, _ in found]),
        "last": torch.tensor([len(one.ids) for _, one, _, _ in found]),
    }
    rows = [
        (number, one.kind, one.template, one.text, index, one.words[index], value)
        for number, one, index, value in found
    ]
    strings = [tokenizer().str_tokens(ids) for ids in tokens.ids.tolist()]
    tokens = Tokens(tokens.ids, mask=tokens.mask, strings=strings, roles=roles, bos=True)
    return tokens, pd.DataFrame(rows, columns=list(LABELS))
