"""The greater-than task: an end that lies behind its beginning.

Its answers are sets of years, or of the digits that a tokenizer writes them with: rows of `answer`
and `wrong` hold k ids each, so that a metric sums their probabilities or averages their logits as
they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

from interp.model import HookedTransformer

from .pairs import Pairs
from .prompts import Draft, Reader, assemble, circle, crossed, fill, start

CENTURIES = range(11, 20)
DIGITS = 4
LEAST = 5
"""Years to begin with, below which there is no task."""
MOST = 49
EACH_SIDE = {1: 3}
"""By default, how many answers there are where a piece is one digit; of longer pieces, `MANY`."""
MANY = 10


def greater_than(
    model: HookedTransformer,
    n: int = 100,
    seed: int = 0,
    *,
    bos: bool | None = None,
    k: int | None = None,
) -> Pairs:
    """A later year: "The war lasted from the year 1732 to the year 17" → "33" or "34" or ….

    The prompt ends in what the years share, and the next piece is compared. Where a tokenizer has a
    century and two digits (17 32), `answer` [n k] are the k years after the one named, `wrong`
    [n k] that year and the k − 1 before it. Where it writes digits one by one (1 7 3 2), they are
    the k next greater and the k next smaller digits of the ten years; in threes, of the last digit
    (173 2) or of the last three (1 732); where it has years as one token, the prompt ends before
    the year. By default k is 10, or 3 where single digits are compared. The corrupted year has the
    first of its century in place of what is compared (01, or the digit 0), after which all of them
    are possible. Roles century (the last token of what is shared) year (the token compared) end;
    where a year is one token, century and year are the same. Hanna et al. 2023.
    """
    reader, rng, words = start(model, "greater_than", n, seed, bos)
    whole = isinstance(k, int) and not isinstance(k, bool)
    if k is not None and not (whole and 1 <= k <= MOST):
        raise ValueError(f"k={k!r}: expected a number of years from 1 to {MOST}")
    calendar = _calendar(reader, k)
    events = list(reader.usable("events", words["events"], least=2))
    templates = words["templates"]["greater_than"]
    written = [calendar.way.template(template) for template in templates]
    usable = reader.templates(
        written, calendar.way.fields(calendar.starts[0]) | {"event": events[0]}
    )
    design, cast = crossed(rng, n, len(usable)), circle(rng, len(calendar.starts), n)

    def draw(row: int, attempt: int) -> Draft:
        which, event = usable[design[row, 0]], str(rng.choice(events))
        year = calendar.starts[cast[row, 0]]
        early, late = calendar.around(year)
        return Draft(
            fill(written[which], calendar.way.fields(year) | {"event": event}),
            fill(written[which], calendar.way.fields(calendar.way.first(year)) | {"event": event}),
            late,
            early,
            {
                "template": templates[which],
                "event": event,
                "century": year[:2],
                "year": year,
            },
        )

    def roles(draft: Draft, at: Mapping[str, int]) -> dict[str, int]:
        return {"century": at.get("century", at["year"]), "year": at["year"], "end": at["end"]}

    return assemble(reader, n, draw, roles, changed=["year"])


class Way(NamedTuple):
    """One way of writing years, and the piece that is compared: of the four digits those from
    `begin` to `end`, which are token number `token` of `tokens`."""

    begin: int
    end: int
    token: int
    tokens: int

    @property
    def last(self) -> bool:
        """Whether nothing follows the piece, so that the same piece is the same year."""
        return self.end == DIGITS

    @property
    def name(self) -> str:
        """What its years are, in errors and in what is skipped."""
        if (self.begin, self.end) == (0, DIGITS):
            return "one token"
        if (self.begin, self.end) == (2, DIGITS):
            return "a century and two digits"
        pieces = ("1732"[: self.begin], "1732"[self.begin : self.end], "1732"[self.end :])
        return f"split as {' '.join(filter(None, pieces))}"

    def shared(self, year: str) -> str:
        """What the years have in common that a year is compared with: at least its century, where
        nothing follows the piece."""
        return year[: max(self.begin, 2) if self.last else self.begin]

    def template(self, template: str) -> str:
        before, rest = "{century}" * bool(self.begin), "{rest}" * (not self.last)
        split = template.replace("{year}", f"{before}{{year}}{rest}")
        return f"{split} {{again}}" if before else split

    def fields(self, year: str) -> dict[str, str]:
        shared = year[: self.begin]
        return {
            "century": shared,
            "again": shared,
            "year": year[self.begin : self.end],
            "rest": year[self.end :],
        }

    def first(self, year: str) -> str:
        """The year with the first of its century in place of what is compared."""
        lowest = f"{year[:2]}0{1 if self.begin <= 2 else 0}"
        return year[: self.begin] + lowest[self.begin : self.end] + year[self.end :]


@dataclass(frozen=True)
class _Calendar:
    """The years that a tokenizer can speak of in one way."""

    way: Way
    ids: dict[str, dict[str, int]]
    """By what the years share (`Way.shared`): the pieces that are compared, and their ids."""
    years: list[str]
    """All years that are written so."""
    k: int

    @cached_property
    def starts(self) -> list[str]:
        """Years with k others on either side, whose first of the century is written so, too."""
        known = set(self.years)
        return [
            year
            for year in self.years
            if self.way.first(year) in known
            and year[: self.way.end] > self.way.first(year)[: self.way.end]
            and all(len(side) == self.k for side in self.around(year))
        ]

    @property
    def varied(self) -> bool:
        """Whether not all starts have the same answers."""
        return len({tuple(self.around(year)[1]) for year in self.starts}) > 1

    def around(self, year: str) -> tuple[list[int], list[int]]:
        """Ids of the k pieces that surely lead to no later year, and of the k that surely do."""
        ids = self.ids[self.way.shared(year)]
        order = sorted(ids)
        at = order.index(year[self.way.begin : self.way.end])
        below, above = order[: at + self.way.last], order[at + 1 :]
        return [ids[piece] for piece in below[-self.k :]], [ids[p] for p in above[: self.k]]


def _calendar(reader: Reader, k: int | None) -> _Calendar:
    """The way of writing years that allows more of them; what the other ways miss is skipped.

    A piece of several digits goes before a single one, of which that of the tens goes first.
    """
    found = [
        _Calendar(way, ids, years, k or EACH_SIDE.get(way.end - way.begin, MANY))
        for way, (ids, years) in _ways(reader).items()
    ]
    able = [calendar for calendar in found if len(calendar.starts) >= LEAST and calendar.varied]
    if not able:
        pieces = reader.tokenizer.str_tokens(reader.word("1732"))
        raise ValueError(
            f"greater_than: the tokenizer {reader.tokenizer.name!r} splits 1732 into {pieces}; the "
            "task needs the whole year as one token, or a token that says how a year goes on "
            "behind what two years share (17 32, 17 3 2, 173 2, 1 732), with "
            f"k={k or MANY} years on either side (of single digits at most 4), and the first year "
            "of the century"
        )

    def merit(calendar: _Calendar) -> tuple[bool, bool, int]:
        way = calendar.way
        single = way.end - way.begin == 1
        return not single, single and way.begin == 2, len(calendar.starts)

    best = max(able, key=merit)
    for century in CENTURIES:
        missing = 100 - sum(year.startswith(str(century)) for year in best.years)
        if missing:
            reader.skipped.append(("years", f"{century}00s", f"{missing} are not {best.way.name}"))
    return best


def _ways(reader: Reader) -> dict[Way, tuple[dict[str, dict[str, int]], list[str]]]:
    """By way of writing a year: the ids of `_Calendar`, and the years."""
    word = cache(lambda digits: tuple(reader.word(digits)))
    unknown = reader.tokenizer.unknown_ids | reader.tokenizer.special_ids
    ways: dict[Way, tuple[dict[str, dict[str, int]], list[str]]] = {}
    for number in range(100 * CENTURIES.start, 100 * CENTURIES.stop):
        year = str(number)
        ids = word(year)
        if unknown & {*ids}:
            continue
        for begin, end, token in _pieces(word, year):
            # Behind a beginning stands no blank of a masked model: it would mean a word of its own.
            if reader.blank is None or (begin, end) == (0, DIGITS):
                way = Way(begin, end, token, len(ids))
                table, years = ways.setdefault(way, ({}, []))
                table.setdefault(way.shared(year), {})[year[begin:end]] = ids[token]
                years.append(year)
    return ways


def _pieces(word: Callable[[str], tuple[int, ...]], year: str) -> list[tuple[int, int, int]]:
    """The tokens of a year that a prompt may end before: first digit, digit behind the last, and
    the token's number. Its beginning up to there, read alone, is read as the same tokens."""
    cuts = {0: 0}
    for digits in range(1, DIGITS + 1):
        part = word(year[:digits])
        if part and word(year)[: len(part)] == part:
            cuts[len(part)] = digits
    return [(cuts[at], cuts[at + 1], at) for at in cuts if at + 1 in cuts]
