"""Geometry of planted models: what is planted is measured, what is not there is not found."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from interp.methods.geometry import alignment, disambiguation, procrustes
from interp.zoo import planted
from interp.zoo.planted.words import RELATIONS
from tests.truth.by_hand import SEEDS

pytestmark = pytest.mark.usefixtures("one_thread")


def shifted(table: interp.geometry.Embedding, by: np.ndarray) -> interp.geometry.Embedding:
    return dataclasses.replace(table, vectors=table.vectors + by)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_planted_common_vector_is_the_anisotropy_and_centring_takes_it_away(seed):
    """The table's mean is zero; with a common vector c of length 3, two rows of length r have a
    cosine of about |c|² / (|c|² + r²)."""
    table = interp.embedding(planted.vocabulary(seed=seed).model)
    axis = np.zeros(table.vectors.shape[1])
    axis[5] = 3.0
    plain, moved = (
        one.anisotropy().set_index("treatment") for one in (table, shifted(table, axis))
    )
    assert abs(plain.mean_cosine["as they are"]) < 0.02
    size = np.square(table.vectors).sum(axis=1).mean()
    assert moved.mean_cosine["as they are"] == pytest.approx(9 / (9 + size), abs=0.03)
    for one in ("centred", "1 component removed"):
        assert moved.mean_cosine[one] == pytest.approx(plain.mean_cosine[one], abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_planted_axis_is_the_first_component_and_goes_with_it(seed):
    known = planted.vocabulary(seed=seed)
    table = interp.embedding(known.model)
    axis = known.truth.directions["gender"][0].numpy()
    wide = dataclasses.replace(
        table, vectors=table.vectors + 5 * (table.vectors @ axis)[:, None] * axis
    )
    before, after = (one.anisotropy(removed=(1,)).deviation for one in (table, wide))
    assert after[1] > 1.5 * before[1]
    assert after[2] == pytest.approx(before[2], rel=0.1)
    dimension = [one.dimension().value[0] for one in (table, wide)]
    assert dimension[1] < 0.5 * dimension[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_words_of_a_relation_are_grouped_by_it_and_not_when_dealt_out_anew(seed):
    """The first words of all pairs of a relation lie at −r: relations are clusters."""
    known = planted.vocabulary(seed=seed)
    words = [pair[0] for pairs in RELATIONS.values() for pair in pairs]
    labels = [name for name, pairs in RELATIONS.items() for _ in pairs]
    found = interp.embedding(known.model).clusters(words, labels=labels, seed=seed).attrs
    assert found["rand"] == 1.0
    assert found["silhouette"] > found["control"][1]
    control = interp.embedding(planted.shuffled_control(known, seed).model)
    assert control.clusters(words, labels=labels, seed=seed).attrs["rand"] < 0.3


@pytest.mark.parametrize("seed", SEEDS)
def test_a_turned_model_is_the_same_to_cka_and_to_procrustes(seed):
    known = planted.induction(seed=seed)
    turned = planted.rotated(known, seed)
    tokens = known.prompts(60, seed=seed).clean
    layers = []
    for model in (known.model, turned.model):
        _, cache = model.run_with_cache(tokens, "resid_post")
        layers.append(
            {i: cache["resid_post", i].flatten(0, 1).numpy() for i in range(model.cfg.n_layers)}
        )
    found = alignment(layers[0], layers[1], seed=seed)
    same = found[found.layer == found.other]
    assert same.cka.to_numpy() == pytest.approx(np.ones(len(same)), abs=1e-9)
    assert found.control.abs().max() < 0.1
    assert not np.allclose(layers[0][0], layers[1][0])
    top = max(layers[0])
    assert procrustes(layers[0][top], layers[1][top]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_senses_are_told_apart_where_a_model_holds_them_and_only_there(seed):
    """At its last token the lookup model holds a and b; c stands elsewhere and leaves no trace, and
    a XOR b is there for no centroid until the MLP has worked it out."""
    known = planted.lookup(seed=seed)
    inputs = known.labelled(320, seed=seed)
    rows = torch.arange(320)
    _, cache = known.model.run_with_cache(inputs.tokens, [inputs.site, ("resid_post", 0)])
    layers = {i: cache[site][rows, inputs.position].numpy()
              for i, site in enumerate((inputs.site, ("resid_post", 0)))}  # fmt: skip
    told = {}
    for feature in ("a", "b", "c", "xor"):
        table = pd.DataFrame({"word": "it", "sense": inputs.labels[feature].numpy().astype(str)})
        told[feature] = disambiguation(layers, table, seed, draws=40).pooled
    for feature in "ab":
        assert (told[feature].accuracy > 0.9).all()
        assert (told[feature].p < 0.05).all()
    assert (told["c"].accuracy < 0.62).all()
    assert told["xor"].accuracy[0] < 0.62
    assert told["xor"].accuracy[1] > told["xor"].null_high[1]
