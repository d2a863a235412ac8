"""Directions on models whose truth is known: the planted one acts, dormant parts are seen."""

from __future__ import annotations

import pytest
import torch

import interp
from interp import metrics, tasks
from interp.data.activations import vectors_at
from interp.methods.directions import (
    Direction,
    difference_of_means,
    promoted_tokens,
    word_direction,
)
from interp.methods.steering import causal_check, dormancy
from interp.zoo import planted
from interp.zoo.planted.words import RELATIONS

from .by_hand import SEEDS

pytestmark = pytest.mark.usefixtures("one_thread")


def found(frame, action, factor=0.0):
    rows = frame[(frame.arm == "found") & (frame.action == action) & (frame.factor == factor)]
    assert len(rows) == 1
    return rows.iloc[0]


# F5: a direction that acts by a part that is dormant ---------------------------------------------


@pytest.mark.parametrize(
    ("name", "share", "effect", "dormant"),
    [
        ("unread", 0.5, (0.0, 0.5, -0.5), 0.5),
        ("dormant", 0.0, (2.0, 0.0, 2.0), 1.0),
        ("illusory", 0.25, (2**0.5, 0.125**0.5, 1.125**0.5), 0.75),
        ("real", 0.5, (1.0, 0.5, 0.5), 0.5),
    ],
)
def test_f5_how_much_of_an_effect_lies_off_the_data(name, share, effect, dormant):
    """h = (x, 0, x) varies along (1, 0, 1)/√2 alone; y = 2 h₁ + h₂ is read."""
    known = planted.fixtures.illusory_direction()
    own = Direction(known.directions[name].vector, "blocks.0.hook_resid_pre", "planted")
    metric = metrics.function(known.measure, "y")
    frame = dormancy(known.model, torch.tensor([[0], [1]]), own, metric, step=1.0, progress=False)
    assert frame["share"].tolist() == pytest.approx([1.0, share, 1 - share])
    assert frame["effect"].tolist() == pytest.approx(list(effect))
    assert frame["effect"][0] == pytest.approx(known.directions[name].stepped)
    assert frame["expected"].tolist() == pytest.approx([1, 1 / 3, 2 / 3])
    assert frame["sd"][2] == pytest.approx(0, abs=1e-9)
    assert frame.attrs["dormant_effect"] == pytest.approx(dormant)


def test_f5_what_the_data_vary_along_is_not_dormant_at_all():
    known = planted.fixtures.illusory_direction()
    own = Direction(torch.tensor([1.0, 0.0, 1.0]).double(), "blocks.0.hook_resid_pre", "planted")
    metric = metrics.function(known.measure, "y")
    frame = dormancy(known.model, torch.tensor([[0], [1]]), own, metric, progress=False)
    assert frame.attrs["dormant_effect"] == 0 and frame["share"][1] == pytest.approx(1)


# The planted axis of words -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_the_planted_axis_turns_man_into_woman_and_random_ones_do_not(seed):
    known = planted.vocabulary(seed=seed)
    model, site = known.model, "blocks.0.hook_resid_post"
    men, women = (torch.tensor([model.to_single_token(pair[i]) for pair in RELATIONS["gender"]])
                  for i in (0, 1))  # fmt: skip
    own = word_direction(interp.embedding(model), RELATIONS["gender"][:5], site=site)
    metric = metrics.logit_diff(women, men)
    frame = causal_check(model, men[:, None], own, metric, factors=(1.0, 2.0), n_random=19,
                         step=1.0, seed=seed, progress=False)  # fmt: skip
    # logits are dot products: a step s along r adds 2 s to woman − man, and nothing else changes
    for factor in (1.0, 2.0):
        row = found(frame, "steer", factor)
        assert row["effect"] == pytest.approx(2 * factor)
        assert row["p_random"] == pytest.approx(1 / 20)
    assert found(frame, "ablate")["effect"] == pytest.approx(2)  # man lies at −1, woman at 1
    assert found(frame, "ablate")["p_random"] == pytest.approx(1 / 20)
    assert frame.query("arm == 'random'")["effect"].abs().max() < 2
    top = promoted_tokens(model, own, k=10)
    assert set(top[top.side == "promoted"]["id"]) == set(women.tolist())
    assert set(top[top.side == "suppressed"]["id"]) == set(men.tolist())


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_the_axis_of_the_shuffled_table_does_nothing_special(seed):
    known = planted.shuffled_control(planted.vocabulary(seed=seed), seed)
    model = known.model
    pairs = RELATIONS["gender"]
    own = word_direction(interp.embedding(model), pairs[:5], site="blocks.0.hook_resid_post")
    men, women = (torch.tensor([model.to_single_token(pair[i]) for pair in pairs[5:]])
                  for i in (0, 1))  # fmt: skip
    frame = causal_check(model, men[:, None], own, metrics.logit_diff(women, men), factors=(1.0,),
                         n_random=9, step=1.0, seed=seed, progress=False)  # fmt: skip
    assert abs(found(frame, "steer", 1.0)["effect"]) < 1
    assert found(frame, "steer", 1.0)["p_covariance"] > 0.1


