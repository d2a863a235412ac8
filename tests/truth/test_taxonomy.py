"""Names of heads: the planted ones have theirs and no other has any, and nothing is named where
nothing is planted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

import interp
from interp import heads
from interp.methods.heads import circuits, roles
from interp.zoo import planted
from tests.truth.by_hand import SEEDS, build

pytestmark = pytest.mark.usefixtures("one_thread")
SAID = {
    "previous_token": "previous token",
    "induction": "induction",
    "mover": "name mover",
    "negative": "negative mover",
    "backup": "backup name mover",
}
"""What the roles of planted models are called."""
DRAWS = 30
"""Null models."""


def names_of(frame):
    labels = heads.head_labels(frame)
    found = labels[labels["label"] != roles.MIXED]
    return {(row.layer, row.head): row.label for row in found.itertuples()}


def planted_names(known):
    return {head: SAID[role] for role, own in known.truth.roles.items() for head in own}


def named(known, seed=0, draws=100, **options):
    return heads.head_roles(
        known.model, pairs=known.prompts(20), n=8, draws=draws, seed=seed, **options
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "name",
    ["induction", "grouped_induction", "rotary_previous_token", "backup_movers",
     "copy_suppression"],
)  # fmt: skip
def test_the_planted_heads_have_their_names_and_no_other_has_one(name, seed):
    known = build(name, seed)
    assert names_of(named(known, seed)) == planted_names(known)


@pytest.fixture(scope="module")
def null_frames():
    """Random models in the likeness of planted ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # this runs before one_thread does
    known = [build("induction"), build("copy_suppression"), build("rotary_previous_token")]
    frames = []
    for draw in range(DRAWS):
        control = planted.random_control(known[draw % 3], seed=draw)
        frames.append(
            heads.head_roles(control.model, pairs=control.prompts(10), n=4, draws=25, seed=draw)
        )
    torch.set_num_threads(before)
    return frames


def test_nothing_is_named_in_random_models(null_frames):
    wrong = sum(bool(frame["named"].any()) for frame in null_frames)
    assert wrong <= stats.binom.ppf(0.999, DRAWS, 0.05)


def test_p_values_of_random_models_are_fair(null_frames):
    """5 % of them are below .05, role by role; the larger of two (induction) is below it less."""
    for role in {role for frame in null_frames for role in frame["role"]}:
        # Heads of one model read the same tokens, so models and not heads are counted.
        shares = np.array([
            (frame.loc[frame["role"] == role, "p"] <= 0.05).mean()
            for frame in null_frames if role in set(frame["role"])
        ])  # fmt: skip
        error = shares.std(ddof=1) / len(shares) ** 0.5
        assert shares.mean() <= 0.05 + 4 * max(error, 0.01), role
        if role != "induction":
            assert shares.mean() >= 0.05 - 4 * max(error, 0.01), role


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_permutation_of_outputs_breaks_is_no_longer_named(seed):
    known = build("induction", seed)
    (previous,) = known.truth.roles["previous_token"]
    control = planted.permuted_control(known, seed=seed)
    # It looks where it looked; what it moved no longer arrives, so nobody inducts or moves.
    assert names_of(named(control, seed)) == {previous: "previous token"}
    for name in ("copy_suppression", "backup_movers"):
        control = planted.permuted_control(build(name, seed), seed=seed)
        assert names_of(named(control, seed)) == {}


@pytest.mark.parametrize("name", ["induction", "backup_movers"])
def test_turning_the_residual_stream_moves_nothing(name):
    known = build(name)
    one, other = (named(model, draws=20) for model in (known, planted.rotated(known, seed=3)))
    numbers = ["score", "null_mean", "null_high", "writes", "p", "q"]
    assert one[["layer", "head", "role", "named"]].equals(other[["layer", "head", "role", "named"]])
    np.testing.assert_allclose(one[numbers], other[numbers], atol=1e-6)
    scores = [heads.head_scores(m.model) for m in (known, planted.rotated(known, seed=3))]
    np.testing.assert_allclose(*scores, atol=1e-6)
    written = [
        heads.promoted_tokens(m.model, m.prompts(5).clean, k=1)
        for m in (known, planted.rotated(known, seed=3))
    ]
    np.testing.assert_allclose(written[0]["logit"], written[1]["logit"], atol=1e-6)


