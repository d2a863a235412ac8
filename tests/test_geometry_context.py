"""Places in texts, senses that lie apart, and layers that are alike."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ortho_group
from sklearn.neighbors import NearestCentroid

from interp.core.occurrence import word_span
from interp.methods.geometry import (
    alignment,
    at_tokens,
    at_words,
    cka,
    cka_matrix,
    disambiguation,
    embedding,
    likeness,
    of_texts,
    procrustes,
    separable,
)
from interp.methods.geometry.senses import BY_WORD, POOLED, nearest_centroid
from interp.model import HookedTransformer
from tests.strategies import small_config
from tests.vocabularies import KINDS, models_by_kind, whole_words

SEEDS = range(5)
TEXTS = (
    "Mary went to the store, and John gave a book to Mary.",
    "The king and the queen went to the store.",
    "John went to the store.",
)


# Places in texts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_is_the_last_token_of_the_word_in_every_layer(kind):
    model = models_by_kind()[kind]
    found = at_words(model, TEXTS, ["store", "the#2", "went"])
    assert found.layers == [0, 1]
    assert found.vectors.shape == (2, 3, model.cfg.d_model)
    assert [token.strip().lower() for token in found.tokens] == ["store", "the", "went"]
    for i, text in enumerate(TEXTS):  # one text at a time, nothing padded
        tokens = model.to_tokens(text)
        _, cache = model.run_with_cache(tokens, ["resid_pre", "resid_post"])
        strings = [one.strip().lower() for one in tokens.strings[0]]
        word = ["store", "the", "went"][i]
        pos = [p for p, one in enumerate(strings) if one == word][1 if i == 1 else 0]
        for layer, site in enumerate((("resid_pre", 0), ("resid_post", 0))):
            np.testing.assert_allclose(found.at(layer)[i], cache[site][0, pos].numpy(), atol=1e-5)


def test_a_word_of_several_tokens_is_read_at_its_last():
    model = models_by_kind()["masked"]
    found = at_words(model, ["the zebra went", "a q"], ["zebra", "q"])
    assert found.tokens[0].endswith("a")  # z ##e ##b ##r ##a
    assert model.to_str_tokens("zebra")[-2] == found.tokens[0]


def test_places_drawn_from_texts_and_means_of_texts():
    model = models_by_kind()["masked"]
    every = at_tokens(model, TEXTS, n=10_000)
    lengths = [len(model.to_str_tokens(text)) - 2 for text in TEXTS]
    assert len(every.tokens) == sum(lengths)
    assert "[CLS]" not in every.tokens
    assert every.text.tolist() == np.repeat(range(3), lengths).tolist()
    means = of_texts(model, TEXTS)
    for i in range(3):
        np.testing.assert_allclose(
            means.vectors[:, i], every.vectors[:, every.text == i].mean(1), atol=1e-5
        )
    some = at_tokens(model, TEXTS, n=7, seed=1)
    assert len(some.tokens) == 7
    assert some.tokens == at_tokens(model, TEXTS, n=7, seed=1).tokens
    assert some.tokens != at_tokens(model, TEXTS, n=7, seed=2).tokens
    assert at_tokens(model, TEXTS, n=7, layers=[1]).layers == [1]
    table = every.embedding(1)
    np.testing.assert_array_equal(table.vectors, every.at(1))


def test_batches_do_not_change_what_is_read(monkeypatch):
    from interp.methods.geometry import context

    model = models_by_kind()["byte pairs"]
    whole = of_texts(model, TEXTS)
    monkeypatch.setattr(context, "BATCH", 1)
    np.testing.assert_allclose(of_texts(model, TEXTS).vectors, whole.vectors, atol=1e-5)


def test_a_long_text_is_cut_and_a_word_beyond_the_context_is_named():
    model = models_by_kind()["whole words"]
    long = "the king went " * 40 + "Mary"
    assert len(at_tokens(model, [long], n=1000).tokens) == model.cfg.n_ctx
    with pytest.raises(ValueError, match=r"'Mary' is token 120 .* the model reads 64"):
        at_words(model, [long], ["Mary"])


@pytest.mark.parametrize(
    ("text", "word", "end"),
    [("banks bank", "bank", 10), ("Bank!", "bank", 4), ("a b a", "a#2", 5), ("x-ray", "ray", 5)],
)
def test_a_word_is_found_whole(text, word, end):
    assert word_span(text, word, fold=True)[1] == end


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: at_words(m, ["the party"], ["art"]), "the word 'art' is not in 'the party'"),
        (lambda m: at_words(m, ["a king a"], ["a"]), "'a' is there 2 times; write a#1 or a#2"),
        (lambda m: at_words(m, ["a king"], ["a#2"]), "'a#2', but 'a' is there 1 times"),
        (lambda m: at_words(m, ["a king"], [" "]), "' ' is not a word"),
        (lambda m: at_words(m, ["a king"], []), "0 words for 1 texts"),
        (lambda m: at_words(m, [], []), "a list of one text or more"),
        (lambda m: at_tokens(m, ["a king"], layers=[9]), "layers=9: expected 0 to 1"),
        (lambda m: at_tokens(m, ["a king"], layers=[]), "layers is empty"),
        (lambda m: at_tokens(m, ["zzz"]), "nothing but special tokens"),
        (lambda m: of_texts(m, ["a king", "zzz"]), "'zzz' holds nothing but special tokens"),
    ],
)
def test_refusals_of_places(act, message):
    with pytest.raises(ValueError, match=message):
        act(models_by_kind()["whole words"])


def pair_model() -> HookedTransformer:
    tokenizer = whole_words()
    torch.manual_seed(0)
    cfg = small_config(
        n_layers=1, d_vocab=tokenizer.vocab_size, n_ctx=64, norm_position="pre",
        encoder=small_config(
            n_layers=2, d_vocab=tokenizer.vocab_size, n_ctx=64, causal=False, head="none"
        ),
        decoder_start_token_id=0,
    )  # fmt: skip
    return HookedTransformer(cfg, tokenizer=tokenizer)


def test_of_an_encoder_decoder_the_encoder_reads():
    model = pair_model()
    table = embedding(model, layer=1, texts=list(TEXTS))
    found = at_words(model, TEXTS, ["store", "king", "went"])
    assert found.layers == [0, 1, 2]
    tokens = model.to_tokens(TEXTS[2])
    _, cache = model.run_with_cache(tokens, ["encoder_blocks.1.hook_resid_post"])
    stream = cache["encoder_blocks.1.hook_resid_post"][0]
    at = [one.strip() for one in tokens.source.strings[0]].index("went")
    np.testing.assert_allclose(found.at(2)[2], stream[at].numpy(), atol=1e-5)
    king = table.vectors[table.row("king")]
    np.testing.assert_allclose(king, found.at(2)[1], atol=1e-5)


# Senses -------------------------------------------------------------------------------------------


def told(seed: int, apart: float, n: int = 24, cue: float = 0.0, words: int = 4):
    """Vectors of some words in two senses; `apart` moves the senses, `cue` each of three cues."""
    rng = np.random.default_rng(seed)
    rows, vectors = [], []
    for w in range(words):
        own = rng.normal(size=20)
        sense = rng.normal(size=(2, 20))
        cues = rng.normal(size=(2, 3, 20))
        for i in range(n):
            s, c = i % 2, (i // 2) % 3
            rows.append((f"w{w}", f"s{s}", f"c{s}{c}"))
            vectors.append(own + apart * sense[s] + cue * cues[s, c] + rng.normal(size=20))
    return np.array(vectors), pd.DataFrame(rows, columns=["word", "sense", "group"])


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_planted_senses_are_told_apart_and_absent_ones_are_not(seed, grouped):
    vectors, table = told(seed, apart=2.0)
    blind, _ = told(seed, apart=0.0)
    table = table if grouped else table.drop(columns="group")
    found = disambiguation({0: blind, 1: vectors}, table, seed)
    assert found.pooled.columns.tolist() == list(POOLED)
    assert found.by_word.columns.tolist() == list(BY_WORD)
    none, clear = (row for _, row in found.pooled.iterrows())
    assert clear.accuracy > 0.95 and clear.accuracy > clear.null_high + 0.1
    assert clear.gap > 0.3 and clear.p <= 0.01
    assert clear.low < clear.accuracy <= clear.high
    assert none.null_low - 0.05 <= none.accuracy <= none.null_high + 0.1
    assert abs(none.gap) < 0.05
    own = found.by_word[found.by_word.layer == 1]
    assert own.correct.sum() == pytest.approx(clear.correct)
    assert (own.n == 24).all() and clear.n == 96 and clear.words == 4


def test_cues_alone_are_not_taken_for_senses_where_they_are_left_out_together():
    """Each cue has a vector of its own and the senses have none. One by one it looks like a sense;
    with whole cues left out it does not. The mutant that ignores groups fails here."""
    right = {True: [], False: []}
    for seed in range(8):
        vectors, table = told(seed, apart=0.0, cue=3.0)
        for grouped in right:
            asked = table if grouped else table.drop(columns="group")
            found = disambiguation({0: vectors}, asked, seed, draws=20).pooled.iloc[0]
            right[grouped].append(found.accuracy)
    assert np.mean(right[False]) > 0.8
    assert np.mean(right[True]) < 0.6


@pytest.mark.parametrize("grouped", [True, False])
def test_the_nearest_centroid_is_that_of_sklearn(grouped):
    vectors, table = told(3, apart=0.5, cue=1.0, words=1)
    sense = pd.factorize(table.sense)[0]
    group = pd.factorize(table.group)[0] if grouped else np.arange(len(table))
    shuffled = np.random.default_rng(0).permutation(sense)
    found = nearest_centroid(vectors, np.stack([sense, shuffled]), group)
    for labels, right in zip((sense, shuffled), found, strict=True):
        for i in range(len(table)):
            rest = group != group[i]
            if len(set(labels[rest])) < 2:
                continue
            guess = NearestCentroid().fit(vectors[rest], labels[rest]).predict(vectors[[i]])[0]
            assert right[i] == float(guess == labels[i])


def test_equal_vectors_are_a_toss_and_no_luck():
    _, table = told(0, 1.0)
    same = np.tile(np.arange(20.0) + 0.1, (len(table), 1))
    row = disambiguation({0: same}, table, draws=20).pooled.iloc[0]
    assert row.accuracy == row.null == row.null_high == 0.5
    assert row.p == 1.0
    assert row.gap == pytest.approx(0, abs=1e-12)


def test_the_same_seed_gives_the_same_shuffles():
    vectors, table = told(0, 0.5)
    one, two, other = (disambiguation({0: vectors}, table, seed).pooled for seed in (0, 0, 1))
    assert one.equals(two)
    assert not one.equals(other)


def test_words_that_cannot_be_compared_are_named():
    rows = [
        ("one", "a", "g1"), ("one", "a", "g2"),
        ("thin", "a", "g1"), ("thin", "a", "g2"), ("thin", "b", "g3"), ("thin", "b", "g3"),
        ("fit", "a", "g1"), ("fit", "a", "g2"), ("fit", "b", "g1"), ("fit", "b", "g2"),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["word", "sense", "group"])
    kept, left = separable(table)
    assert [word.name for word in kept] == ["fit"]
    assert left.values.tolist() == [
        ["one", "it has the one sense 'a'"],
        ["thin", "its sense 'b' has the one group of texts"],
    ]
    with pytest.raises(ValueError, match="none of 2 words can be used: 'one': it has the one"):
        disambiguation({0: np.ones((6, 2))}, table[:6])
    with pytest.raises(ValueError, match="no column sense; there are"):
        separable(table.drop(columns="sense"))
    with pytest.raises(ValueError, match="layer 3 has 2 rows for 10"):
        disambiguation({3: np.ones((2, 2))}, table)
    with pytest.raises(ValueError, match="draws=0"):
        disambiguation({0: np.ones((10, 2))}, table, draws=0)


# Likeness -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("debiased", [True, False])
def test_a_rotated_scaled_shifted_copy_is_the_same_and_a_shuffled_one_is_not(seed, debiased):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(120, 16)) * np.linspace(0.3, 2, 16)
    y = 3 * x @ ortho_group.rvs(16, random_state=seed) - 4.0
    assert cka(x, y, debiased) == pytest.approx(1, abs=1e-9)
    assert procrustes(x, y, seed=seed) == pytest.approx(1, abs=1e-9)
    order = rng.permutation(120)
    assert abs(procrustes(x, y[order], seed=seed)) < 0.15
    if debiased:
        assert abs(cka(x, y[order])) < 0.1


def test_with_few_examples_only_the_debiased_estimate_is_zero_for_unrelated_vectors():
    rng = np.random.default_rng(0)
    pairs = [rng.normal(size=(2, 30, 200)) for _ in range(20)]
    biased, fair = ([cka(x, y, one) for x, y in pairs] for one in (False, True))
    assert np.mean(biased) > 0.8
    assert abs(np.mean(fair)) < 3 * np.std(fair) / np.sqrt(20) + 0.01


def test_cka_is_its_formula_in_features():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 6)), rng.normal(size=(50, 9))
    y[:, :6] += x
    xc, yc = x - x.mean(0), y - y.mean(0)
    expected = np.square(xc.T @ yc).sum() / np.linalg.norm(xc.T @ xc) / np.linalg.norm(yc.T @ yc)
    assert cka(x, y, debiased=False) == pytest.approx(expected)


def test_debiased_hsic_is_the_estimate_of_song_et_al():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(20, 4)), rng.normal(size=(20, 7))
    left, right = (one @ one.T * (1 - np.eye(20)) for one in (x, y))
    n = 20
    expected = (
        np.trace(left @ right)
        + left.sum() * right.sum() / (n - 1) / (n - 2)
        - 2 * (left.sum(0) @ right.sum(0)) / (n - 2)
    )
    assert likeness.hsic([x, y], True)[0, 1] == pytest.approx(expected)


def test_the_budget_of_memory_does_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(3)
    layers = [rng.normal(size=(60, d)) for d in (5, 8, 70)]
    whole = cka_matrix(layers, layers[:2])
    assert whole.shape == (3, 2)
    monkeypatch.setattr(likeness, "BUDGET", 8 * 60 * 5 * 7)
    np.testing.assert_allclose(cka_matrix(layers, layers[:2]), whole, atol=1e-12)
    assert whole[0, 1] == pytest.approx(cka(layers[0], layers[1]))


def test_procrustes_sees_a_shear_that_no_rotation_undoes():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(300, 5))
    sheared = x * np.array([5, 1, 1, 1, 1])
    assert procrustes(x, sheared) == pytest.approx(9 / np.sqrt(5 * 29), abs=0.06)
    wide = np.concatenate([x, rng.normal(size=(300, 5))], axis=1)
    assert procrustes(wide, x) == pytest.approx(procrustes(x, wide), abs=1e-9)
    assert procrustes(wide, x) == pytest.approx(np.sqrt(0.5), abs=0.06)


def test_alignment_has_a_control_and_a_second_model():
    rng = np.random.default_rng(5)
    first = rng.normal(size=(200, 10))
    layers = {0: first, 1: first + rng.normal(size=(200, 10)), 2: rng.normal(size=(200, 10))}
    found = alignment(layers)
    assert found.columns.tolist() == ["layer", "other", "cka", "control"]
    grid = found.pivot(index="layer", columns="other", values="cka")
    assert np.diag(grid) == pytest.approx(np.ones(3))
    assert 0.3 < grid.loc[0, 1] < 0.9
    assert abs(grid.loc[0, 2]) < 0.05
    assert found.control.abs().max() < 0.05
    other = alignment(layers, {7: first @ ortho_group.rvs(10, random_state=0)})
    assert other["other"].tolist() == [7, 7, 7]
    assert other["cka"][0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda x: cka(x, x[:9]), r"shape \[9, 3\] beside \[10, 3\]"),
        (lambda x: cka(x[:3], x[:3]), "four or more"),
        (lambda x: cka(x, np.ones((10, 2)) / 3), "number 1 of 2 do not differ"),
        (lambda x: procrustes(x, x[:9]), "10 and 9 examples"),
        (lambda x: procrustes(x, x, folds=6), "in 6 folds"),
        (lambda x: procrustes(x, np.ones((10, 2))), "do not differ"),
    ],
)
def test_refusals_of_likeness(act, message):
    with pytest.raises(ValueError, match=message):
        act(np.random.default_rng(0).normal(size=(10, 3)))
