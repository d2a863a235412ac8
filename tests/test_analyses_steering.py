"""Steering as a report: a planted axis turns words, a trained model's pronouns follow, refusals."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import interp
from analyses import _steering_sections as steering_report
from analyses.steering import Config, examine, run
from interp.methods.continuations import (
    SUMMARY,
    Counted,
    Writing,
    continued,
    measured,
    steer_texts,
    steered,
    summary,
)
from interp.methods.directions import Direction, word_direction
from interp.report import Report
from interp.zoo import planted
from interp.zoo.planted.words import RELATIONS
from tests.vocabularies import model_of, whole_words

WRITING = Writing((2.0,), 1.0, 4, 2, 1.0, 2, 0)


pytestmark = pytest.mark.usefixtures("one_thread")


def frame_of(report, name):
    items = [item for section in report.sections for item in section.items]
    (found,) = [one for one in items if getattr(getattr(one, "table", one), "name", "") == name]
    return getattr(found, "table", found).frame


def check_first_screen(report, answer):
    """The answer begins so; below it two continuations; three short sentences lead on."""
    assert report.headline.startswith(answer), report.headline
    assert [item.name for item in report.opening.items] == ["two-continuations"]
    first = report.first_screen().findings
    assert [sentence.at for sentence in first] == [
        "share-by-factor", "summary", "perplexity-by-factor",
    ]  # fmt: skip
    assert all(len(sentence.split()) <= 25 for sentence in first), first
    report.html()  # what the sentences lead to is there


def summary_of(*rows, base=0.4):
    """A summary whose steps have these factor, share, half an interval and p."""
    steps = [(0.0, base, 0.05, 1.0), *rows]
    frame = pd.DataFrame(
        [
            (factor, share, share - half, share + half, base, base, base, p, 0.1, 5 + factor, 5.0)
            for factor, share, half, p in steps
        ],
        columns=list(SUMMARY),
    )
    return frame.sort_values("factor", ignore_index=True)


@pytest.mark.parametrize(
    ("rows", "n_random", "answer"),
    [
        ([(1.0, 0.6, 0.1, 0.05), (2.0, 0.9, 0.1, 0.05)], 19, r"Yes: with \+2 steps .* “she” more"),
        ([(-1.0, 0.1, 0.1, 0.05), (1.0, 0.5, 0.2, 0.5)], 19, "Yes: with −1 steps .* “she” less"),
        ([(1.0, 0.6, 0.3, 0.05)], 19, "No: .* no more than random directions do; at .1 steps"),
        ([(1.0, 0.9, 0.1, 0.20)], 19, "No: .* 90 % of the continuations hold “she” instead of 40"),
        ([(-1.0, 0.9, 0.1, 0.05)], 3, "This run cannot tell .* at −1 steps"),
    ],
)
def test_the_answer_is_true_of_every_outcome(rows, n_random, answer):
    ids = {"she": 0, "he": 1}
    words = Counted(*(torch.tensor([i]) for i in ids.values()))
    model = SimpleNamespace(
        tokenizer=SimpleNamespace(str_tokens=lambda ask: [f" {[*ids][i]}" for i in ask])
    )
    told = steering_report.said(model, summary_of(*rows), words, n_random)
    assert re.match(answer, steering_report.answer_of(told).replace("\u00a0", " "))
    assert ("no price" in steering_report.answer_of(told)) == answer.endswith("less")


def test_a_planted_axis_turns_men_into_women_and_random_ones_do_not():
    known = planted.vocabulary(seed=0)
    model, pairs = known.model, RELATIONS["gender"]
    men, women = (torch.tensor([model.to_single_token(pair[i]) for pair in pairs]) for i in (0, 1))
    own = word_direction(interp.embedding(model), pairs, site="blocks.0.hook_resid_post")
    config = Config(prompt=("man", "king"), factors=(-4.0, 4.0), step=1.0, new_tokens=3,
                    samples=8, n_random=19)  # fmt: skip
    report = Report("t", "q?")
    short = examine(report, model, own, Counted(women, men), "planted", config).set_index("factor")
    assert short.loc[4.0, "positive"] > 0.8 > 3 * short.loc[0.0, "positive"]
    assert short.loc[4.0, "p"] == pytest.approx(1 / 20)
    assert short.loc[4.0, "positive_low"] > short.loc[4.0, "random_high"]
    assert short.loc[-4.0, "negative"] > 0.8 and short.loc[-4.0, "positive"] < 0.5
    told = " ".join(report.findings)
    assert "beyond random directions at" in told and "+4" in told
    check_first_screen(report, "Yes: with ")
    plain, steer = report.opening.items[0].columns.values()
    assert plain == "man … man man man" and steer.split()[2] in {w for _, w in pairs}
    assert "comes or goes" in report.opening.items[0].caption
    table = frame_of(report, "continuations").set_index(["prompt", "chosen"])
    assert table.loc[("man", "greedy"), "unsteered"].split() == ["man"] * 3
    assert table.loc[("man", "greedy"), "+4 steps"].split()[0] in {w for _, w in pairs}
    assert set(frame_of(report, "counted")["token"].str.strip()) == {w for p in pairs for w in p}


def test_a_direction_that_nothing_reads_changes_nothing():
    known = planted.vocabulary(seed=0)
    model = known.model
    vector = known.truth.directions["plural"][0]
    own = Direction(vector, "blocks.0.hook_resid_post", "planted")
    ids = [
        torch.tensor([model.to_single_token(p[i]) for p in RELATIONS["capital"]]) for i in (0, 1)
    ]
    report = Report("t", "q?")
    config = Config(prompt=("man",), factors=(0.5,), step=1.0, new_tokens=2, samples=16,
                    n_random=19)  # fmt: skip
    short = examine(report, model, own, Counted(*ids), "planted", config)
    assert short["p"].iloc[-1] > 0.05
    assert any("no more than random directions" in finding for finding in report.findings)
    check_first_screen(report, "No: adding the direction changes what is written no more than ")


def test_what_is_added_and_what_it_costs_is_what_a_hook_and_a_forward_say():
    model = model_of(whole_words())
    vector = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    own = Direction(vector, "blocks.0.hook_resid_post", "drawn")
    prompts = model.to_tokens(["We saw Mary", "We"])
    view = steered(model, own, 3.0)
    told = continued(model, view, prompts, WRITING, 0.0)

    def add(x, hook):
        return x + 3.0 * vector / vector.norm()

    for row, text in enumerate(["We saw Mary", "We"]):
        ids = model.to_tokens(text).ids
        cost = []
        for _ in range(4):
            steer = model.run_with_hooks(ids, fwd_hooks=[(own.site, add)])[0, -1]
            plain = model(ids)[0, -1].log_softmax(-1)
            cost.append(float(plain[steer.argmax()]))
            ids = torch.cat([ids, steer.argmax()[None, None]], 1)
        assert told.generation.new_ids[row].tolist() == ids[0, -4:].tolist()
        assert told.log_probs[row].tolist() == pytest.approx(cost, abs=1e-4)
    assert steered(model, own, 0.0) is model
    row = measured(told, Counted(told.generation.new_ids[0, :1], torch.tensor([0])))
    assert row["positive"] >= 0.5 and row["negative"] == 0 and row["negative_high"] > 0.3
    assert row["loss"] == pytest.approx(-float(told.log_probs.mean()), abs=1e-5)


def test_from_a_script_the_summary_is_a_line_away():
    """A step of nothing changes nothing: every share is the unsteered one, and every p is 1."""
    model = model_of(whole_words())
    vector = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    direction = Direction(vector, "blocks.0.hook_resid_post", "drawn")
    tokens = model.to_tokens(["We saw Mary"])
    counted = Counted(torch.arange(0, model.cfg.d_vocab, 2), torch.arange(1, model.cfg.d_vocab, 2))
    writing = Writing((-1e-12, 1e-12), 1.0, new_tokens=2, samples=4, n_random=2)
    frame = steer_texts(model, direction, tokens, counted, writing)
    assert len(frame) == 1 + 2 * (1 + 2) and (frame["n"] == 4).all()
    short = summary(frame)
    assert short["factor"].tolist() == [-1e-12, 0.0, 1e-12]
    assert short["positive"].nunique() == 1 and (short["p"] == 1).all()
    assert short["perplexity"].to_numpy() == pytest.approx(short["random_perplexity"].to_numpy())


def test_tinyworld_says_she_when_steered_and_random_directions_do_not():
    model = interp.load("tinyworld")
    config = Config(prompt=("Everyone in town likes Mary because",
                             "Everyone in town likes Peter because"),
                    factors=(-3.0, 3.0), samples=8, n_random=5, new_tokens=6, n=48)  # fmt: skip
    report = run(model, config)
    table = frame_of(report, "summary").set_index("factor")
    counted = frame_of(report, "counted")
    names = {side: set(some["token"].str.strip()) for side, some in counted.groupby("side")}
    assert names == {"positive": {"she"}, "negative": {"he"}}
    assert table.loc[3.0, "positive"] > table.loc[0.0, "positive"] > table.loc[-3.0, "positive"]
    assert table.loc[3.0, "positive"] > table.loc[3.0, "random_high"]
    assert table.loc[-3.0, "negative"] > table.loc[0.0, "negative"] > table.loc[3.0, "negative"]
    assert table.loc[3.0, "perplexity"] > table.loc[0.0, "perplexity"]


def test_words_and_a_saved_direction_are_used(tmp_path):
    model = model_of(whole_words())
    small = {"prompt": ("We saw Mary",), "samples": 2, "n_random": 1, "new_tokens": 2,
             "factors": (2.0,)}  # fmt: skip
    report = run(model, Config(positive="she, Mary,zebu", negative="he,John,gnu",
                               allow_unknown=True, **small))  # fmt: skip
    told = next(finding for finding in report.findings if finding.startswith("Adding"))
    assert "from he to she" in told and "blocks.0." in told
    check_first_screen(report, "This run cannot tell")
    assert any("zebu" in text for text in report.skipped)
    vector = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    kept = Direction(vector, "blocks.0.hook_resid_mid", "drawn", "another").save(
        tmp_path / "kept.safetensors"
    )
    report = run(model, Config(direction=kept, **small))
    assert any("blocks.0.hook_resid_mid" in finding for finding in report.findings)
    assert "another" in report.warnings[0]
    assert len(frame_of(report, "counted")) == 20


def test_what_it_refuses():
    for changes, why in (
        ({"factors": (0.0,)}, "no 0"),
        ({"prompt": ()}, "texts to continue"),
        ({"positive": "she"}, "both --positive and --negative"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"step": -1.0}, "above 0"),
        ({"samples": 1, "prompt": ("a",)}, "no interval"),
    ):
        with pytest.raises(ValueError, match=why):
            Config(**changes)
    for changes, why in (({"head": "none"}, "head='none'"), ({"causal": False}, "both ways")):
        with pytest.raises(ValueError, match=why):
            run(model_of(whole_words(), **changes), Config())
    model = model_of(whole_words())
    with pytest.raises(ValueError, match="layer=1: expected 0 to 0"):
        run(model, Config(n=4, layer=1))
    with pytest.raises(ValueError, match="context"):
        run(model, Config(n=4, new_tokens=10_000))
    with pytest.raises(ValueError, match="none of the words"):
        run(model, Config(positive="zebu", negative="gnu"))
