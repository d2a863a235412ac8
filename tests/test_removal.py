"""Removal: paired tests, second removals and growing sets, each against a second route."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats as reference

import interp
from interp import edits, metrics
from interp.methods import ablation as removal
from interp.methods.ablation import (
    cumulative_ablation,
    default_counts,
    second_removals,
    significance,
)
from tests.strategies import random_model, small_config

ANSWER, WRONG = torch.tensor([3, 4, 5, 6]), torch.tensor([5, 6, 7, 8])
TOKENS = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1], [5, 6, 7, 8], [8, 1, 6, 3]])
METRIC = metrics.logit_diff(ANSWER, WRONG)


@pytest.fixture(scope="module")
def model():
    return random_model(small_config(n_layers=2, n_heads=2))


@pytest.fixture(scope="module")
def nodes(model):
    return interp.nodes(model, "z", by=("layer", "head"))


@cache
def logit_diff(model, rows=()):
    """By hand: one hooked run in which the z of some heads (number in order) is zero."""
    heads = model.cfg.n_heads

    def zero(z, hook):
        for row in rows:
            if row // heads == hook.layer:
                z[:, :, row % heads] = 0

    view = model.with_hooks([("z", zero)]) if rows else model
    logits = view(TOKENS)[:, -1]
    return (logits.gather(1, ANSWER[:, None]) - logits.gather(1, WRONG[:, None]))[:, 0].numpy()


# Tests over examples -------------------------------------------------------------------------


def test_with_no_bar_it_is_the_paired_t_test_with_holms_correction():
    rng = np.random.default_rng(0)
    effects = rng.normal(rng.normal(0, 0.3, (7, 1)), 1, (7, 30))
    found = significance(effects, rng.normal(5, 1, 30))
    expected = reference.ttest_1samp(effects, 0, axis=1)
    assert np.allclose(found["p"], expected.pvalue)
    assert np.allclose(found["effect"] / found["stderr"], expected.statistic)
    smallest = sorted(expected.pvalue)
    by_hand = [max(min(1, p * (7 - i)) for i, p in enumerate(smallest[: k + 1])) for k in range(7)]
    assert np.allclose(sorted(found["p_corrected"]), by_hand)
    spread = significance(effects, np.ones(30), correction="bh")["p_corrected"]
    assert np.allclose(spread, reference.false_discovery_control(expected.pvalue))


def test_an_effect_must_exceed_the_bar():
    rng = np.random.default_rng(0)
    effects = rng.normal([[-0.8], [0.8], [-0.3], [0.0]], 0.1, (4, 200))
    baseline = rng.normal(10, 0.5, 200)
    found = significance(effects, baseline, least=0.05)["p_corrected"]
    assert (found[:2] < 1e-6).all() and (found[2:] == 1).all()
    turned = significance(effects, -baseline, least=0.05)["p_corrected"]
    assert np.allclose(turned, found)
    assert (significance(effects, baseline)["p_corrected"][:3] < 1e-6).all()


@pytest.mark.parametrize(("least", "center"), [(0.0, 0.0), (0.1, 0.1)])
def test_false_names_are_as_rare_as_promised(least, center):
    """Holm's: the share of families with any false name stays below α, at the edge of the bar."""
    rng = np.random.default_rng(0)
    false = 0
    for _ in range(300):
        baseline = rng.normal(1, 0.3, 30)
        effects = center * baseline * rng.choice([-1, 1], (12, 1)) + rng.normal(0, 1, (12, 30))
        false += bool((significance(effects, baseline, least=least)["p_corrected"] < 0.05).any())
    assert false / 300 < 0.088  # three standard errors above .05
    assert least or false  # a test that never speaks would pass, too


def test_the_same_effect_on_all_examples_is_certain_and_none_is_no_effect():
    found = significance(np.array([[1.0] * 5, [0.0] * 5]), np.ones(5))
    assert found["p"].tolist() == [0, 1]


