"""Sentences from templates and tables, drawn many at a time.

A template is text with fields: {x} is the word of a row of the table that x draws from, {x.he} the
word of another column of the same row, {x.is|was} any of two columns, [a|b] any of two texts. "!"
marks the word that a reader can know from what stands before it: {x.he!} has the same column of the
paired row as its wrong counterpart, {a!b} the word of b. Templates and rows that are held out are
compiled apart, so that what is drawn for training cannot hold them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np

from .lexicon import read, tables

Split = Literal["trained", "held-out template", "held-out words"]
ONE_IN = 5
"""One in so many pairs of a country and a template is held out."""
STARTS = 99
"""Years of a century to begin with, 00 to 98, so that one is left to end with."""

_BRACKETS = re.compile(r"\[([^\]]*)\]")
_COLUMNS = re.compile(r"\{(\w+)\.([\w|]+)(!?\w*)\}")
PIECES = re.compile(r"\{(\w+)(?:\.(\w+))?(!?)(\w*)\}|[A-Za-z]+|\d\d|[^\w\s]")


class Field(NamedTuple):
    """A word that is drawn."""

    var: str
    column: str


@dataclass(frozen=True)
class Template:
    """One way to build a sentence: literal words and fields, and what the fields draw from."""

    kind: str
    split: Split
    source: str
    """The text that it was written as."""
    pieces: tuple[str | Field, ...]
    draws: Mapping[str, tuple[str, np.ndarray]]
    """By variable its table and the rows that it may have."""
    weight: float
    answer: int | None = None
    """Which piece can be known from those before it."""
    wrong: Field | None = None
    """The other variable's word that it is compared with; None: that of the paired row."""


@cache
def templates() -> tuple[Template, ...]:
    """Every template of the language, trained and held out."""
    found: list[Template] = []
    for kind, about in read("sentences.json").items():
        groups = about["groups"]
        share = about["weight"] / sum(len(group["templates"]) for group in groups)
        for group in groups:
            for number, text in enumerate([*group["templates"], *group.get("heldout", ())]):
                new = number >= len(group["templates"])
                found += _expand(kind, group, number, text, new, share)
    return tuple(found)


def rules() -> dict[str, str]:
    """By kind of sentence how its answers are judged."""
    kinds = read("sentences.json").items()
    return {kind: about["rule"] for kind, about in kinds if "rule" in about}


def _expand(
    kind: str, group: dict, number: int, text: str, new: bool, share: float
) -> Iterator[Template]:
    """One written template as all that its alternatives give, with shares of its weight."""
    choices = group["vars"] if isinstance(group["vars"], list) else [group["vars"]]
    texts = list(_alternatives(text))
    for vars in choices:
        for held in (False, True) if "held" in group else (False,):
            split = "held-out template" if new else "held-out words" if held else "trained"
            for one in texts:
                pieces, answer, wrong = _parse(one)
                used = {piece.var for piece in pieces if isinstance(piece, Field)}
                draws = {
                    var: _rows(vars[var], group.get("held"), held, number)
                    for var in vars
                    if var in used
                }
                weight = share / len(texts) / len(choices)
                yield Template(kind, split, text, pieces, draws, weight, answer, wrong)


def _alternatives(text: str) -> Iterator[str]:
    found = _BRACKETS.search(text) or _some_columns(text)
    if found is None:
        yield re.sub(" +", " ", text)
        return
    for choice in _choices(found):
        yield from _alternatives(text[: found.start()] + choice + text[found.end() :])


def _some_columns(text: str) -> re.Match | None:
    return next((found for found in _COLUMNS.finditer(text) if "|" in found[2]), None)


def _choices(found: re.Match) -> list[str]:
    if found[0].startswith("["):
        return found[1].split("|")
    return [f"{{{found[1]}.{column}{found[3]}}}" for column in found[2].split("|")]


def _parse(text: str) -> tuple[tuple[str | Field, ...], int | None, Field | None]:
    pieces: list[str | Field] = []
    answer, wrong = None, None
    for found in PIECES.finditer(text):
        var, column, asked, other = found.groups()
        if var is None:
            pieces.append(found[0])
            continue
        pieces.append(Field(var, column or "word"))
        if asked:
            answer, wrong = len(pieces) - 1, Field(other, column or "word") if other else None
    return tuple(pieces), answer, wrong


def _rows(source: str, rule: str | None, held: bool, number: int) -> tuple[str, np.ndarray]:
    """The rows that a variable may have: those trained on, or those held out."""
    name, _, query = source.partition("?")
    table = tables()[name]
    rows = table.rows(query)
    if rule == "rows" and len(table.held):
        rows = rows[np.asarray(table.held)[rows] == held]
    if rule == "pairs" and name == "countries":
        rows = rows[((rows + number) % ONE_IN == 0) == held]
    return name, rows


