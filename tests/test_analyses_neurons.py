"""Neurons as a report: named ones, a text, models of other kinds, what it refuses or leaves out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import interp
from analyses._task import TaskConfig, task_pairs
from analyses.neurons import Config, _answer, _costliest_alone, layers_that_fit, run
from interp.methods.baseline import measure_baseline
from interp.methods.neurons import Ranking
from interp.report import Report
from tests.vocabularies import model_of, models_by_kind, whole_words


def frame_of(report, name):
    found = [
        item
        for item in report.exhibits()
        if getattr(getattr(item, "table", item), "name", "") == name
    ]
    return getattr(found[0], "table", found[0]).frame


def ran(options=None, **changes):
    config = {"n": 4, "top": 1, "examples": 1} | (options or {})
    return run(model_of(whole_words(), **({"d_mlp": 12} | changes)), Config(**config))


def test_named_neurons_are_shown_on_a_text(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the king gave the book to the queen\nthe capital of France is Paris\n" * 3)
    report = ran({"neurons": ("0.3", "0.7"), "text": text, "windows": 5})
    chosen = frame_of(report, "chosen-firing")
    assert chosen["neuron"].tolist() == [3, 7]
    assert len(frame_of(report, "firing")) == 12
    assert any("first 5 windows" in skipped for skipped in report.skipped)
    table = frame_of(report, "ablations")
    assert set(table["neuron"]) == {"0.3", "0.7"}
    assert set(zip(table["edit"], table["metric"], strict=True)) == {
        (edit, metric) for edit in ("zero", "mean") for metric in ("logit_diff", "loss")
    }
    assert table.loc[table["metric"] == "loss", "n"].eq(5).all()
    shown = frame_of(report, "examples-2")
    top = frame_of(report, "top-tokens")
    best = top[(top["neuron"] == 7) & (top["rank"] == 1)]["value"].item()
    assert shown["value (activation)"].max() == pytest.approx(best)


def test_the_ranking_is_what_a_hook_takes():
    model = model_of(whole_words(), d_mlp=12)
    report = run(model, Config(n=4, top=1, examples=1))
    pairs = task_pairs(model, TaskConfig(task="capitals", n=4))
    row = frame_of(report, "ranking").iloc[0]

    def zero(x, hook):
        x[..., int(row["neuron"])] = 0

    change = measure_baseline(model.with_hooks([("mlp.hook_post", zero)]), pairs).clean
    change = change - measure_baseline(model, pairs).clean
    assert row["effect"] == pytest.approx(change.mean(), abs=1e-6)
    ranks = frame_of(report, "ranking")["effect"].abs()
    assert ranks.is_monotonic_decreasing


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({"mlp_gated": True, "activation": "silu", "norm": "rmsnorm"}, ()),
        ({"n_experts": 2, "experts_per_token": 1}, ("Direct attribution",)),
        ({"norm_position": "post"}, ("Direct attribution", "Promoted tokens")),
        ({"norm_position": "both"}, ("Direct attribution", "Promoted tokens")),
    ],
)
def test_every_kind_of_mlp_works_or_is_left_out_by_name(changes, left_out):
    report = ran(**changes)
    for part in ("Direct attribution", "Promoted tokens"):
        told = any(text.startswith(part) for text in report.skipped)
        assert told == (part in left_out), part
    assert np.isfinite(frame_of(report, "ranking")["effect"]).all()
    assert np.isfinite(frame_of(report, "ablations")["effect"]).all()


def test_a_model_that_attends_both_ways_has_no_loss():
    report = run(models_by_kind()["masked"], Config(n=4, top=1, examples=1))
    assert any("attends both ways" in text for text in report.skipped)
    assert set(frame_of(report, "ablations")["metric"]) == {"logit_diff"}


def test_one_prompt_has_no_interval_and_no_halves(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(
        "clean,corrupted,answer,wrong\nI know the king is,I know the queen is,Paris,Rome\n"
    )
    report = ran({"prompts": path})
    told = [*report.findings, *report.certainty, *report.skipped]
    assert not any("nan" in text for text in told)
    assert any("too few prompts" in text for text in report.skipped)
    assert frame_of(report, "ranking")["low"].isna().all()


def ranking_of(effect: float, noise: float = 1e-6, n: int = 20) -> Ranking:
    """Two neurons, of which the first has an effect on all prompts alike."""
    index = pd.MultiIndex.from_tuples([(0, 5), (0, 6)], names=["layer", "neuron"])
    effects = pd.DataFrame([[effect] * n, [0.0] * n], index=index)
    stderr = 0.01 if n > 1 else np.nan
    table = pd.DataFrame({"layer": 0, "neuron": [5, 6], "n": n, "effect": [effect, 0.0],
                          "stderr": stderr, "low": stderr, "high": stderr})  # fmt: skip
    return Ranking(table, effects, noise)


def sets_of(costliest: float, random: float = 0.0, size: int = 50) -> pd.DataFrame:
    rows = [("costliest", costliest, costliest - 0.1, costliest + 0.1),
            ("random", random, random - 0.2, random + 0.2)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["removed", "effect", "low", "high"])
    return frame.assign(size=size)


@pytest.mark.parametrize(
    ("ranking", "sets", "said"),
    [
        (ranking_of(1e-9), None, "No neuron matters alone: removing any of 2 changes nothing"),
        (ranking_of(-1.0), sets_of(-2.0), "Without the 50 costliest of 2 neurons the answer leads "
         "the wrong one by 1.0 instead of 3.0 logits; without as many random ones by 2.8 to 3.2."),
        (ranking_of(-1.0), sets_of(-0.1), "No few neurons can be named that the task needs"),
        (ranking_of(-1.0), sets_of(-2.0, size=1), "Without the costliest neuron the answer leads"),
        (ranking_of(-1.0, n=1), None, "Of 2 neurons L0 N5 costs the task most: set to zero, it "
         "moves the answer's lead over the wrong one from 3.00 to 2.00 logits."),
        (ranking_of(1.0, n=1), None, "The task needs none of 2 neurons"),
    ],
)  # fmt: skip
def test_the_answer_is_true_of_every_outcome(ranking, sets, said):
    assert _answer(ranking, sets, np.full(20, 3.0), "zero").startswith(said)


@pytest.mark.parametrize(
    ("ranking", "said"),
    [
        (ranking_of(-1.0), "Alone, L0 N5 costs the task most: 1.00 of the 3.00 logits by which the "
         "answer leads."),
        (ranking_of(-0.02), "by which the answer leads; that may be chance."),
        (ranking_of(-1.0, n=1), "by which the answer leads on this one prompt."),
        (ranking_of(1.0), "Alone, no neuron costs the task anything."),
    ],
)  # fmt: skip
def test_the_costliest_alone_is_true_of_every_outcome(ranking, said):
    report = Report("T", "Q?")
    _costliest_alone(report, ranking, [(0, 5)], 3.0)
    assert report.findings[0].endswith(said)
    assert report.findings[0].links in ({"L0 N5": "examples-1"}, {})


def test_the_first_screen_is_the_sets_and_three_short_findings():
    report = ran()
    screen = report.first_screen()
    assert [item.name for item in screen.items] == ["removed-together"]
    assert len(screen.findings) == 3
    assert all(len(finding.split()) <= 25 and finding.at for finding in screen.findings)
    report.html()  # every link leads somewhere


def test_layers_that_matter_most_are_chosen_while_they_fit():
    layers = pd.DataFrame({"layer": range(4), "effect": [-1.0, 5.0, 0.5, -3.0]})
    assert layers_that_fit(layers, 100, 400) == [0, 1, 2, 3]
    assert layers_that_fit(layers, 100, 250) == [1, 3]
    assert layers_that_fit(layers, 100, 10) == [1]


def test_the_neurons_of_capitals_in_tinyworld():
    model = interp.load("tinyworld", device="cpu")
    last = model.cfg.n_layers - 1
    report = run(model, Config(n=4, layers=(last,), top=1, examples=1))
    assert not report.warnings
    assert any(f"in layers {last} only" in text for text in report.skipped)
    sets = frame_of(report, "sets").set_index(["removed", "size"])["effect"]
    assert sets["costliest", 50] < sets["random", 50]
    assert frame_of(report, "ranking")["effect"].min() < 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top=0"),
        ({"top": 21}, "1 to 20 are shown"),
        ({"most": 0}, "most=0"),
        ({"examples": 0}, "examples=0"),
        ({"windows": 0}, "windows=0"),
        ({"width": 1}, "width=1"),
        ({"kind": "resample"}, "kind='resample'"),
    ],
)
def test_bad_configs_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_what_there_is_not_is_named():
    with pytest.raises(ValueError, match=r"layer of neuron 2.17=2: expected 0 to 0"):
        ran({"neurons": ("2.17",)})
    with pytest.raises(ValueError, match=r"expected layer\.neuron"):
        ran({"neurons": ("seven",)})
    with pytest.raises(ValueError, match="layers=1: expected 0 to 0"):
        ran({"layers": (1,)})
    with pytest.raises(ValueError, match="no MLP"):
        ran(d_mlp=0)
    with pytest.raises(ValueError, match="gives no logits"):
        ran(head="none", tied=False)