def test_one_example_has_no_interval():
    found = significance(np.array([[1.0], [2.0]]), np.ones(1))
    assert found["effect"].tolist() == [1, 2]
    assert found.drop(columns="effect").isna().all(axis=None)
    assert significance(np.ones((1, 1)), np.ones(1), correction="bh")["p_corrected"].isna().all()


@pytest.mark.parametrize(
    ("effects", "baseline", "options", "said"),
    [
        ([[1.0, 2.0]], [1.0], {}, r"effects of shape \[1, 2\] and a baseline of \[1\]"),
        ([[1.0]], [1.0], {"least": -0.1}, "least=-0.1"),
        ([[1.0]], [1.0], {"correction": "none"}, "expected 'holm' or 'bh'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_tested_raises(effects, baseline, options, said):
    with pytest.raises(ValueError, match=said):
        significance(np.array(effects), np.array(baseline), **options)


# Second removals -----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["rerun", "naive"])
def test_second_removals_are_what_hooks_give(model, nodes, engine):
    frame = second_removals(
        model, TOKENS, nodes, [3, 0], edit=edits.zero(), metric=METRIC, engine=engine,
        progress=False,
    )  # fmt: skip
    n = len(nodes)
    assert list(zip(frame["first"], frame["second"], strict=True)) == [
        (first, second) for first in (3, 0) for second in range(n) if second != first
    ]
    base = logit_diff(model)
    for _, row in frame.iterrows():
        one, two = int(row["first"]), int(row["second"])
        alone, first = (logit_diff(model, (i,)) - base for i in (two, one))
        given = logit_diff(model, tuple(sorted((one, two)))) - base - first
        assert row["first_alone"] == pytest.approx(first.mean(), abs=1e-9)
        assert row["alone"] == pytest.approx(alone.mean(), abs=1e-9)
        assert row["given"] == pytest.approx(given.mean(), abs=1e-9)
        assert row["interaction"] == pytest.approx((given - alone).mean(), abs=1e-9)
        assert row["stderr"] == pytest.approx((given - alone).std(ddof=1) / 2, rel=1e-6)
    assert frame.attrs["engine"] == engine


def test_a_pair_is_tested_once_and_is_the_same_either_way_round(model, nodes):
    frame = second_removals(
        model, TOKENS, nodes, [0, 1], edit=edits.zero(), metric=METRIC, progress=False
    )
    both = frame[frame["first"].isin([0, 1]) & frame["second"].isin([0, 1])]
    assert len(both) == 2
    assert both[["interaction", "p_corrected"]].nunique().tolist() == [1, 1]
    tested = 2 * (len(nodes) - 2) + 1
    smallest = frame["p"].min()
    assert frame["p_corrected"].min() == pytest.approx(min(1, smallest * tested))


def test_nodes_of_several_lines_go_as_one(model, nodes):
    """A layer as one node of all its heads."""
    layers = nodes.assign(row=nodes["layer"])
    frame = second_removals(
        model, TOKENS, layers, [0], edit=edits.zero(), metric=METRIC, progress=False
    )
    heads = model.cfg.n_heads
    base, every = logit_diff(model).mean(), tuple(range(len(nodes)))
    assert frame["first_alone"][0] == pytest.approx(
        logit_diff(model, tuple(range(heads))).mean() - base, abs=1e-9
    )
    joint = frame["first_alone"][0] + frame["given"][0]
    assert joint == pytest.approx(logit_diff(model, every).mean() - base, abs=1e-9)


def test_what_makes_no_pair_raises(model, nodes):
    given = {"edit": edits.zero(), "metric": METRIC, "progress": False}
    with pytest.raises(ValueError, match=r"firsts=\[99\]: the nodes have the rows 0 to"):
        second_removals(model, TOKENS, nodes, [0, 99], **given)
    with pytest.raises(ValueError, match="make no pair"):
        second_removals(model, TOKENS, nodes.head(1), [0], **given)
    same = edits.patch(interp.Tokens.of(TOKENS))
    with pytest.raises(ValueError, match="changes nothing at any of"):
        second_removals(model, TOKENS, nodes, [0], edit=same, metric=METRIC, progress=False)


# Growing sets --------------------------------------------------------------------------------


def test_growing_sets_are_what_hooks_give(model, nodes):
    ranked = nodes.iloc[::-1]
    frame = cumulative_ablation(
        model, TOKENS, ranked, edit=edits.zero(), metric=METRIC, orders=2, seed=4, progress=False
    )
    order, n = ranked["row"].tolist(), len(nodes)
    base = logit_diff(model)
    for name, way in (("most", order), ("least", order[::-1])):
        own = frame[frame["order"] == name].set_index("removed")
        for k in range(n + 1):
            expected = logit_diff(model, tuple(sorted(way[:k])))
            assert own.loc[k, "value"] == pytest.approx(expected.mean(), abs=1e-9)
            assert own.loc[k, "effect"] == pytest.approx((expected - base).mean(), abs=1e-9)
            assert own.loc[k, "overlap"] == len({*way[:k]} & {*order[:k]})
    drawn = frame[frame["order"] == "random"]
    assert {*drawn["draw"]} == {0, 1}
    possible = {
        k: [logit_diff(model, some).mean() for some in combinations(range(n), k)]
        for k in drawn["removed"].unique()
    }
    for _, row in drawn.iterrows():
        assert np.abs(np.array(possible[row["removed"]]) - row["value"]).min() < 1e-9
    full, nothing = (drawn[drawn["removed"] == k]["value"].unique() for k in (n, 0))
    assert nothing == pytest.approx([base.mean()])
    assert full == pytest.approx([logit_diff(model, tuple(range(n))).mean()])
    again, other = (
        cumulative_ablation(
            model, TOKENS, ranked, edit=edits.zero(), metric=METRIC, orders=2, seed=seed,
            progress=False,
        )
        for seed in (4, 5)
    )  # fmt: skip
    pd.testing.assert_frame_equal(frame, again)
    assert not frame["overlap"].equals(other["overlap"])


def test_no_set_is_run_twice(model, nodes, monkeypatch):
    asked = []

    def counted(model, tokens, frame, **options):
        asked.append(frame.groupby("row").apply(lambda one: frozenset(one["head"])).tolist())
        return interp.sweep(model, tokens, frame, **options)

    monkeypatch.setattr(removal.joint, "sweep", counted)
    layer = nodes[nodes["layer"] == 0]
    cumulative_ablation(
        model, TOKENS, layer, edit=edits.zero(), metric=METRIC, orders=30, progress=False
    )
    (sets,) = asked
    assert len(sets) == len({*sets}) <= 2 ** len(layer) - 1


def test_a_share_needs_a_baseline_away_from_zero(model, nodes):
    options = {"edit": edits.zero(), "orders": 0, "progress": False}
    frame = cumulative_ablation(model, TOKENS, nodes, metric=metrics.loss(), **options)
    assert np.allclose(frame["share"], frame["value"] / frame["baseline"])
    assert (frame["low"] <= frame["share"]).all() and (frame["share"] <= frame["high"]).all()
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0])
    level = metrics.function(lambda logits: (logits[:, -1, 0] * 0 + 1) * sign[: len(logits)])
    with pytest.raises(ValueError, match="counts"):
        cumulative_ablation(model, TOKENS, nodes, metric=METRIC, counts=[99], **options)
    frame = cumulative_ablation(
        model, TOKENS, nodes.head(1), metric=level, **options, engine="naive"
    )
    assert frame[["share", "low", "high"]].isna().all(axis=None)


@pytest.mark.parametrize("counts", [[-1], [0], []])
def test_counts_of_nothing_raise(model, nodes, counts):
    with pytest.raises(ValueError, match="counts"):
        cumulative_ablation(
            model, TOKENS, nodes, edit=edits.zero(), metric=METRIC, counts=counts, orders=0
        )


@pytest.mark.parametrize("n", [1, 2, 13, 144])
def test_default_counts_hold_both_ends(n):
    counts = default_counts(n)
    assert counts == sorted({*counts})
    assert {0, n, min(12, n), max(0, n - 12)} <= {*counts}
    assert len(default_counts(n, ends=0)) <= 9
