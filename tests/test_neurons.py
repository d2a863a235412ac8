"""Neurons: statistics against plain numpy, promoted tokens against the folded model's product."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings

from interp import edits, metrics, sweep
from interp.core.tokens import Tokens
from interp.methods.neurons import (
    firing,
    neuron_ids,
    neuron_logits,
    neuron_nodes,
    neuron_stats,
    promoted_tokens,
    top_activations,
)
from tests.strategies import configs, random_model, small_config
from tests.vocabularies import model_of, whole_words

ROWS = [[3, 1, 4, 1, 5, 3, 1], [2, 7, 1, 2, 2], [9, 9, 8], [5, 4, 3, 2, 1, 0]]


def plain(model, tokens, layer):
    """[real tokens, d_mlp] the neurons of a layer."""
    _, cache = model.run_with_cache(tokens, ("mlp.hook_post", layer))
    return cache["mlp.hook_post", layer], cache["mlp.hook_post", layer][tokens.real].numpy()


@settings(max_examples=6, deadline=None)
@given(cfg=configs())
def test_statistics_are_those_of_the_whole_cache(cfg):
    model, tokens = random_model(cfg), Tokens.from_rows(ROWS)
    if not cfg.d_mlp:
        with pytest.raises(ValueError, match="no MLP"):
            neuron_stats(model, tokens)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(firing, "ELEMENTS", 1)  # row by row
        frame = neuron_stats(model, tokens, threshold=0.1)
    assert len(frame) == cfg.n_layers * cfg.d_mlp
    for layer in range(cfg.n_layers):
        _, x = plain(model, tokens, layer)
        own = frame[frame["layer"] == layer]
        assert (own["n"] == 21).all() and own["neuron"].tolist() == list(range(cfg.d_mlp))
        centred = x - x.mean(0)
        varies = x.std(0) > 1e-12 * np.abs(x).max(0)
        assert (own["kurtosis"].isna() == ~varies).all()
        with np.errstate(invalid="ignore"):
            kurtosis = (centred**4).mean(0) / (centred**2).mean(0) ** 2 - 3
        expected = {"mean": x.mean(0), "sd": x.std(0), "active": (x > 0.1).mean(0),
                    "min": x.min(0), "max": x.max(0)}  # fmt: skip
        for name, value in expected.items():
            assert np.allclose(own[name], value, rtol=1e-9, atol=1e-12), name
        assert np.allclose(own["kurtosis"][varies], kurtosis[varies], rtol=1e-6)


def test_streaming_survives_a_large_mean():
    """Sums of powers would lose every digit of the variance here."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_exponential((4000, 3)) + 1e6)
    whole = firing.Moments.of(x, 0.0)
    parts = [firing.Moments.of(part, 0.0) for part in x.split([1, 700, 2, 3297])]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merged(part)
    for name, value in whole.columns().items():
        assert torch.allclose(merged.columns()[name], value, rtol=1e-7), name
    assert whole.columns()["kurtosis"].numpy() == pytest.approx(6, abs=3)  # of an exponential
    assert merged.n == 4000


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("elements", [1, 2**24])
def test_top_activations_are_the_largest_of_each_row(side, elements, monkeypatch):
    model, tokens = random_model(small_config(n_layers=2)), Tokens.from_rows(ROWS, side=side)
    monkeypatch.setattr(firing, "ELEMENTS", elements)
    asked = [(1, 5), (0, 63), (1, 0)]
    frame = top_activations(model, tokens, asked, k=3)
    assert list(frame[["layer", "neuron"]].drop_duplicates().itertuples(index=False)) == asked
    for layer, neuron in asked:
        x, _ = plain(model, tokens, layer)
        best = [
            max((float(x[row, pos, neuron]), row, pos) for pos in range(7) if tokens.real[row, pos])
            for row in range(4)
        ]
        best = sorted(best, reverse=True)[:3]
        own = frame[(frame["layer"] == layer) & (frame["neuron"] == neuron)]
        assert own["rank"].tolist() == [1, 2, 3]
        assert own[["example", "pos"]].to_numpy().tolist() == [[r, p] for _, r, p in best]
        assert np.allclose(own["value"], [value for value, *_ in best])
    assert len(top_activations(model, tokens, [(0, 0)], k=10)) == 4
    with pytest.raises(ValueError, match="k=0"):
        top_activations(model, tokens, [(0, 0)], k=0)