class Drawn(NamedTuple):
    """Sentences: ids padded with -1 on the right, and what they were made of."""

    ids: np.ndarray
    """[n, width]"""
    template: np.ndarray
    """[n], index into the grammar's templates."""
    rows: np.ndarray
    """[n, vars], the row that each variable drew."""


class Grammar:
    """Some templates, made ready to be drawn from by the thousand."""

    def __init__(self, chosen: Iterable[Template], vocab: Mapping[str, int]) -> None:
        self.templates = tuple(chosen)
        if not self.templates:
            raise ValueError("a grammar needs at least one template")
        n, width = len(self.templates), max(len(t.pieces) for t in self.templates)
        n_vars = max(len(t.draws) for t in self.templates)
        columns = _Columns(vocab)
        self.literal = np.full((n, width), -1)
        self.pointer = np.full((n, width), -1)
        self.var = np.zeros((n, width), dtype=int)
        self.offset, self.size = np.zeros((n, n_vars), dtype=int), np.ones((n, n_vars), dtype=int)
        self.table = np.full((n, n_vars), -1)
        self.years = np.zeros((n, n_vars), dtype=bool)
        names = list(tables())
        views: dict[bytes, int] = {}
        pool: list[np.ndarray] = []
        for i, template in enumerate(self.templates):
            at = {var: v for v, var in enumerate(template.draws)}
            for var, (name, rows) in template.draws.items():
                v, key = at[var], rows.tobytes()
                if key not in views:
                    views[key] = sum(map(len, pool))
                    pool.append(rows)
                self.offset[i, v], self.size[i, v] = views[key], len(rows)
                self.table[i, v], self.years[i, v] = names.index(name), name == "years"
            for w, piece in enumerate(template.pieces):
                if isinstance(piece, Field):
                    self.var[i, w] = at[piece.var]
                    self.pointer[i, w] = columns.start(template.draws[piece.var][0], piece.column)
                else:
                    self.literal[i, w] = vocab[piece]
        self.store, self.pool = columns.ids(), np.concatenate(pool)
        weights = np.array([template.weight for template in self.templates])
        self.cumulated = np.cumsum(weights / weights.sum())
        lengths = np.array([len(template.pieces) for template in self.templates])
        self.longest, self.mean_length = width, float(lengths @ weights / weights.sum())

    def draw(self, rng: np.random.Generator, n: int) -> Drawn:
        """n sentences."""
        which = np.searchsorted(self.cumulated, rng.random(n) * self.cumulated[-1])
        rows = self._rows(rng, which)
        again = self._clashes(which, rows)
        while again.size:
            rows[again] = self._rows(rng, which[again])
            again = again[self._clashes(which[again], rows[again])]
        pointer = self.pointer[which]
        drawn = np.take_along_axis(rows, self.var[which], axis=1)
        ids = np.where(pointer >= 0, self.store[pointer + drawn], self.literal[which])
        return Drawn(ids, which, rows)

    def _rows(self, rng: np.random.Generator, which: np.ndarray) -> np.ndarray:
        size, offset = self.size[which], self.offset[which]
        chance = rng.random(size.shape)
        rows = self.pool[offset + (chance * size).astype(int)]
        # The end of a span of years is uniform over what the century has left behind its start.
        place = chance * STARTS
        start = place.astype(int)
        end = start + 1 + ((place - start) * (STARTS - start)).astype(int)
        return np.where(self.years[which], 100 * start + end, rows)

    def _clashes(self, which: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Sentences in which two variables drew the same row of one table."""
        table, found = self.table[which], np.zeros(len(which), dtype=bool)
        for v, w in itertools.combinations(range(rows.shape[1]), 2):
            same = (table[:, v] == table[:, w]) & (table[:, v] >= 0)
            found |= same & (rows[:, v] == rows[:, w])
        return np.flatnonzero(found)


class _Columns:
    """The ids of all columns that templates name, one behind the other."""

    def __init__(self, vocab: Mapping[str, int]) -> None:
        self.vocab = vocab
        self.starts: dict[tuple[str, str], int] = {}
        self.parts: list[np.ndarray] = []
        self.total = 0

    def start(self, table: str, column: str) -> int:
        key = (table, column)
        if key not in self.starts:
            part = np.array([self.vocab[word] for word in tables()[table].columns[column]])
            self.starts[key], self.total = self.total, self.total + len(part)
            self.parts.append(part)
        return self.starts[key]

    def ids(self) -> np.ndarray:
        return np.concatenate([*self.parts, [0]])


def words() -> list[str]:
    """Every word of the tables and templates, each once."""
    found = {piece for t in templates() for piece in t.pieces if isinstance(piece, str)}
    for t in templates():
        for piece in t.pieces:
            if isinstance(piece, Field):
                found.update(tables()[t.draws[piece.var][0]].columns[piece.column])
    return sorted(found)
