"""The partial rerun gives the naive engine's numbers, for less work."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp import edits, metrics
from interp.tokens import Tokens

from .strategies import configs, random_model, small_config

BATCHES = (
    [[1, 2, 3, 4, 5, 6], [6, 7, 8, 9, 10, 1], [3, 3, 1, 4, 2, 0]],
    [[1, 2, 3, 4, 5, 6], [6, 7, 8], [9, 1]],
)
OTHER = torch.tensor([[1, 2, 9, 4, 5, 6], [6, 7, 8, 9, 3, 1], [3, 3, 1, 4, 2, 0]])


@st.composite
def frames(draw, model, tokens) -> pd.DataFrame:
    """A few nodes anywhere, some of several parts."""
    lines = []
    for row in range(draw(st.integers(1, 6))):
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
            site = draw(st.sampled_from(list(model.sites)))
            line = {"row": row, "site": site.local_name, "layer": site.layer}
            if draw(st.booleans()):
                where = st.integers(0, tokens.shape[1] - 1)
                line |= draw(st.sampled_from([{"pos": draw(where)}, {"role": "here"}]))
            if "head" in site.axes or "kv_head" in site.axes:
                n = model.cfg.n_kv_heads if "kv_head" in site.axes else model.cfg.n_heads
                line["head"] = draw(st.sampled_from([None, *range(n)]))
            if "k_pos" in site.axes and draw(st.booleans()):
                line["k_pos"] = draw(st.integers(0, tokens.shape[1] - 1))
            if "d_mlp" in site.axes and draw(st.booleans()):
                line["neuron"] = draw(st.integers(0, model.cfg.d_mlp - 1))
            lines.append(line)
    return pd.DataFrame(lines)


def mixes_inputs_and_norm(frame) -> bool:
    """Nodes that the model refuses: a head's own input with an edit of the shared norm."""
    for _, node in frame.groupby("row"):
        inputs = node["site"].str.endswith("_input")
        if inputs.any() and node["site"].str.startswith("ln1.").any():
            return True
    return False


@settings(max_examples=50, deadline=None)
@given(cfg=configs(), data=st.data())
def test_rerun_equals_naive_everywhere(cfg, data):
    """Random architectures, nodes, edits, metrics and paddings, in float64."""
    compare_engines(cfg, data)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(cfg=configs(), data=st.data())
def test_rerun_equals_naive_everywhere_many_times(cfg, data):
    compare_engines(cfg, data)


def compare_engines(cfg, data):
    model = random_model(cfg)
    rows = data.draw(st.sampled_from(BATCHES))
    tokens = Tokens.from_rows(rows, side=data.draw(st.sampled_from(["left", "right"])))
    tokens = Tokens(tokens.ids, mask=tokens.mask, roles={"here": torch.tensor([4, 3, 5])})
    frame = data.draw(frames(model, tokens))
    if mixes_inputs_and_norm(frame):
        return
    other = Tokens(OTHER, mask=tokens.mask)
    edit = data.draw(
        st.sampled_from(
            [
                edits.zero(),
                edits.scale(1.3),
                edits.set_to(0.5),
                edits.noise(0.5),
                edits.mean(other),
                edits.mean(other, per="pos"),
                edits.resample(other),
                edits.patch(other),
            ]
        )
    )
    answer = torch.tensor([1, 2, 3])
    choices = [
        metrics.pooled_cosine(torch.randn(3, 16, dtype=torch.float64)),
        metrics.cosine(torch.ones(16), pos="here"),
        metrics.function(lambda x: x[:, -1].sum(-1), "sum", of="residual"),
    ]
    if cfg.head == "unembed":
        choices = [
            *choices[:1],
            metrics.logit_diff(answer, answer + 4),
            metrics.log_prob(answer),
            metrics.loss(),
            metrics.kl(),
            metrics.js("all"),
            metrics.accuracy(answer),
            metrics.logit_diff(answer, answer + 4, pos=2),
        ]
    metric = data.draw(st.sampled_from(choices))
    late = frame["site"].str.startswith(("ln_final", "hook_logits")).any()
    if late and metric.name in ("pooled_cosine", "cosine", "sum"):
        return
    options = {
        "edit": edit,
        "metric": metric,
        "reduce": "none",
        "allow_noop": True,
        "progress": False,
    }
    try:
        naive = interp.sweep(model, tokens, frame, engine="naive", **options)
    except ValueError:  # a scale set to zero: both engines say so
        with pytest.raises(ValueError, match="not finite"):
            interp.sweep(model, tokens, frame, engine="rerun", **options)
        return
    fast = interp.sweep(model, tokens, frame, engine="rerun", **options)
    numbers = ["value", "baseline", "effect"]
    assert naive.drop(columns=numbers).equals(fast.drop(columns=numbers))
    scale = max(1.0, naive["value"].abs().max())
    for column in numbers:
        assert np.allclose(fast[column], naive[column], rtol=0, atol=1e-9 * scale), column


def test_noise_on_a_square_of_positions_is_drawn_from_position_0():
    """The query axis of a pattern is cut short in a late pass; the draw must not notice."""
    model, tokens = random_model(small_config()), Tokens.of(BATCHES[0])
    for site in ("attn_scores", "z"):
        frame = interp.nodes(model, site, by=("layer", "pos"), tokens=tokens)
        run = [
            interp.sweep(model, tokens, frame, edit=edits.noise(0.5), metric=metrics.kl(),
                         engine=engine, progress=False)
            for engine in ("rerun", "naive")
        ]  # fmt: skip
        assert np.allclose(run[0]["value"], run[1]["value"], rtol=0, atol=1e-10)
        assert run[0].attrs["forward_equivalents"] < run[1].attrs["forward_equivalents"]