# The lookup's features ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_difference_of_means_finds_the_linear_features_and_no_others(seed):
    known = planted.lookup(seed=seed)
    inputs = known.labelled(640, seed=seed)
    x = vectors_at(known.model, inputs.tokens, inputs.site, inputs.position)
    site = known.model.sites[inputs.site].name
    sign = torch.tensor([-1.0, 1.0, -1.0, 1.0]).double()  # bit(i) = i mod 2
    axis = sign @ known.truth.directions["key"] / 2
    for feature, labels in inputs.labels.items():
        own = difference_of_means(x, labels, site=site)
        inside = float(own.unit @ axis)
        assert (inside > 0.9) == (feature == "a"), (feature, inside)


# A trained model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gender():
    model = interp.load("tinyworld")
    pairs = tasks.gendered_pronoun(model, 48, seed=3)
    she, he = (model.to_single_token(word) for word in (" she", " he"))
    return model, pairs, she, he


def test_a_gender_direction_moves_pronouns_and_random_ones_do_not(gender):
    model, pairs, she, he = gender
    site = model.blocks[model.cfg.n_layers // 2].hook_resid_post
    x = vectors_at(model, pairs.clean, site, "end")
    half, rest = slice(0, 24), slice(24, 48)
    own = difference_of_means(x[half], (pairs.answer == she)[half].long(), site=site)
    tokens = pairs.clean[rest]
    metric = metrics.logit_diff(torch.full((24,), she), torch.full((24,), he), pos="end")
    frame = causal_check(model, tokens, own, metric, factors=(-2.0, 2.0), n_random=9, pos="end",
                         progress=False)  # fmt: skip
    for factor in (-2.0, 2.0):
        row = found(frame, "steer", factor)
        assert row["effect"] * factor > 0
        assert row["p_random"] == pytest.approx(0.1)
        same = frame[(frame.factor == factor) & (frame.arm == "random")]
        assert abs(row["effect"]) > 2 * same["size"].max()
    top = promoted_tokens(model, own, 20)
    assert {she} <= set(top[top.side == "promoted"]["id"])
    assert {he} <= set(top[top.side == "suppressed"]["id"])


def test_labels_at_random_give_no_gender_direction(gender):
    """The null control: the same contexts, their labels dealt out anew within each gender."""
    model, pairs, she, he = gender
    site = model.blocks[model.cfg.n_layers // 2].hook_resid_post
    x = vectors_at(model, pairs.clean, site, "end")
    labels = torch.zeros(48, dtype=torch.long)
    for word in (she, he):
        own = (pairs.answer == word).nonzero().flatten()
        labels[own[torch.randperm(len(own), generator=torch.Generator().manual_seed(0))[::2]]] = 1
    lost = difference_of_means(x, labels, site=site)
    real = difference_of_means(x, (pairs.answer == she).long(), site=site)
    assert lost.vector.norm() < 0.5 * real.vector.norm()
    metric = metrics.logit_diff(torch.full((48,), she), torch.full((48,), he), pos="end")
    effects = [
        causal_check(model, pairs.clean, one, metric, factors=(1.0,), n_random=1, pos="end",
                     step=2.0, progress=False)
        for one in (lost, real)
    ]  # fmt: skip
    assert (
        abs(found(effects[0], "steer", 1.0)["effect"])
        < 0.7 * found(effects[1], "steer", 1.0)["effect"]
    )
