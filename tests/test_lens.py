"""Lenses: where they read, the tuned lens by a second route, and the file that it is kept in."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings

import interp
from interp import tasks
from interp.core.tokens import Tokens
from interp.loading import weights_hash
from interp.methods.lens import (
    Translator,
    TunedLens,
    fit_tuned_lens,
    logit_lens,
    random_lens,
    top_tokens,
)

from .strategies import configs, random_model, small_config

ROWS = [[3, 1, 4, 1, 5, 3, 1], [2, 7, 1, 2, 2]]


def untrained(model, **changes) -> TunedLens:
    """Translators that change nothing."""
    d, wide = model.cfg.d_model, torch.promote_types(model.dtype, torch.float32)
    zeros = Translator(torch.zeros(d, d, dtype=wide), torch.zeros(d, dtype=wide))
    n = model.cfg.n_layers
    lens = TunedLens(dict.fromkeys(range(n), zeros), n, weights_hash(model))
    return dataclasses.replace(lens, **changes)


def texts(model, n=24, length=12, seed=0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    return Tokens(torch.randint(model.cfg.d_vocab, (n, length), generator=generator))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return random_model(small_config())


# Reading -------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(cfg=configs())
def test_a_lens_that_was_not_trained_is_the_logit_lens(cfg):
    if cfg.head == "none":
        return
    model = random_model(cfg)
    tokens, answer = Tokens.from_rows(ROWS), torch.tensor([4, 2])
    plain = logit_lens(model, tokens, answer)
    read = untrained(model).read(model, tokens, answer)
    pd.testing.assert_frame_equal(read, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_it_gives_every_stream_bit_for_bit(dtype):
    model = random_model(small_config()).to(dtype)
    lens = untrained(model)
    for layer in range(4):
        stream = model(ROWS[:1], stop_at_layer=layer)
        assert torch.equal(lens.translate(layer, stream).to(dtype), stream)
    plain, read = logit_lens(model, ROWS[:1]), lens.read(model, ROWS[:1])
    pd.testing.assert_frame_equal(read, plain, atol=1e-6)


def test_positions_and_layers_are_parts_of_the_whole_frame(model, monkeypatch):
    tokens = dataclasses.replace(Tokens.from_rows(ROWS), roles={"name": torch.tensor([2, 1])})
    answer = torch.tensor([4, 2])
    whole = logit_lens(model, tokens, answer)
    some = logit_lens(model, tokens, answer, pos="name", layers=[3, 1])
    at = whole["pos"] == whole["example"].map({0: 2, 1: 1})
    expected = whole[at & whole["layer"].isin([1, 3])].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, expected)
    monkeypatch.setattr("interp.lens.reading.POSITIONS", 1)  # row by row
    pd.testing.assert_frame_equal(logit_lens(model, tokens, answer), whole)


def test_equal_logits_put_nobody_first():
    model = random_model(small_config(tied=False))
    model.unembed.weight.zero_()
    frame = logit_lens(model, ROWS[:1], torch.tensor([4]))
    assert (frame["rank"] == model.cfg.d_vocab).all()


def test_top_tokens_begin_with_that_of_the_lens(model):
    tokens = Tokens.from_rows(ROWS)
    for lens, frame in (
        (None, logit_lens(model, tokens)),
        (random_lens(model), random_lens(model).read(model, tokens)),
    ):
        found = top_tokens(model, tokens, 3, lens=lens)
        assert len(found) == 3 * len(frame)
        first = found[found["rank"] == 1].reset_index(drop=True)
        assert (first["token"] == frame["top"]).all()
        assert np.allclose(first["prob"], frame["top_prob"])
        assert (found.groupby(["example", "layer", "pos"])["prob"].diff().dropna() <= 0).all()


def test_a_view_is_read_with_its_hooks(model):
    view = model.with_hooks([(("resid_post", 1), lambda x, hook: x * 0)])
    frame = untrained(model).read(view, ROWS[:1]).set_index(["layer", "pos"])
    plain = logit_lens(model, ROWS[:1]).set_index(["layer", "pos"])
    assert frame.loc[1].equals(plain.loc[1]) is False  # the output, which kl compares with, moved
    assert np.allclose(frame.loc[1, "entropy"], plain.loc[1, "entropy"])
    assert not np.allclose(frame.loc[2, "entropy"], plain.loc[2, "entropy"])


def test_the_random_lens_turns_every_stream(model):
    lens = random_lens(model, seed=3)
    turn = lens.translators[0].A + torch.eye(model.cfg.d_model)
    assert torch.allclose(turn @ turn.T, torch.eye(len(turn)).double(), atol=1e-12)
    assert lens.layers == tuple(range(model.cfg.n_layers + 1))
    assert (lens.read(model, ROWS[:1])["kl"] > 1e-3).all()
    x = torch.randn(2, model.cfg.d_model).double()
    assert torch.allclose(lens.translate(0, x), x @ turn.T)
    assert not torch.equal(turn, random_lens(model, seed=4).translators[0].A)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: logit_lens(m, ROWS[:1], layers=[4]), "layers=4: expected 0 to 3"),
        (lambda m: logit_lens(m, ROWS[:1], layers=[]), "layers is empty"),
        (lambda m: logit_lens(m, ROWS[:1], pos="subject"), "have the roles"),
        (lambda m: top_tokens(m, ROWS[:1], 99), "k=99: this model has 1 to 29"),
        (lambda m: fit_tuned_lens(m, ROWS[:1]), "at least two"),
        (lambda m: fit_tuned_lens(m, ROWS, layers=[3]), "last stream needs no translator"),
        (lambda m: fit_tuned_lens(m, ROWS, layers=[-1]), r"layers=\[-1\]"),
        (lambda m: fit_tuned_lens(m, ROWS, held_out=1.0), "held_out=1.0"),
        (lambda m: fit_tuned_lens(m, ROWS, l2=0.0), "l2=0.0: expected numbers above 0"),
        (lambda m: fit_tuned_lens(m, ROWS, steps=-1), "steps=-1"),
    ],
)
def test_what_cannot_be_read_is_an_error(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


def test_models_that_cannot_be_read_are_named():
    blind = random_model(small_config(head="none", tied=False))
    opaque = random_model(small_config())
    opaque.opaque = "the model runs behind the bridge"
    for one, message in ((blind, "no unembedding"), (opaque, "behind the bridge")):
        for call in (logit_lens, top_tokens, fit_tuned_lens):
            with pytest.raises(ValueError, match=message):
                call(one, ROWS)
        with pytest.raises(ValueError, match=message):
            random_lens(one)


# Training ------------------------------------------------------------------------------------


def test_the_start_is_weighted_ridge_regression(model):
    tokens, l2 = texts(model), 0.03
    lens = fit_tuned_lens(model, tokens, steps=0, l2=l2, seed=1, progress=False)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    train = tokens[order[round(24 * 0.2) :]]
    _, cache = model.run_with_cache(train, ["resid_pre", "resid_post"])
    last = cache["resid_post", 2].flatten(0, 1).numpy()
    for layer in range(3):
        h = cache["resid_pre", layer].flatten(0, 1).numpy()
        weight = 1 / ((h**2).sum(1) + (last**2).sum(1))
        weight /= weight.sum()
        centred, rest = h - weight @ h, (last - h) - weight @ (last - h)
        size = (weight @ centred**2).mean()  # a penalty is rows of zeros to be met
        root = np.sqrt(weight)[:, None]
        X = np.vstack([root * centred, np.sqrt(l2 * size) * np.eye(h.shape[1])])
        Y = np.vstack([root * rest, np.zeros((h.shape[1], h.shape[1]))])
        A = np.linalg.lstsq(X, Y, rcond=None)[0].T
        assert np.allclose(lens.translators[layer].A.numpy(), A, atol=1e-9)
        b = weight @ (last - h) - A @ (weight @ h)
        assert np.allclose(lens.translators[layer].b.numpy(), b, atol=1e-9)


def test_training_goes_down_and_a_large_penalty_keeps_the_identity(model):
    tokens = texts(model, 48)
    at = lambda **options: fit_tuned_lens(model, tokens, progress=False, **options).table  # noqa: E731
    start, trained = at(steps=0), at(steps=25)
    own = start["layer"] < 3
    assert (trained["train_tuned"][own] < start["train_tuned"][own]).all()
    held = fit_tuned_lens(model, tokens, steps=3, lr=1e-6, l2=1e7, progress=False)
    for A, _ in held.translators.values():
        assert A.abs().max() < 1e-4


def test_few_texts_are_learnt_by_heart_and_the_table_shows_it(model):
    few = fit_tuned_lens(model, texts(model, 4), steps=10, l2=1e-6, progress=False).table.iloc[0]
    assert few["train_tuned"] < 0.5 * few["train_plain"]
    assert few["tuned"] > 2 * few["train_tuned"]
    assert np.isnan(few["tuned_stderr"])  # of one row held out


def test_the_same_seed_gives_the_same_lens(model):
    one, two, other = (
        fit_tuned_lens(model, texts(model), steps=3, seed=seed, progress=False)
        for seed in (0, 0, 1)
    )
    for layer in one.layers:
        assert torch.equal(one.translators[layer].A, two.translators[layer].A)
        assert not torch.equal(one.translators[layer].A, other.translators[layer].A)
    pd.testing.assert_frame_equal(one.table, two.table)
    assert one.made_of["rows"] == 19 and one.made_of["held_out_rows"] == 5
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_the_table_is_what_reading_gives_on_the_rows_held_out(model):
    tokens = texts(model)
    lens = fit_tuned_lens(model, tokens, steps=3, layers=[1], progress=False)
    assert lens.layers == (1,) and lens.readable == (1, 3)
    held = tokens[torch.randperm(24, generator=torch.Generator().manual_seed(0))[:5]]
    table = lens.table.set_index("layer")
    for name, frame in (("plain", logit_lens(model, held)), ("tuned", lens.read(model, held))):
        found = frame.groupby("layer")["kl"].mean()
        for layer in (1, 3):
            assert table.loc[layer, name] == pytest.approx(found[layer], abs=1e-12)
    assert table.loc[3, "tuned"] == 0
    with pytest.raises(ValueError, match=r"layers=\[2\]: this lens was trained for \[1\]"):
        lens.read(model, held, layers=[2])


def test_on_tinyworld_it_beats_the_plain_lens_on_text_held_out():
    tinyworld = interp.load("tinyworld", device="cpu")
    pairs = tasks.indirect_object(tinyworld, 60, 0)
    table = fit_tuned_lens(tinyworld, pairs.clean, steps=5, progress=False).table
    own = table[table["layer"] < tinyworld.cfg.n_layers]
    assert (own["tuned"] < own["plain"]).all()
    assert table.iloc[-1][["plain", "tuned"]].tolist() == [0, 0]


# The file ------------------------------------------------------------------------------------


def test_a_lens_is_saved_and_read_back(model, tmp_path):
    lens = fit_tuned_lens(model, texts(model, 3), steps=1, progress=False)
    path = lens.save(tmp_path / "lens.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["lens.safetensors"]
    again = TunedLens.load(path, model)
    for layer, (A, b) in lens.translators.items():
        assert torch.equal(again.translators[layer].A, A)
        assert torch.equal(again.translators[layer].b, b)
    pd.testing.assert_frame_equal(again.read(model, ROWS[:1]), lens.read(model, ROWS[:1]))
    pd.testing.assert_frame_equal(again.table, lens.table, check_exact=True)
    assert again.made_of == lens.made_of


def test_the_lens_of_another_model_is_refused(model, tmp_path):
    lens = untrained(model)
    path = lens.save(tmp_path / "lens.safetensors")
    other, wider = random_model(small_config(), seed=1), random_model(small_config(n_layers=2))
    for one, message in (
        (other, "trained on other weights"),
        (wider, "this lens is for n_layers=3, d_model=32; custom has n_layers=2"),
    ):
        for call in (
            lambda one=one: TunedLens.load(path, one),
            lambda one=one: lens.read(one, ROWS),
            lambda one=one: top_tokens(one, ROWS, lens=lens),
        ):
            with pytest.raises(ValueError, match=message):
                call()


def test_damaged_files_are_named(model, tmp_path):
    path = untrained(model).save(tmp_path / "lens.safetensors")
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "sha256"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    holes = tensors | {"1.b": torch.full((32,), float("nan"))}
    for kept, told, message in (
        (tensors, {}, "not a tuned lens"),
        ({"0.A": tensors["0.A"]}, metadata, "damaged"),
        (tensors | {"1.A": torch.zeros(3, 3)}, metadata, r"layer 1 has the shapes \[3, 3\]"),
        (holes, metadata, "no finite numbers"),
        (tensors | {"x.A": torch.zeros(2)}, metadata, "damaged"),
        (tensors, metadata | {"lens": "{"}, "not valid JSON"),
        (tensors, metadata | {"lens": "{}"}, "damaged"),
    ):
        safetensors.torch.save_file(kept, tmp_path / "bad.safetensors", told)
        with pytest.raises(ValueError, match=message):
            TunedLens.load(tmp_path / "bad.safetensors", model)
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        TunedLens.load(tmp_path / "text", model)
