"""From templates and words to pairs, for whatever tokenizer a model has.

A word can be used where it is one token behind a space (" Mary", "▁Mary", "mary"); what cannot is
skipped and counted. A role is found by reading the prompt up to the end of its word, never by
searching for an id, and a prompt that reads differently in parts than as a whole is not used.
"""

from __future__ import annotations

import itertools
import json
import math
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from interp.core.tokenizer import Tokenizer
from interp.core.unknown import unknown_tokens
from interp.model import HookedTransformer

from .pairs import SKIPPED, Pairs

BEFORE = "the"
"""A word stands behind this one when its tokens are looked up."""
TRIES = 200
"""Draws of one row before the prompts are taken to be used up."""


class Prompt(NamedTuple):
    """A text, and by field the index of the character behind its word."""

    text: str
    ends: dict[str, int]


class Draft(NamedTuple):
    """One pair before it is tokens."""

    clean: Prompt
    corrupted: Prompt
    answer: int | list[int]
    wrong: int | list[int]
    about: dict[str, str]


class Read(NamedTuple):
    """The ids of a prompt, and by field the position of its word's last token."""

    ids: list[int]
    at: dict[str, int]


def fill(template: str, words: Mapping[str, str]) -> Prompt:
    """The template with its fields replaced; where a field stands twice, the last counts."""
    text, ends = "", {}
    for literal, name, _, _ in string.Formatter().parse(template):
        text += literal
        if name is not None:
            text += words[name]
            ends[name] = len(text)
    return Prompt(text, ends)