def test_without_its_null_nothing_could_be_named(monkeypatch):
    """Mutants: rotations that do not rotate, and p-values that nobody corrects."""
    known = build("induction")
    still = lambda n, size, generator: torch.eye(size).double().expand(n, -1, -1)  # noqa: E731
    monkeypatch.setattr(roles, "rotations", still)
    frame = named(known, draws=20)
    assert set(frame.loc[frame["named"], "role"]) <= {*roles.MOVERS, roles.BACKUP}
    assert (frame.loc[~frame["role"].isin(roles.MOVERS), "p"] > 0.05).all()


def test_the_planted_movers_say_what_they_move():
    known = build("copy_suppression")
    prompts = known.prompts(30)
    (mover,), (negative,) = known.truth.roles["mover"], known.truth.roles["negative"]
    frame = heads.promoted_tokens(known.model, prompts.clean, k=1, sources=2)
    own = frame[frame["source"] >= 10].set_index(["layer", "head", "kind"])  # the names
    raised = own.loc[(*mover, "promoted")]
    assert len(raised) == 2 and (raised["source"] == raised["token"]).all()
    lowered = own.loc[(*negative, "suppressed")]
    assert (lowered["source"] == lowered["token"]).all() and (lowered["logit"] < 0).all()


# Real models -------------------------------------------------------------------------------------


def test_tinyworld_has_induction_and_previous_token_heads():
    model = interp.load("tinyworld", device="cpu")
    frame = heads.head_roles(model, draws=50)
    labels = set(names_of(frame).values())
    assert {"induction", "previous token"} <= labels
    inductive = frame[frame["named"] & (frame["role"] == "induction")]
    assert inductive["score"].max() > 0.5 and inductive["writes"].max() > 0.1


def test_stories_has_no_induction_head_and_looks_back(shared_data):
    model = interp.load(shared_data / "models" / "stories260K", device="cpu")
    frame = heads.head_roles(model, draws=150)
    inductive = frame[frame["role"] == "induction"]
    assert not inductive["named"].any() and inductive["score"].max() < 0.06
    previous = frame[frame["role"] == "previous token"].set_index(["layer", "head"])
    assert previous["score"].idxmax() == (3, 6)
    assert previous.loc[[(3, 6), (1, 3)], "named"].all()


def test_induction_small_is_named_as_it_is_known(shared_data, tmp_path):
    done = interp.convert(shared_data / "models" / "induction-small", tmp_path / "m")
    model = interp.load(done.folder, device="cpu")
    frame = heads.head_roles(model)
    assert names_of(frame) == {(0, 0): "previous token", (1, 0): "induction"}
    previous = frame[frame["role"] == "previous token"].set_index(["layer", "head"])
    assert previous.loc[(0, 0), "score"] == pytest.approx(0.74, abs=0.03)
    # "copies 26 of 26": every token raises itself most, by far more than a rotation would.
    assert circuits.copying(model).z[1, 0] > 5


def test_labels_are_the_first_of_the_roles():
    known = build("induction")
    frame = named(known, draws=50)
    labels = heads.head_labels(frame).set_index(["layer", "head"])
    (inductive,) = known.truth.roles["induction"]
    assert labels.loc[inductive, "roles"] == "induction, name mover"
    nothing = heads.head_labels(frame.assign(named=False))
    assert (nothing["label"] == roles.MIXED).all() and len(nothing) == 8
    assert dataclasses.is_dataclass(known)