@settings(max_examples=25, deadline=None)
@given(cfg=configs())
def test_what_neurons_say_is_a_product_of_the_folded_model(cfg):
    model = random_model(cfg)
    if not cfg.d_mlp or cfg.head != "unembed" or (
        cfg.norm != "none" and cfg.norm_position != "pre"
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"no MLP|linear map|a norm stands"):
            neuron_logits(model, [(0, 3)])
        return
    asked = [(cfg.n_layers - 1, 3), (0, 20)]
    found = neuron_logits(model, asked)
    folds = cfg.norm == "none" or cfg.norm_position == "pre"
    folded = model.folded() if folds and cfg.norm != "none" else model
    scale = (cfg.residual_scale or 1.0) * (cfg.logit_scale or 1.0)
    for (layer, neuron), own in zip(asked, found, strict=True):
        product = folded.blocks[layer].mlp.W_out[neuron] @ folded.W_U * scale
        if cfg.norm == "layernorm" and cfg.final_norm:
            written = folded.blocks[layer].mlp.W_out[neuron]
            product = (written - written.mean()) @ folded.W_U * scale
        assert torch.allclose(own, product - product.mean(), rtol=1e-9, atol=1e-9)


def test_promoted_tokens_are_the_ends_of_that_product():
    model = model_of(whole_words())
    frame = promoted_tokens(model, [(0, 7)], k=4)
    logits = neuron_logits(model, [(0, 7)])[0]
    up, down = (frame[frame["side"] == side] for side in ("promoted", "suppressed"))
    assert up["id"].tolist() == logits.topk(4).indices.tolist()
    assert down["id"].tolist() == (-logits).topk(4).indices.tolist()
    assert np.allclose(up["value"], logits.topk(4).values)
    assert (down["value"] < 0).all() and frame["rank"].tolist() == [1, 2, 3, 4] * 2
    assert up["token"].tolist() == model.tokenizer.str_tokens(up["id"].tolist())
    bare = promoted_tokens(random_model(small_config()), [(0, 7)], k=1)
    assert bare["token"].tolist() == [str(i) for i in bare["id"]]


def test_a_neurons_words_are_what_it_adds_with_the_scale_held():
    """Second route: the change of the logits per unit, through the final norm at its scale."""
    model = random_model(small_config())
    tokens = Tokens(torch.tensor([[3, 1, 4, 1, 5]]))
    _, cache = model.run_with_cache(tokens, [("resid_post", 2), "ln_final.hook_scale"])
    resid, scale = cache["resid_post", 2][:, -1], cache["ln_final.hook_scale"][:, -1]
    more = resid + model.blocks[2].mlp.W_out[9]

    def read(x):
        centred = (x - x.mean(-1, keepdim=True)) / scale
        return (centred * model.ln_final.w + model.ln_final.b) @ model.W_U

    change = (read(more) - read(resid))[0] * scale[0]
    assert torch.allclose(neuron_logits(model, [(2, 9)])[0], change - change.mean())


def test_sets_of_neurons_are_edited_together():
    model, tokens = random_model(small_config()), Tokens.from_rows(ROWS)
    sets = [[(0, 3)], [(0, 3), (2, 1), (0, 4)]]
    nodes = neuron_nodes(model, sets)
    assert nodes["row"].tolist() == [0, 1, 1, 1]
    found = sweep(
        model, tokens, nodes, edit=edits.zero(), metric=metrics.loss(), progress=False
    ).drop_duplicates("row")  # fmt: skip

    def zero(x, hook):
        for layer, neuron in sets[1]:
            if layer == hook.layer:
                x[..., neuron] = 0

    logits = model.with_hooks([("mlp.hook_post", zero)])(tokens).log_softmax(-1)
    ids = tokens.ids[:, 1:]
    each = -logits[:, :-1].gather(-1, ids[..., None])[..., 0]
    counted = tokens.real[:, 1:]
    loss = ((each * counted).sum(1) / counted.sum(1)).mean()
    assert found["value"].iloc[1] == pytest.approx(float(loss), rel=1e-9)


def test_neurons_have_names_and_a_range():
    model = random_model(small_config())
    assert neuron_ids(model, ["2.17", "0.0"]) == [(2, 17), (0, 0)]
    for names, message in (
        (["3.0"], r"layer of neuron 3.0=3: expected 0 to 2"),
        (["0.64"], r"number of neuron 0.64=64: expected 0 to 63"),
        (["17"], "expected layer.neuron"),
        (["-1.2"], "expected layer.neuron"),
        (["0.1", "0.1"], "there twice"),
        ([], "no neurons"),
    ):
        with pytest.raises(ValueError, match=message):
            neuron_ids(model, names)
    with pytest.raises(ValueError, match="layers=3: expected 0 to 2"):
        neuron_stats(model, [[1, 2]], layers=[3])
    encoder = small_config(causal=False, head="none", n_layers=1)
    pair = random_model(small_config(n_layers=1, encoder=encoder, decoder_start_token_id=1))
    with pytest.raises(ValueError, match="two stacks"):
        neuron_stats(pair, [[1, 2]])
    frame = neuron_stats(pair.encoder, [[1, 2]])
    assert isinstance(frame, pd.DataFrame) and len(frame) == 64
