"""Planted features and words: found where they are, and by no method where they are not."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from scipy.stats import binomtest, spearmanr
from sklearn.linear_model import LogisticRegression

import interp
from interp.zoo import planted
from tests.truth.by_hand import SEEDS, N, auroc, logit_diff, zero_effects

pytestmark = pytest.mark.usefixtures("one_thread")


METHODS = ("3cosadd", "3cosmul", "pairdistance", "neighbor")


# 6: a lookup in neurons, and what a probe can see ------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_the_lookup_neurons_and_only_they_matter(seed):
    known = planted.lookup(seed=seed)
    model, prompts = known.model, known.prompts(N)
    base = logit_diff(model, prompts.clean, prompts)

    def silent(neuron):
        def zero(post, hook):
            post[..., neuron] = 0

        return model.with_hooks([("mlp.hook_post", zero)])

    effects = {
        (0, neuron): logit_diff(silent(neuron), prompts.clean, prompts) - base
        for neuron in range(model.cfg.d_mlp)
    }
    assert auroc(effects, known.truth.neurons) == 1.0
    assert len(known.truth.neurons) == 16
    assert sum(effects[neuron] for neuron in known.truth.neurons) == pytest.approx(-base, rel=0.3)
    assert auroc(zero_effects(known, prompts), known.truth.heads) == 1.0


def test_one_neuron_fires_per_pair():
    known = planted.lookup()
    _, cache = known.model.run_with_cache(known.labelled(640).tokens, "mlp.hook_post", pos=-1)
    own = [neuron for _, neuron in known.truth.neurons]
    fired = cache["mlp.hook_post", 0][:, 0][:, own]
    assert ((fired.max(-1).values - 1).abs() < 1e-4).all()
    assert (fired.sum(-1) < 1 + 1e-4).all()
    assert (fired > 0.5).sum(0).eq(40).all()  # 640 prompts, 16 pairs, equally often


def probe(known, feature, site=None, position=None, train=1536, test=1536, seed=0):
    """Right answers of a linear probe on inputs that it has not seen, and how many there were."""
    right = []
    weights = None
    for part, n in enumerate((train, test)):
        inputs = known.labelled(n, seed=2 * seed + part)
        at = inputs.position if position is None else inputs.tokens.roles[position]
        _, cache = known.model.run_with_cache(inputs.tokens, site or inputs.site)
        X = cache[site or inputs.site][torch.arange(n), at].numpy()
        y = inputs.labels[feature].numpy()
        if weights is None:
            weights = LogisticRegression(C=1.0, max_iter=2000).fit(X, y)
        else:
            right = weights.predict(X) == y
    return int(right.sum()), len(right)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_linear_probe_reads_linear_features_and_no_others(seed):
    known = planted.lookup(seed=seed)
    inputs = known.labelled(64)
    assert inputs.linear == ("a", "b") and inputs.hidden == ("xor", "c")
    for feature in inputs.linear:
        right, n = probe(known, feature, seed=seed)
        assert right / n >= 0.99
    for feature in inputs.hidden:
        right, n = probe(known, feature, seed=seed)
        assert binomtest(right, n, 0.5).pvalue > 0.001, (feature, right / n)


def test_hidden_features_show_where_they_are():
    """XOR is linear behind the MLP, and c where c stands: the probe itself is able."""
    known = planted.lookup()
    for feature, site, position in (("xor", ("resid_post", 0), None), ("c", None, "c")):
        right, n = probe(known, feature, site, position)
        assert right / n >= 0.99, feature


def test_c_leaves_no_trace_at_the_last_token():
    known = planted.lookup()
    inputs = known.labelled(N)
    ids, row = inputs.tokens.ids.clone(), torch.arange(N)
    at = inputs.tokens.roles["c"]
    ids[row, at] = 9 + (ids[row, at] - 9 + 1) % 4
    streams = [
        known.model.run_with_cache(tokens, inputs.site, pos=-1)[1][inputs.site]
        for tokens in (inputs.tokens.ids, ids)
    ]
    assert torch.equal(*streams)


def test_labels_are_balanced_and_independent():
    labels = planted.lookup().labelled(640).labels
    for feature in labels.values():
        assert feature.sum() == 320
    for one, two in combinations(labels.values(), 2):
        assert (one == two).sum() == 320


# 7: words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_analogies_hold_on_the_table_and_not_on_the_shuffled_one(seed):
    known = planted.vocabulary(seed=seed)
    asked = {"analogies": known.analogies, "methods": METHODS, "exclude_inputs": True}
    found = interp.embedding(known.model).evaluate(**asked)
    by_method = found.groupby("method").correct.mean()
    assert by_method["3cosadd"] == by_method["3cosmul"] == by_method["pairdistance"] == 1.0
    assert by_method["neighbor"] == 0  # the answer is not simply what lies next to c
    control = planted.shuffled_control(known, seed)
    wrong = interp.embedding(control.model).evaluate(**asked)
    assert wrong.groupby("method").correct.mean().max() < 0.05
    assert interp.embedding(known.model).analogy("man", "king", "woman").token[0] == "queen"


def test_planted_directions_are_found_and_not_in_the_shuffled_table():
    from interp.zoo.planted.words import RELATIONS

    known = planted.vocabulary()
    table = interp.embedding(known.model)
    lost = interp.embedding(planted.shuffled_control(known).model)
    for kind, pairs in RELATIONS.items():
        axis = known.truth.directions[kind][0].numpy()
        for method in ("mean", "pca"):
            assert table.direction(pairs, method) @ axis == pytest.approx(1, abs=1e-9)
        assert abs(lost.direction(pairs, "mean") @ axis) < 0.6
    axis, words = known.truth.directions["temperature"][0].numpy(), known.scales["temperature"]
    ends = [(words[i], words[-1 - i]) for i in range(3)]
    assert table.direction(ends) @ axis > 0.97
    places = [float(table.vectors[table.row(word)] @ axis) for word in words]
    assert all(b - a == pytest.approx(1 / 3) for a, b in pairwise(places))
    scattered = [float(lost.vectors[lost.row(word)] @ axis) for word in words]
    assert abs(spearmanr(scattered, range(7)).statistic) < 0.9


def test_the_table_is_centred_and_the_model_is_its_table():
    known = planted.vocabulary()
    assert known.model.W_E.mean(0).abs().max() < 1e-12
    tokens = known.model.to_tokens("king")
    assert torch.allclose(
        known.model(tokens)[0, -1], known.model.W_E @ known.model.W_E[tokens.ids[0, 0]]
    )
    with pytest.raises(ValueError, match="unknown"):
        known.model.to_single_token("zebra")