class Reader:
    """How one model's tokenizer reads words and prompts, for one task; collects what it skips.

    A model that attends both ways and has a mask token is asked at a mask behind the prompt, as it
    was trained; every other model at the prompt's last token.
    """

    def __init__(self, model: HookedTransformer, task: str, bos: bool | None = None) -> None:
        if model.tokenizer is None:
            raise ValueError(f"{task}: the model has no tokenizer, and this task is made of words")
        self.model, self.task, self.bos = model, task, bos
        self.tokenizer: Tokenizer = model.tokenizer
        self.blank = mask_token(model)
        self.skipped: list[tuple[str, str, str]] = []
        self.width: int | None = None

    def close(self, prompt: Prompt) -> Prompt:
        """The prompt as the model gets it, with the field "end"."""
        text = prompt.text
        if self.blank is None:
            return Prompt(text, {**prompt.ends, "end": len(text)})
        if self.blank not in text:
            text = f"{text} {self.blank}."
        return Prompt(text, {**prompt.ends, "end": text.index(self.blank) + len(self.blank)})

    def read(self, prompt: Prompt) -> Read | None:
        """None where the tokens of the prompt's beginnings are not the beginnings of its tokens."""
        encode = self.tokenizer.encode
        ids, bare = encode(prompt.text, bos=self.bos), encode(prompt.text, bos=False)
        lead = next(
            (k for k in range(len(ids) - len(bare) + 1) if ids[k : k + len(bare)] == bare), None
        )
        at = {}
        for name, end in prompt.ends.items():
            part = encode(prompt.text[:end], bos=False)
            if lead is None or not part or bare[: len(part)] != part:
                return None
            at[name] = lead + len(part) - 1
        return Read(ids, at)

    def matches(self, clean: Read, corrupted: Read, at: set[int]) -> bool:
        """Whether two prompts have the templates' length and differ in the tokens `at`, and only
        there."""
        if not len(clean.ids) == len(corrupted.ids) == self.width or clean.at != corrupted.at:
            return False
        ids = zip(clean.ids, corrupted.ids, strict=True)
        return at == {i for i, (one, other) in enumerate(ids) if one != other}

    def word(self, word: str) -> list[int]:
        """The ids of a word behind a space."""
        return self.following(BEFORE, f" {word}") or []

    def following(self, text: str, rest: str) -> list[int] | None:
        """The ids that `rest` adds to `text`; None where the two melt together."""
        before = self.tokenizer.encode(text, bos=False)
        whole = self.tokenizer.encode(text + rest, bos=False)
        return whole[len(before) :] if whole[: len(before)] == before else None

    def fault(self, word: str) -> str:
        """Why a word cannot be used; empty where it can."""
        ids = self.word(word)
        if len(ids) != 1:
            return f"{len(ids)} tokens {self.tokenizer.str_tokens(ids)}"
        known = not self.unknown(word) and ids[0] not in self.tokenizer.special_ids
        return "" if known else "unknown to the tokenizer"

    def unknown(self, text: str) -> tuple[str, ...]:
        """The words of a text that the tokenizer does not know, the first few."""
        return unknown_tokens(self.tokenizer, text).examples

    def usable(self, kind: str, words: Iterable[str], least: int) -> dict[str, int]:
        """Word to id, for the words that are one token of their own.

        Raises ValueError where fewer than `least` are left.
        """
        words = list(words)
        found: dict[str, int] = {}
        missed: list[str] = []
        for word in words:
            fault = self.fault(word)
            if not fault and self.word(word)[0] in found.values():
                fault = "the same token as another word"
            if fault:
                missed.append(f"{word!r} is {fault}")
                self.skipped.append((kind, word, fault))
            else:
                found[word] = self.word(word)[0]
        self.require(kind, len(found), len(words), least, missed)
        return found

    def usable_rows(
        self, kind: str, rows: Iterable[Sequence[str]], least: int
    ) -> list[tuple[str, ...]]:
        """The rows (country and capital, singular and plural) all of whose words are one token."""
        rows = [tuple(row) for row in rows]
        kept, missed, seen = [], [], set()
        for row in rows:
            faults = [f"{word!r} is {fault}" for word in row if (fault := self.fault(word))]
            ids = {self.word(word)[0] for word in row} if not faults else set()
            if not faults and (len(ids) < len(row) or ids & seen):
                faults = [f"{' and '.join(map(repr, row))}: not tokens of their own"]
            if faults:
                missed += faults
                self.skipped.append((kind, "/".join(row), "; ".join(faults)))
            else:
                kept.append(row)
                seen |= ids
        self.require(kind, len(kept), len(rows), least, missed)
        return kept

    def require(self, kind: str, n: int, of: int, least: int, missed: Sequence[str]) -> None:
        """Raise ValueError, naming the first few that are missed, unless `n` ≥ `least`."""
        if n >= least:
            return
        shown = "; ".join(missed[:3]) + ("; …" if len(missed) > 3 else "")
        raise ValueError(
            f"{self.task}: {n} of {of} {kind} can be used with the tokenizer "
            f"{self.tokenizer.name!r}, and {least} are needed: {shown}. Choose a model with a "
            "larger vocabulary, or bring prompts of your own: --prompts FILE, in Python "
            "tasks.from_csv"
        )

    def templates(
        self, templates: Sequence[str], words: Mapping[str, str] | Sequence[Mapping[str, str]]
    ) -> list[int]:
        """Which templates to use: those of the commonest length in tokens, without unknown words.

        words: one usable word for every field (of each template), to measure with.
        """
        each = [words] * len(templates) if isinstance(words, Mapping) else words
        lengths: dict[int, int] = {}
        for i, (template, sample) in enumerate(zip(templates, each, strict=True)):
            prompt = fill(template, sample)
            found = self.read(self.close(prompt))
            if found is None:
                self.skipped.append(("template", template, "its words melt together"))
            elif words_unknown := self.unknown(prompt.text):
                why = f"unknown to the tokenizer: {', '.join(map(repr, words_unknown))}"
                self.skipped.append(("template", template, why))
            else:
                lengths[i] = len(found.ids)
        if not lengths:
            missed = [f"{t!r}: {why}" for kind, t, why in self.skipped if kind == "template"]
            self.require("templates", 0, len(templates), 1, missed)
        self.width = common = Counter(lengths.values()).most_common(1)[0][0]
        for i, n in lengths.items():
            if n != common:
                self.skipped.append(
                    ("template", templates[i], f"{n} tokens where the others have {common}")
                )
        return [i for i, n in lengths.items() if n == common]


