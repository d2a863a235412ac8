"""The greater-than task: an end that lies behind its beginning.

Its answers are sets of years: rows of `answer` and `wrong` hold k ids each, so that a metric sums
their probabilities or averages their logits as they stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .pairs import Pairs
from .prompts import Draft, Reader, assemble, circle, crossed, fill, start

CENTURIES = range(11, 20)
LEAST = 5
"""Years to begin with, below which there is no task."""


def greater_than(
    model: Any, n: int = 100, seed: int = 0, *, bos: bool | None = None, k: int = 10
) -> Pairs:
    """A later year: "The war lasted from the year 1732 to the year 17" → "33" or "34" or ….

    `answer` [n k] are the k years after the one named, `wrong` [n k] that year and the k − 1
    before it; the corrupted year ends in "01", after which all of them are possible. Where this
    tokenizer has years as one token, the prompt ends before the century and the answers are whole
    years. Roles century year end (where a year is one token, century and year are the same).
    Hanna et al. 2023.
    """
    reader, rng, words = start(model, "greater_than", n, seed, bos)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= 49:
        raise ValueError(f"k={k!r}: expected a number of years from 1 to 49")
    calendar = _calendar(reader, k)
    events = list(reader.usable("events", words["events"], least=2))
    templates = words["templates"]["greater_than"]
    written = [calendar.template(template) for template in templates]
    usable = reader.templates(written, calendar.fields(calendar.starts[0]) | {"event": events[0]})
    design, cast = crossed(rng, n, len(usable)), circle(rng, len(calendar.starts), n)

    def draw(row: int, attempt: int) -> Draft:
        which, event = usable[design[row, 0]], str(rng.choice(events))
        century, year = begin = calendar.starts[cast[row, 0]]
        early, late = calendar.around(begin, k)
        return Draft(
            fill(written[which], calendar.fields(begin) | {"event": event}),
            fill(written[which], calendar.fields((century, 1)) | {"event": event}),
            late,
            early,
            {
                "template": templates[which],
                "event": event,
                "century": str(century),
                "year": f"{century}{year:02}",
            },
        )

    def roles(draft: Draft, at: Mapping[str, int]) -> dict[str, int]:
        return {"century": at.get("century", at["year"]), "year": at["year"], "end": at["end"]}

    return assemble(reader, n, draw, roles, changed=["year"])


@dataclass(frozen=True)
class _Calendar:
    """The years that a tokenizer can speak of, as a century and two digits or as one token."""

    split: bool
    ids: dict[int, dict[int, int]]
    """Century to the last two digits to the id: of the digits, or of the whole year."""
    starts: list[tuple[int, int]]
    """Years with k others on either side, in centuries whose year 01 can be written."""

    def template(self, template: str) -> str:
        if not self.split:
            return template
        return template.replace("{year}", "{century}{year}") + " {again}"

    def fields(self, begin: tuple[int, int]) -> dict[str, str]:
        century, year = begin
        if not self.split:
            return {"year": f"{century}{year:02}"}
        return {"century": str(century), "year": f"{year:02}", "again": str(century)}

    def around(self, begin: tuple[int, int], k: int) -> tuple[list[int], list[int]]:
        """Ids of the k years up to and with this one, and of the k after it."""
        century, year = begin
        years = self.ids[century]
        at = sorted(years).index(year) + 1
        every = [years[y] for y in sorted(years)]
        return every[at - k : at], every[at : at + k]


def _calendar(reader: Reader, k: int) -> _Calendar:
    """The way of writing years that allows more of them; what the other misses is skipped."""
    # Behind a century stands no blank of a masked model: it would mean a word of its own.
    ways = [_written(reader, split, k) for split in (False, True) if not split or not reader.blank]
    best = max(ways, key=lambda way: len(way.starts))
    if len(best.starts) < LEAST:
        pieces = reader.tokenizer.str_tokens(reader.word("1732"))
        raise ValueError(
            f"greater_than: the tokenizer {reader.tokenizer.name!r} splits 1732 into {pieces}; the "
            "task needs a century and two digits (17 32) or the whole year as one token, with "
            f"k={k} years on either side and the year 01 of the century"
        )
    for century, years in best.ids.items():
        if len(years) < 100:
            what = "a century and two digits" if best.split else "one token"
            reader.skipped.append(("years", f"{century}00s", f"{100 - len(years)} are not {what}"))
    return best


def _written(reader: Reader, split: bool, k: int) -> _Calendar:
    ids: dict[int, dict[int, int]] = {}
    starts = []
    for century in CENTURIES:
        before = reader.word(str(century)) if split else []
        years = {y: reader.word(f"{century}{y:02}") for y in range(100)}
        known = {
            y: found[-1]
            for y, found in years.items()
            if found[:-1] == before and found[-1] != reader.tokenizer.unk_id
        }
        ids[century] = known if len(before) == split else {}
        order = sorted(ids[century])
        if 1 in ids[century]:
            starts += [(century, y) for y in order[k - 1 : len(order) - k] if y > 1]
    return _Calendar(split, ids, starts)