def test_small_passes_change_no_number(monkeypatch):
    model = random_model(small_config())
    tokens = Tokens.of(BATCHES[0])
    frame = pd.concat(
        [
            interp.nodes(model, site, by=("layer", "pos"), tokens=tokens)
            for site in ("resid_pre", "z", "mlp.hook_post", "pattern")
        ],
        ignore_index=True,
    ).assign(row=lambda f: range(len(f)))
    options = {"edit": edits.zero(), "metric": metrics.loss(), "progress": False}
    whole = interp.sweep(model, tokens, frame, **options)
    monkeypatch.setattr(interp.rerun, "TOKENS_PER_PASS", 7)
    monkeypatch.setattr(interp.rerun, "VALUES_AT_ONCE", 50)
    small = interp.sweep(model, tokens, frame, **options)
    assert np.allclose(whole["value"], small["value"], atol=1e-12)


def test_the_rerun_spends_less(monkeypatch):
    """The bound by hand: rows × suffix × layers from the entry on."""
    model = random_model(small_config())
    tokens = Tokens.of(BATCHES[0])
    frame = interp.nodes(model, "resid_pre", by=("layer", "pos"), tokens=tokens)
    options = {
        "edit": edits.zero(),
        "progress": False,
        "metric": metrics.logit_diff(torch.ones(3).long(), torch.zeros(3).long()),
    }
    result = interp.sweep(model, tokens, frame, **options)
    token_layers = sum((6 - pos) * (3 - layer) for layer in range(3) for pos in range(6))
    assert result.attrs["forward_equivalents"] == pytest.approx(1 + token_layers / 18)
    assert result.attrs["naive_equivalents"] == 19
    # A patch that changes nothing left of position 2 (and nothing in row 2) is not run there.
    clean = edits.patch(Tokens.of(OTHER))
    patched = interp.sweep(model, tokens, frame, **(options | {"edit": clean}))
    # Entering behind the queries, keys and values, a row leaves out their share of its layer.
    heads = interp.nodes(model, "z", by=("layer",), layers=[2])
    late = interp.sweep(model, tokens, heads, **options)
    share = 1 - 3 * 32 / (4 * 32 + 2 * 64)
    assert late.attrs["forward_equivalents"] == pytest.approx(1 + share / 3)
    # At layer 0 the runs differ at positions 2 and 4 alone, later from 2 on.
    assert patched.attrs["noop_nodes"] == 4 + 2 + 2
    naive = interp.sweep(model, tokens, frame, engine="naive", **(options | {"edit": clean}))
    assert np.allclose(patched["value"], naive["value"], atol=1e-10)


def test_float32_agrees_within_rounding():
    model = random_model(small_config(n_kv_heads=2, positions="rotary", norm="rmsnorm")).float()
    for p in model.parameters():
        p.mul_(0.3)
    tokens = Tokens.of(BATCHES[0])
    frame = interp.nodes(model, "z", by=("layer", "head", "pos"), tokens=tokens)
    options = {"edit": edits.zero(), "metric": metrics.loss(), "progress": False}
    a, b = (interp.sweep(model, tokens, frame, engine=e, **options) for e in ("rerun", "naive"))
    assert np.allclose(a["value"], b["value"], rtol=1e-5, atol=1e-5)


def test_mutants_of_the_rerun_are_seen(monkeypatch):
    """The comparison can fail: a prefix that is off by one, and a stage that joins too late."""
    model = random_model(small_config())
    tokens = Tokens.of(BATCHES[0])
    frame = interp.nodes(model, "z", by=("layer", "pos"), tokens=tokens)
    options = {"edit": edits.zero(), "metric": metrics.loss(), "progress": False}
    naive = interp.sweep(model, tokens, frame, engine="naive", **options)["value"]

    def differs():
        fast = interp.sweep(model, tokens, frame, engine="rerun", **options)["value"]
        return np.abs(fast - naive).max() > 1e-3

    assert not differs()
    with monkeypatch.context() as patched:
        extend = interp.rerun.BasePrefix.extend
        patched.setattr(
            interp.rerun.BasePrefix,
            "extend",
            lambda self, layer, k, v: extend(self, max(layer - 1, 0), k, v),
        )
        assert differs()
    with monkeypatch.context() as patched:
        first = interp.rerun._first_change
        patched.setattr(interp.rerun, "_first_change", lambda *a: first(*a) + 1)
        assert differs()


def test_engines_are_chosen_and_named():
    model = random_model(small_config())
    view = model.with_hooks([("z", lambda z, hook: z * 0.5)])
    options = {"metric": metrics.loss(), "kind": "zero", "progress": False}
    ids = BATCHES[0]
    assert interp.ablate(model, ids, "z", **options).attrs["engine"] == "rerun"
    assert interp.ablate(view, ids, "z", **options).attrs["engine"] == "naive"
    with pytest.raises(ValueError, match="without hooks"):
        interp.ablate(view, ids, "z", engine="rerun", **options)
    with pytest.raises(ValueError, match="lies before 'ln_final"):
        interp.sweep(
            model,
            ids,
            pd.DataFrame({"site": ["ln_final.hook_scale"]}),
            progress=False,
            edit=edits.zero(),
            metric=metrics.pooled_cosine(),
        )