def start(
    model: HookedTransformer, task: str, n: int, seed: int, bos: bool | None
) -> tuple[Reader, np.random.Generator, dict[str, Any]]:
    """What every task of sentences begins with: its reader, its random numbers, the word lists."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r}: expected a number of pairs, 1 or more")
    return Reader(model, task, bos), np.random.default_rng(seed), words()


@cache
def words() -> dict[str, Any]:
    """The word lists and templates of the tasks."""
    return json.loads((Path(__file__).parent / "words.json").read_text("utf-8"))


def mask_token(model: Any) -> str | None:
    """The blank that a model is asked at: the mask token of one that attends both ways."""
    tokenizer = model.tokenizer
    causal = getattr(getattr(model, "cfg", None), "causal", True)
    if causal or tokenizer is None or tokenizer.mask_id is None:
        return None
    return tokenizer.special["mask_token"]


def assemble(
    reader: Reader,
    n: int,
    draw: Callable[[int, int], Draft],
    roles: Callable[[Draft, Mapping[str, int]], Mapping[str, int]],
    changed: Sequence[str],
) -> Pairs:
    """Draw n pairs, all different and of one length, and make them Pairs.

    draw(row, attempt): a later attempt draws other words. roles: from positions by field to
    positions by role.
    """
    drafts: list[tuple[Draft, Mapping[str, int]]] = []
    seen: set[tuple[str, str]] = set()
    for row in range(n):
        for attempt in range(TRIES):
            # Where nothing comes of a row's own template and words, those of another row are taken.
            draft = draw(row if attempt < TRIES // 2 else (row + attempt) % n, attempt)
            clean, corrupted = reader.close(draft.clean), reader.close(draft.corrupted)
            if (clean.text, corrupted.text) in seen:
                continue
            read, other = reader.read(clean), reader.read(corrupted)
            if read is not None and other is not None:
                at = roles(draft, read.at)
                if reader.matches(read, other, {at[role] for role in changed}):
                    break
            # Single words of the right length rarely melt with their neighbours, but they may.
            reader.skipped.append(("prompt", clean.text, "its tokens are not those of its words"))
        else:
            raise ValueError(
                f"{reader.task}: n={n}, but after {row} pairs {TRIES} draws gave none that is new "
                "and whose tokens are those of its words; ask for fewer, or bring prompts of your "
                "own: --prompts FILE, in Python tasks.from_csv"
            )
        seen.add((clean.text, corrupted.text))
        drafts.append((draft._replace(clean=clean, corrupted=corrupted), at))
    return as_pairs(reader, drafts, changed)


def as_pairs(
    reader: Reader, drafts: Sequence[tuple[Draft, Mapping[str, int]]], changed: Sequence[str]
) -> Pairs:
    """Pairs of these drafts, each with its position by role."""
    roles = {role: torch.tensor([at[role] for _, at in drafts]) for role in drafts[0][1]}
    texts = [[getattr(draft, side).text for draft, _ in drafts] for side in ("clean", "corrupted")]
    clean, corrupted = (
        reader.model.to_tokens(side, bos=reader.bos, roles=dict(roles)) for side in texts
    )
    device = clean.device
    return Pairs(
        reader.task,
        clean,
        corrupted,
        answer=torch.tensor([draft.answer for draft, _ in drafts], device=device),
        wrong=torch.tensor([draft.wrong for draft, _ in drafts], device=device),
        clean_texts=texts[0],
        corrupted_texts=texts[1],
        changed=tuple(changed),
        table=pd.DataFrame([draft.about for draft, _ in drafts]),
        skipped=pd.DataFrame(
            list(dict.fromkeys(reader.skipped)), columns=list(SKIPPED), dtype=object
        ),
    )


def crossed(rng: np.random.Generator, n: int, *sizes: int) -> np.ndarray:
    """n rows of indices, one column per factor, in random order.

    Each factor is balanced to within one; every combination comes once in each round of them.
    """
    i, rounds, columns = np.arange(n), 1, []
    for size in sizes:
        # Counting every factor up by one leaves combinations out where the sizes share a divisor;
        # one more step at the end of each cycle reaches the others in turn.
        step = i // math.lcm(rounds, size) % math.gcd(rounds, size)
        columns.append((i + step) % size)
        rounds *= size
    return rng.permutation(np.stack(columns, axis=1), axis=0)


def circle(rng: np.random.Generator, size: int, n: int, others: int = 0) -> np.ndarray:
    """n rows of 1 + `others` different indices below `size`; each column is balanced to within
    one."""
    blocks = []
    for _ in itertools.repeat(None, math.ceil(n / size)):
        order = rng.permutation(size)
        steps = rng.choice(np.arange(1, size), others, replace=False) if others else []
        blocks.append(np.stack([np.roll(order, -int(step)) for step in (0, *steps)], axis=1))
    return np.concatenate(blocks)[:n]


def as_named(draft: Draft, at: Mapping[str, int]) -> Mapping[str, int]:
    """Roles that are called like the fields of their templates."""
    return at
