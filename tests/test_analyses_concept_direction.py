"""The concept's direction as a report, on models whose truth is known, and what it refuses."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from analyses import _concept_causes as parts
from analyses._concept_first import Outcome, answer_of
from analyses._concepts import of_labelled
from analyses.concept_direction import Config, examine, run
from interp import metrics
from interp.core.tokens import Tokens
from interp.methods.concepts import (
    Ask,
    Concept,
    Verdict,
    auroc,
    auroc_interval,
    find_all,
    of_texts,
    of_words,
    other_tokens,
    separation,
)
from interp.methods.directions import Direction
from interp.report import Report
from interp.zoo import planted
from interp.zoo.planted.words import RELATIONS
from tests.vocabularies import model_of, whole_words

QUICK = {"n_random": 19, "factors": (1.0,)}


pytestmark = pytest.mark.usefixtures("one_thread")


def frame_of(report, name):
    items = [item for section in report.sections for item in section.items]
    (found,) = [one for one in items if getattr(getattr(one, "table", one), "name", "") == name]
    return getattr(found, "table", found).frame


def check_first_screen(report, answer):
    """The answer begins so; below it dose and response; three short sentences lead on."""
    assert report.headline.startswith(answer), report.headline
    assert [item.name for item in report.opening.items] == ["dose-response"]
    first = report.first_screen().findings
    assert [sentence.at for sentence in first] == [
        "separation-by-layer", "dose-response", "causal-methods",
    ]  # fmt: skip
    assert all(len(sentence.split()) <= 25 for sentence in first), first
    report.html()  # what the sentences lead to is there


def of_lookup(known, feature, seed):
    """A feature of the planted lookup as a concept, and prompts whose answer depends on bit(a)."""
    inputs = known.labelled(192, seed=seed)
    asked = known.prompts(64, seed=seed)
    names = ("even", "odd")
    concept = Concept(feature, names, inputs.tokens, inputs.labels[feature].cpu(), metrics.kl(),
                      "KL", inputs.position)  # fmt: skip
    a = asked.clean.ids[torch.arange(64), asked.clean.roles["a"]]
    other = asked.corrupted.ids[torch.arange(64), asked.clean.roles["a"]]
    apart = (a % 2 != other % 2).nonzero().flatten()
    odd = ((a - 1) % 2 == 1)[:, None]
    answer, wrong = asked.answer[:, None], asked.wrong[:, None]
    ask = Ask(asked.clean, torch.where(odd, answer, wrong), torch.where(odd, wrong, answer),
              "odd − even", "end", own=False).rows(apart)  # fmt: skip
    return concept, ask


@pytest.mark.parametrize("seed", [0, 1])
def test_the_linear_feature_of_the_lookup_is_found_and_used(seed):
    known = planted.lookup(4, seed=seed)
    concept, ask = of_lookup(known, "a", seed)
    report = Report("t", "q?")
    config = Config(site="resid_mid", seed=seed, **QUICK)
    told = examine(report, known.model, concept, ask, config, progress=False)
    assert told == Verdict(readable=True, used=True, moves=True, plain=True)
    assert "readable and used" in report.findings[3]
    check_first_screen(
        report, "A direction at layer 0 tells “odd” from “even”, and the model uses it:"
    )
    table = frame_of(report, "separation")
    assert set(table["method"]) == {"difference of means", "linear probe"}
    # the means of 96 texts also hold some of the fillers' noise
    assert (table["auroc"] > 0.9).all() and (table["auroc_low"] > 0.8).all()
    erased = frame_of(report, "erasure").set_index("erased")
    assert erased.loc["none", "accuracy"] > 0.9 and erased.loc["leace", "accuracy"] < 0.75
    assert erased.loc["leace", "p"] <= 0.1
    assert any("not dormant" in text for text in report.findings)
    assert any("no pairs" in text for text in report.skipped)


@pytest.mark.parametrize("feature", ["xor", "c"])
def test_what_is_not_linear_is_not_found(feature):
    known = planted.lookup(4, seed=0)
    concept, ask = of_lookup(known, feature, 0)
    report = Report("t", "q?")
    told = examine(report, known.model, concept, ask, Config(site="resid_mid", **QUICK),
                   progress=False)  # fmt: skip
    assert not told.readable and not told.used
    assert "not found" in report.findings[3]
    check_first_screen(
        report, "No direction is found: at layer 0 none tells “even” and “odd” of new "
    )
    assert frame_of(report, "separation")["auroc_low"].max() < 0.5


def test_a_feature_that_nothing_reads_is_readable_but_not_used():
    """b stands at the last token for all to see; what is asked depends on the bag of fillers only
    by chance, so neither removing nor adding its direction changes the difference of two fillers'
    values, of which the model says neither."""
    known = planted.lookup(4, seed=0)
    concept, ask = of_lookup(known, "b", 0)
    n = len(ask.tokens)
    ask = dataclasses.replace(ask, toward=torch.full((n, 1), 15), away=torch.full((n, 1), 16))
    model = known.model
    with torch.no_grad():  # the two fillers are told from the bag, where b is not
        model.W_U[known.truth.directions["bag"][[2, 3]].argmax(1), torch.tensor([15, 16])] = 8.0
    report = Report("t", "q?")
    config = Config(site="resid_mid", **QUICK)
    told = examine(report, model, concept, ask, config, progress=False)
    assert told == Verdict(readable=True, used=False, moves=False, plain=False)
    assert "readable but not used" in report.findings[3]
    check_first_screen(
        report,
        "A direction at layer 0 tells “odd” from “even”, but the model does not use it: it acts",
    )


def test_a_planted_axis_of_words_is_found_and_turns_men_into_women():
    known = planted.vocabulary(seed=1)
    model, pairs = known.model, RELATIONS["gender"]
    concept = of_words(model, *zip(*pairs, strict=True))
    ids = concept.tokens.ids
    ask = Ask(concept.tokens[:10], ids[10:], ids[:10], "woman − man", None)
    report = Report("t", "q?")
    config = Config(**QUICK, layers=(0,), method="pca")
    told = examine(report, model, concept, ask, config, progress=False)
    assert told.used and told.moves
    (row,) = frame_of(report, "separation").query("method == 'PCA of pairs'").to_dict("records")
    assert row["auroc"] == 1 and row["p_shuffled"] <= 0.25  # five pairs often agree by chance
    found = find_all(model, concept, "resid_post", (0,), 0)
    axis = known.truth.directions["gender"][0]
    for method in ("means", "pca"):
        assert found.directions[0, method].unit @ axis > 0.99
    tokens = frame_of(report, "tokens")
    women = {woman for _, woman in pairs}
    assert set(tokens.loc[tokens["side"] == "promoted", "token"].str.strip()) == women


def test_shuffled_labels_find_nothing():
    known = planted.lookup(4, seed=0)
    concept, _ = of_lookup(known, "a", 0)
    dealt = concept.labels[torch.randperm(192, generator=torch.Generator().manual_seed(3))]
    null = dataclasses.replace(concept, labels=dealt)
    table = separation(find_all(known.model, null, "resid_mid", (0,), 0), 19, 0)
    assert table["auroc_low"].max() < 0.5 and table["p_shuffled"].min() > 0.05


@pytest.mark.parametrize(("name", "dormant"), [("dormant", True), ("real", False)])
def test_f5_a_dormant_direction_is_named_dormant(name, dormant):
    known = planted.fixtures.illusory_direction()
    own = Direction(known.directions[name].vector, "blocks.0.hook_resid_pre", "planted")
    report = Report("t", "q?")
    metric = metrics.function(known.measure, "y")
    tokens = torch.tensor([[0], [1], [0], [1]])
    told = parts.dormancy_section(report, known.model, tokens, own, metric, "all", 1.0,
                                      progress=False)  # fmt: skip
    # the real axis lies half off the line (1, 0, 1) along which the data vary: ½ against ½
    assert told == dormant
    assert ("is dormant" in report.findings[0]) == bool(report.warnings) == dormant


def test_auroc_is_what_scikit_learn_says_and_its_interval_holds_at_one():
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    scores = np.round(rng.normal(size=(40, 3)) + y[:, None], 1)  # with ties
    for column, own in zip(scores.T, auroc(scores, y), strict=True):
        assert own == pytest.approx(roc_auc_score(y, column))
    low, high = auroc_interval(1.0, 20, 20)
    assert 0.8 < low < 0.97 and high == 1
    low, high = auroc_interval(0.5, 20, 20)
    assert low < 0.36 and high > 0.64
    # what it promises: it holds the truth in about 95 % of draws
    held = 0
    for _ in range(200):
        drawn = rng.normal(size=(40, 1)) + y[:, None]
        low, high = auroc_interval(float(auroc(drawn, y)[0]), 20, 20)
        held += low <= 0.7602 <= high  # Φ(1/√2)
    assert held >= 182


def test_off_target_ignores_the_tokens_asked_for():
    model = model_of(whole_words())
    ids = torch.randint(5, 30, (3, 4), generator=torch.Generator().manual_seed(0))
    ask = Ask(model.accept(ids), torch.tensor([[3]] * 3), torch.tensor([[4]] * 3), "", None)
    reads = other_tokens(ask)
    logits = model(ids)
    bound = reads.bind(model, ask.tokens, lambda what: logits)
    every = torch.arange(3)
    moved = logits.clone()
    moved[..., [3, 4]] += torch.tensor([5.0, -5.0])
    assert bound.measure(bound.pick(moved, every), every) == pytest.approx(0, abs=1e-6)
    moved[..., 7] += 3.0
    p, q = (x[:, -1].double() for x in (logits, moved))
    for x in (p, q):
        x[:, [3, 4]] = -torch.inf
    p, q = p.softmax(-1), q.softmax(-1)
    by_hand = torch.where(p > 0, p * (p / q).log(), 0.0).sum(-1)
    got = bound.measure(bound.pick(moved, every), every)
    assert got.double() == pytest.approx(by_hand, rel=1e-4)


def test_halves_share_no_text_and_keep_pairs_together():
    tokens = torch.tensor([[i % 20] for i in range(24)] + [[30 + i % 20] for i in range(24)])
    labels = torch.tensor([0] * 24 + [1] * 24)
    concept = Concept("t", ("a", "b"), Tokens(tokens), labels, metrics.kl(), "", None, True)
    for seed in range(5):
        halves = concept.halves(seed)
        assert not set(tokens[halves.fit, 0].tolist()) & set(tokens[halves.held, 0].tolist())
        assert set(halves.fit[halves.fit < 24] + 24) == set(halves.fit[halves.fit >= 24])
        assert len(halves.fit) + len(halves.held) + halves.twice == 48
        turned = concept.shuffled(np.random.default_rng(seed))
        assert (turned[:24] + turned[24:] == 1).all()


def test_your_own_texts_are_read(tmp_path):
    model = model_of(whole_words())
    names = ["Mary", "Sarah", "Lisa", "Emma", "John", "Tom", "Peter", "James"]
    rows = [{"sentence": f"We saw {name} and {other}", "sex": "f" if i < 4 else "m"}
            for i, name in enumerate(names) for other in names[:4]]  # fmt: skip
    path = tmp_path / "own.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    options = {
        "data": path,
        "text_column": "sentence",
        "label_column": "sex",
        "n": 6,
        "factors": (1.0,),
    }
    report = run(model, Config(**options, n_random=2, task="gendered-pronoun"))
    assert "f to m" in report.findings[3] and "own.csv" in report.findings[3]
    assert any("not made for each other" in doubt for doubt in report.doubts)
    # Two random directions can decide nothing, which is said first and in place of a verdict.
    assert any("--n-random 19 lets it" in text for text in report.warnings)
    assert "is not settled" in report.findings[3]
    check_first_screen(
        report, "This run cannot tell whether the model uses a direction from “f” to “m”:"
    )
    without = run(model, Config(**options, n_random=19))
    said = " ".join([*without.findings, *without.doubts, *without.skipped])
    assert "logit(" not in said and "pronoun" not in said  # nothing of a task that nobody named
    assert "the next token's distribution (KL, nats)" in said
    assert "Without a task, effects are changes of the next token" in without.findings[4]
    assert "not whether it moves an answer from f to m" in without.findings[4]
    assert any("--prompts takes pairs of yours" in doubt for doubt in without.doubts)
    assert not any("not made for each other" in doubt for doubt in without.doubts)
    table = frame_of(without, "causal")
    assert (table["effect"] >= -1e-6).all()  # a divergence
    assert table["off_value"].isna().all() and (table["n"] == 16).all()  # the held-out half
    assert not any(getattr(item, "name", "") == "prompts" for part in without.sections
                   for item in part.items)  # fmt: skip
    pd.DataFrame([*rows, {"sentence": "a", "sex": "x"}]).to_csv(path, index=False)
    with pytest.raises(ValueError, match="3 labels"):
        of_labelled(model, path, "sentence", "sex")


def test_on_ones_own_texts_a_direction_that_is_read_acts_and_another_does_not():
    """The labels of a feature that decides what the model says next, and of one that does not. What
    these texts vary along anyway does as much as the ablation, so that adding is asked."""
    known = planted.lookup(4, seed=0)
    config = Config(site="resid_mid", data="own.csv", **QUICK)
    for feature, used in (("a", True), ("c", False)):
        concept, _ = of_lookup(known, feature, 0)
        report = Report("t", "q?")
        told = examine(report, known.model, concept, of_texts(concept), config, progress=False)
        assert told.moves == told.plain == used
        assert "Without a task" in report.findings[4]
        assert ("what comes next" in report.headline) == used


@pytest.mark.parametrize(
    ("verdict", "answer"),
    [
        (Verdict(True, True, True, True), "uses it: removing or adding it changes the answer{}."),
        (Verdict(True, True, False, True), "needs it: .* no more than other directions do{}."),
        (Verdict(True, False, True, True), "does without it: .* removing other directions{}."),
        (Verdict(True, False, False, True), "acts no more on the answer than whatever else"),
        (Verdict(True, False, False, False), "the model does not use it"),
        (Verdict(False, False, True, True), "No direction is found.*what was found acts{}."),
        (Verdict(False, False, False, False), "No direction is found.*from shuffled labels."),
        (Verdict(True, True, True, True, False), "This run cannot tell"),
    ],
)
@pytest.mark.parametrize("dormant", [True, False])
def test_the_answer_is_true_of_every_outcome(verdict, answer, dormant):
    found = SimpleNamespace(concept=SimpleNamespace(classes=("he", "she")))
    nothing = pd.DataFrame()
    outcome = Outcome(
        2, "means", verdict, nothing, nothing, nothing, dormant, "logit", "the answer"
    )
    illusion = ", though only by a part of it along which no text varies" if dormant else ""
    assert re.search(answer.format(illusion), answer_of(found, outcome))
    assert ("though only by" in answer_of(found, outcome)) == (dormant and "{}" in answer)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="one above 0"):
        Config(factors=(-1.0,))
    with pytest.raises(ValueError, match="no 0"):
        Config(factors=(0.0, 1.0))
    with pytest.raises(ValueError, match="takes pairs"):
        Config(method="pca", data="x.csv")
    with pytest.raises(ValueError, match="not among"):
        Config(layer=3, layers=(0, 1))
    model = model_of(whole_words())
    with pytest.raises(ValueError, match="layer=5: expected 0 to 0"):
        run(model, Config(n=6, layer=5))
    with pytest.raises(ValueError, match="head='none'"):
        run(model_of(whole_words(), head="none"), Config(n=6))
