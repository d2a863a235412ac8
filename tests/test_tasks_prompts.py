"""Prompts: words that do not fit are skipped and counted, designs are balanced."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp import tasks
from interp.data.tasks.prompts import circle, crossed, fill, words
from interp.model import HookedTransformer
from tests.vocabularies import (
    byte_pairs,
    model_of,
    models_by_kind,
    whole_words,
)


@pytest.fixture(scope="module")
def models() -> dict[str, HookedTransformer]:
    return models_by_kind()


def test_words_of_several_tokens_are_skipped_and_counted():
    model = model_of(byte_pairs(without=("Mary", "Paris", "keys", "museum")))
    pairs = tasks.indirect_object(model, n=200)
    assert pairs.skipped["word"].tolist() == ["Mary", "museum"]
    assert pairs.skipped["kind"].tolist() == ["names", "places"]
    assert "tokens [' M" in pairs.skipped["reason"][0]
    assert not set(pairs.table["io"]) & {"Mary"} and not set(pairs.table["place"]) & {"museum"}
    assert "2 skipped" in repr(pairs)
    assert tasks.capitals(model, n=5).skipped["word"].tolist() == ["France/Paris"]
    assert tasks.agreement(model, n=5).skipped["word"].tolist() == ["key/keys"]
    unknown = tasks.indirect_object(model_of(whole_words(without=("Mary",))), n=5).skipped
    assert unknown["reason"].tolist() == ["unknown to the tokenizer"]


def test_templates_of_another_length_or_with_unknown_words_are_skipped():
    pairs = tasks.indirect_object(model_of(byte_pairs(without=("Yesterday",))), n=50)
    reason = pairs.skipped.set_index("kind").loc["template", "reason"]
    assert "tokens where the others have 14" in reason
    assert not any(text.startswith("Yesterday") for text in pairs.clean_texts)
    pairs = tasks.indirect_object(model_of(whole_words(without=("Yesterday",))), n=50)
    (reason,) = pairs.skipped["reason"]
    assert reason.startswith("unknown to the tokenizer: 'Yesterday")
    with pytest.raises(ValueError, match=r"0 of 12 templates .* and 1 are needed: 'When"):
        tasks.indirect_object(model_of(whole_words(without=("and",))))


def test_too_few_words_name_the_first_and_their_pieces():
    names = tuple(words()["female"] + words()["male"])
    model = model_of(byte_pairs(without=names[2:]))
    with pytest.raises(
        ValueError, match=r"of 80 names .*4 are needed: '\w+' is \d tokens \[.*from_csv"
    ):
        tasks.indirect_object(model)


def test_more_pairs_than_there_are_is_refused():
    few = tuple(words()["places"][2:] + words()["objects"][2:])
    names = tuple((words()["female"] + words()["male"])[4:])
    templates = ("After", "While", "Then", "Today", "Once", "Later", "Because", "Before",
                 "Yesterday", "Soon", "Since")  # fmt: skip
    model = model_of(whole_words(without=(*few, *names, *templates)))
    assert len(tasks.indirect_object(model, n=20)) == 20
    with pytest.raises(ValueError, match=r"n=500, but after \d+ pairs .* none that is new"):
        tasks.indirect_object(model, n=500)
    with pytest.raises(ValueError, match="n=0: expected a number of pairs"):
        tasks.indirect_object(model, n=0)


def spread(values) -> int:
    counts = Counter(values).values()
    return max(counts) - min(counts)


@pytest.mark.parametrize("n", [7, 48, 100])
def test_balance(models, n):
    model = models["whole words"]
    io = tasks.indirect_object(model, n=n, seed=n).table
    assert spread(io["order"]) <= 1
    assert n < 12 or spread(io["template"]) <= 1
    assert n <= 80 or spread(io["io"]) <= 1
    assert n <= 80 or spread(io["s"]) <= 1
    assert n != 48 or spread(zip(io["template"], io["order"], strict=True)) == 0
    pronoun = tasks.gendered_pronoun(model, n=n, seed=n).table
    assert spread(pronoun["gender"]) <= 1
    assert n < 8 or spread(pronoun["template"]) <= 1
    number = tasks.agreement(model, n=n, seed=n).table
    assert spread(number["number"]) <= 1 and spread(number["distractor_number"]) <= 1
    assert n < 8 or spread(number["template"]) <= 1
    assert n != 48 or spread(zip(number["number"], number["distractor_number"], strict=True)) == 0
    capital = tasks.capitals(model, n=n, seed=n).table
    assert n < 72 or spread(capital["answer"]) <= 1
    assert n >= 72 or capital["answer"].is_unique
    assert spread(tasks.induction(model, n=n).table["span"]) <= 1


@given(
    n=st.integers(1, 200),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_crossed_is_balanced_and_complete(n, sizes, seed):
    found = crossed(np.random.default_rng(seed), n, *sizes)
    assert found.shape == (n, len(sizes))
    for column, size in zip(found.T, sizes, strict=True):
        counts = np.bincount(column, minlength=size)
        assert len(counts) == size and counts.max() - counts.min() <= 1
    total = int(np.prod(sizes))
    if n >= total:
        assert len(np.unique(found, axis=0)) == total
    whole = crossed(np.random.default_rng(seed), 2 * total, *sizes)
    assert np.unique(whole, axis=0, return_counts=True)[1].tolist() == [2] * total


@given(size=st.integers(4, 20), n=st.integers(1, 60), others=st.integers(0, 3))
@settings(max_examples=60)
def test_circle_is_balanced_and_never_meets_itself(size, n, others):
    found = circle(np.random.default_rng(n), size, n, others)
    assert found.shape == (n, others + 1)
    assert all(len(set(row)) == others + 1 for row in found.tolist())
    for column in found.T:
        counts = np.bincount(column, minlength=size)
        assert counts.max() - counts.min() <= 1


def test_fill_says_where_words_end():
    prompt = fill("When {a} and {b} left, {a}", {"a": "Mary", "b": "Al"})
    assert prompt.text == "When Mary and Al left, Mary"
    assert prompt.ends == {"a": 27, "b": 16}


def test_a_prompt_whose_words_melt_together_is_not_used(monkeypatch):
    """A tokenizer that reads "once" otherwise where one of these names stands before it."""
    model = model_of(byte_pairs())
    encode, melts = (
        model.tokenizer.encode,
        re.compile(rf"\b({'|'.join(words()['female'][1:30])}) once"),
    )
    monkeypatch.setattr(
        model.tokenizer, "encode", lambda text, bos=None: encode(melts.sub(r"\1x", text), bos)
    )
    pairs = tasks.gendered_pronoun(model, n=100)
    melted = pairs.skipped[pairs.skipped["kind"] == "prompt"]
    assert set(melted["reason"]) == {"its tokens are not those of its words"}
    assert not any(melts.search(text) for text in (*pairs.clean_texts, *pairs.corrupted_texts))
