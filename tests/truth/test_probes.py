"""Probes on truth: planted features are found, absent ones stay at chance, and a null is a null."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.methods.probes import probe_sweep
from interp.zoo import planted
from tests.truth.by_hand import SEEDS

pytestmark = pytest.mark.usefixtures("one_thread")


def looked_up(seed, n=768):
    """The frame of every feature of the lookup, at the place where they are planted."""
    known = planted.lookup(seed=seed)
    inputs = known.labelled(n, seed=seed)
    _, cache = known.model.run_with_cache(inputs.tokens, inputs.site, pos=inputs.position)
    for feature, y in inputs.labels.items():
        frame = probe_sweep(cache, y, C=0.1, n_shuffles=19, seed=seed, progress=False)
        (one,) = frame.itertuples()
        yield feature, feature in inputs.linear, one


def test_linear_features_are_found_and_hidden_ones_are_at_chance():
    missed = []
    for seed in SEEDS:
        for feature, linear, one in looked_up(seed):
            if linear:
                assert one.accuracy == 1.0 == one.auroc, (seed, feature)
                assert one.low > one.null_high
                assert one.p == 0.05
                assert one.compression > 3
            else:
                assert abs(one.accuracy - 0.5) < 4 * (0.25 / one.n) ** 0.5, (seed, feature)
                assert one.compression < 1.05
                missed.append(not one.low < 0.5 < one.high)
    assert len(missed) == 2 * len(SEEDS)
    assert sum(missed) <= 1  # 95 % intervals


def test_the_xor_is_linear_behind_the_mlp():
    known = planted.lookup()
    inputs = known.labelled(1024)
    _, cache = known.model.run_with_cache(
        inputs.tokens, ["resid_mid", "resid_post"], pos=inputs.position
    )
    frame = probe_sweep(cache, inputs.labels["xor"], control=False, progress=False)
    found = frame.set_index("site").accuracy
    assert found["hook_resid_post"] == 1.0
    assert found["hook_resid_mid"] < 0.56


def test_a_position_that_sees_nothing_of_a_feature_is_at_chance():
    known = planted.lookup()
    inputs = known.labelled(768)
    _, cache = known.model.run_with_cache(inputs.tokens, inputs.site)
    last = inputs.tokens.shape[1] - 1
    frame = probe_sweep(
        cache, inputs.labels["b"], positions=[1, last], n_shuffles=19, progress=False
    )
    found = frame.set_index("pos")
    assert found.accuracy[last] == 1.0
    # A balanced label leaves its training parts leaning the other way, so chance lies below .5;
    # the shuffles lean alike.
    assert found.p[1] > 0.05
    assert found.null_low[1] - 0.02 < found.accuracy[1] < found.null_high[1] + 0.02


DRAWS, PER_CALL = 2000, 100


def test_the_shuffle_test_is_false_as_often_as_it_says():
    """Features that are pure noise: p ≤ .05 in 5 % of 2,000 draws."""
    n, d, shuffles = 40, 3, 19
    rng = np.random.default_rng(0)
    wrong = []
    for call in range(DRAWS // PER_CALL):
        x = rng.normal(size=(PER_CALL, n, d)).astype(np.float32)
        y = rng.permutation(np.arange(n) % 2)
        frame = probe_sweep(
            x, y, n_shuffles=shuffles, cv=4, tol=1e-3, seed=call, progress=False, code=False
        )
        wrong.append(frame.p <= 0.05)
    assert 0.04 < np.mean(wrong) < 0.06


def test_without_folds_for_the_shuffles_the_test_would_be_false_too_often():
    """The mutant: the score on what was learned from, against shuffles scored out of fold."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(50, 40, 10)))
    y = np.arange(40) % 2
    frame = probe_sweep(x, y, n_shuffles=19, progress=False, code=False)
    from interp.methods.probes import LinearProbe

    fitted = [LinearProbe(standardise=True).fit(one, y).predict(one).numpy() for one in x]
    share = np.array([(one == y).mean() for one in fitted])
    assert (share > frame.null_high).mean() > 0.6
    assert (frame.accuracy > frame.null_high).mean() < 0.2


def words(rng, n=1200, n_types=60, noise=0.0):
    """Examples of types; the label is a property of the type."""
    types = rng.integers(n_types, size=n)
    label = rng.permutation(np.arange(n_types) % 2)[types]
    flipped = rng.random(n) < noise
    return types, np.where(flipped, 1 - label, label)


@pytest.mark.parametrize("seed", SEEDS)
def test_selectivity_tells_a_feature_from_types_learned_by_heart(seed):
    """One-hot types let a probe learn any labelling of them; one planted direction does not."""
    rng = np.random.default_rng(seed)
    types, y = words(rng)
    noise = rng.normal(size=(len(y), 60))
    by_heart = np.eye(60)[types] + 0.01 * noise
    planted_only = noise + 4 * (2 * y[:, None] - 1) * np.eye(60)[0]
    frame = probe_sweep(
        np.stack([by_heart, planted_only, noise]), y, types=types, n_control=10, n_shuffles=0,
        seed=seed, progress=False,
    )  # fmt: skip
    heart, direction, nothing = frame.itertuples()
    assert heart.accuracy > 0.95
    assert direction.accuracy > 0.95
    assert heart.control_accuracy > 0.9
    assert abs(heart.selectivity) < 0.1
    assert direction.control_accuracy < 0.65
    assert direction.selectivity > 0.35
    assert abs(nothing.selectivity) < 0.1


def test_a_learnable_label_has_a_shorter_description_than_a_random_one():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 12))
    learnable = (x[:, 0] + 0.3 * rng.normal(size=800) > 0).astype(int)
    found = {
        name: probe_sweep(x[None], y, n_shuffles=0, C=0.1, progress=False)
        for name, y in {"learnable": learnable, "random": rng.permutation(learnable)}.items()
    }
    bits = {name: float(frame.bits.iloc[0]) for name, frame in found.items()}
    assert bits["learnable"] < 0.6 * bits["random"]
    assert bits["random"] > 0.98 * 800  # random labels cost a bit each, and learning costs more
    assert found["random"].compression.iloc[0] < 1.02 < found["learnable"].compression.iloc[0]
