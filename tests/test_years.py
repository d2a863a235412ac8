"""The greater-than task, for every way in which tokenizers write numbers."""

from __future__ import annotations

from functools import cache

import pytest

from interp import tasks
from interp.model import HookedTransformer
from tests.vocabularies import byte_pairs, masked, model_of, text_of, whole_words, word_at

WAYS = {
    "two by two": (r" ?\d{1,2}", "17", 2, 10),
    "one by one": (r" ?\d", "17", 1, 3),
    "one by one behind a space": (r" (?=\d)|\d", "17", 1, 3),
    "threes from the left": (r" ?\d{1,3}", "", 3, 10),
    "threes from the left behind a space": (r" (?=\d)|\d{1,3}", "173", 1, 3),
    "threes from the right": (r" ?\d{1,3}(?=(?:\d{3})*(?:\D|$))", "1", 3, 10),
    "threes from the right behind a space": (
        r" (?=\d)|\d{1,3}(?=(?:\d{3})*(?:\D|$))", "1", 3, 10,
    ),
    "whole, behind a space": (r" ?\d+", "", 4, 10),
}  # fmt: skip
"""How numbers are split; of 1732 what the prompt shows again; digits of the next piece; k."""


@cache
def model_with(way: str) -> HookedTransformer:
    return model_of(byte_pairs(numbers=WAYS[way][0]))


def years_with(beginning: str) -> range:
    """All years of four digits that begin so."""
    missing = 10 ** (4 - len(beginning))
    return range(int(beginning) * missing, (int(beginning) + 1) * missing)


def expected(year: str, shared: str, width: int, k: int) -> tuple[list[str], list[str]]:
    """By brute force over all pieces of so many digits: the k nearest that make the year later
    whatever follows, and the k nearest that do not; within the century where nothing follows."""
    pieces = [f"{i:0{width}}" for i in range(10**width)]
    if len(shared) + width == 4:
        pieces = [one for one in pieces if (shared + one)[:2] == year[:2]]
    pieces = [one for one in pieces if (shared + one)[0] == "1"]
    later = [p for p in pieces if all(y > int(year) for y in years_with(shared + p))]
    latest = int(year) if len(shared) + width == 4 else int(year) - 1
    not_later = [p for p in pieces if all(y <= latest for y in years_with(shared + p))]
    return later[:k], not_later[-k:]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("k", [None, 2])
def test_answers_are_the_pieces_that_make_the_year_later(way, k):
    model = model_with(way)
    _, shared_1732, width, default = WAYS[way]
    pairs = tasks.greater_than(model, n=60, k=k)
    assert pairs.answer.shape == pairs.wrong.shape == (60, k or default)
    encode, seen = model.tokenizer.encode, set()
    for row, about in enumerate(pairs.table.itertuples()):
        year, shared = about.year, about.year[: len(shared_1732)]
        later, not_later = expected(year, shared, width, k or default)
        answer, wrong = (
            [text_of(model, i) for i in ids[row]] for ids in (pairs.answer, pairs.wrong)
        )
        assert (answer, wrong) == (later, not_later), (year, shared)
        assert pairs.clean_texts[row].endswith(shared)
        # What comes next is what the tokenizer itself has there in a later year.
        rest = answer[0] + "9" * (4 - len(shared) - width)
        later_text = pairs.clean_texts[row] + " " * (not shared) + rest
        ids = pairs.clean.ids[row].tolist()
        assert encode(later_text)[: len(ids) + 1] == [*ids, int(pairs.answer[row, 0])]
        compared = year[len(shared) : len(shared) + width]
        assert word_at(pairs, "year", row) == compared
        first = word_at(pairs, "year", row, "corrupted")
        assert first < compared and int(first[max(2 - len(shared), 0) :]) <= 1
        if shared:
            assert word_at(pairs, "end", row) == word_at(pairs, "century", row)
        assert about.century == year[:2] and year in pairs.clean_texts[row]
        seen.add(tuple(answer))
    assert len(seen) > 1, "all rows have the same answers"


def test_single_digits_have_no_more_than_four_on_either_side():
    model = model_with("one by one")
    assert tasks.greater_than(model, n=20, k=4).answer.shape == (20, 4)
    with pytest.raises(
        ValueError, match=r"\[' 1', '7', '3', '2'\].*k=5 .*of single digits at most 4"
    ):
        tasks.greater_than(model, k=5)


def test_years_that_are_written_otherwise_are_skipped_and_counted():
    pairs = tasks.greater_than(model_with("one by one"), n=5)
    assert "years" not in set(pairs.skipped["kind"])
    few = tasks.greater_than(model_of(whole_words(years=range(1700, 1750))), n=5, k=4)
    assert few.skipped["reason"].tolist().count("50 are not one token") == 1
    assert few.skipped["reason"].tolist().count("100 are not one token") == 8


def test_a_masked_model_is_asked_for_whole_years_alone():
    pairs = tasks.greater_than(model_of(masked(), causal=False), n=10)
    assert {len(text_of(model_of(masked(), causal=False), i)) for i in pairs.answer.flatten()} == {
        4
    }
