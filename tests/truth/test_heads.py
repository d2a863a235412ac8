"""Scores of heads name the planted ones, and nobody in the controls."""

from __future__ import annotations

import pytest
import torch

from interp.methods.attribution import logit_attribution
from interp.methods.heads import composition, head_scores
from interp.zoo import planted
from tests.truth.by_hand import SEEDS, build

pytestmark = pytest.mark.usefixtures("one_thread")


def best(frame, column):
    row = frame.loc[frame[column].idxmax()]
    return int(row["layer"]), int(row["head"])


def tokens_of(model):
    """Distinct tokens, then the same again, behind the first one."""
    half = torch.arange(1, 9)
    return torch.cat([torch.zeros(1, dtype=torch.long), half, half])[None]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["induction", "grouped_induction"])
def test_the_induction_circuit_is_found(name, seed):
    known = build(name, seed)
    frame = head_scores(known.model, known.prompts(50).clean)
    roles = known.truth.roles
    (previous,), (induction,) = roles["previous_token"], roles["induction"]
    assert best(frame, "previous_token") == previous
    assert best(frame, "induction") == induction
    scores = frame.set_index(["layer", "head"])
    assert scores.loc[previous, "previous_token"] > 0.95
    assert scores.loc[induction, "induction"] > 0.95
    others = scores.drop([previous, induction])
    assert others["induction"].max() < 0.5
    pairs = composition(known.model)
    found = pairs.loc[pairs[pairs["kind"] == "k"]["value"].idxmax()]
    assert (found["from_layer"], found["from_head"]) == previous
    assert (found["to_layer"], found["to_head"]) == induction


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_found_in_controls(seed):
    known = build("induction", seed)
    for control in (planted.random_control(known, seed=seed),):
        frame = head_scores(control.model, known.prompts(50).clean)
        assert frame["induction"].max() < 0.5
        assert frame["previous_token"].max() < 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_movers_copy_and_the_negative_head_does_not(seed):
    known = build("copy_suppression", seed)
    scores = head_scores(known.model, [[0, 1, 2, 1, 2, 3]]).set_index(["layer", "head"])
    roles = known.truth.roles
    negative, movers = roles["negative"], roles["mover"]
    assert all(scores.loc[head, "copying"] < -0.5 for head in negative)
    assert all(scores.loc[head, "copying"] > 0.5 for head in movers)


@pytest.mark.parametrize("seed", SEEDS)
def test_attribution_names_the_heads_that_write_the_answer(seed):
    known = build("induction", seed)
    prompts = known.prompts(50)
    frame = logit_attribution(known.model, prompts.clean, prompts.answer, prompts.wrong)
    mean = frame[frame["head"] >= 0].groupby(["layer", "head"])["value"].mean()
    assert mean.idxmax() == known.truth.roles["induction"][0]
    assert mean.nlargest(2).iloc[1] < 0.1 * mean.max()
