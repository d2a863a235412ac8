"""Heads, lens, attribution: against a second route, by hand, on random architectures."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp import metrics
from interp.core.tokens import Tokens
from interp.methods.attribution import logit_attribution
from interp.methods.heads import LOOKS, composition, head_scores, random_repeats
from interp.methods.lens import logit_lens

from .strategies import configs, random_model, small_config

ROWS = [[3, 1, 4, 1, 5, 3, 1], [2, 7, 1, 2, 2]]


# Attribution ---------------------------------------------------------------------------------


def is_sum(cfg):
    return cfg.head == "unembed" and (cfg.norm == "none" or cfg.norm_position != "post")


@settings(max_examples=40, deadline=None)
@given(cfg=configs(), by=st.sampled_from(["component", "head", "neuron"]))
def test_parts_add_up_to_the_logit(cfg, by):
    model = random_model(cfg)
    tokens, answer, wrong = Tokens.from_rows(ROWS), torch.tensor([4, 2]), torch.tensor([5, 6])
    if not is_sum(cfg):
        with pytest.raises(ValueError, match=r"head=|norm_position='post'"):
            logit_attribution(model, tokens, answer, wrong, by=by)
        return
    if by != "component" and cfg.norm != "none" and cfg.norm_position != "pre":
        with pytest.raises(ValueError, match="use by='component'"):
            logit_attribution(model, tokens, answer, wrong, by=by)
        return
    if by == "neuron" and (cfg.n_experts or not cfg.d_mlp):
        with pytest.raises(ValueError, match="without experts"):
            logit_attribution(model, tokens, answer, wrong, by=by)
        return
    frame = logit_attribution(model, tokens, answer, wrong, by=by)
    whole = frame["component"] == "total"
    parts = frame[~whole].groupby("example")["value"].sum()
    total = frame[whole].set_index("example")["value"]
    size = frame.groupby("example")["value"].apply(lambda v: np.abs(v).sum())
    assert (np.abs(parts - total) <= 1e-10 * size).all()
    if cfg.final_softcap is None:
        logits = model(tokens)
        for row, end in enumerate([6, 4]):
            ours = logits[row, end, answer[row]] - logits[row, end, wrong[row]]
            assert total[row] == pytest.approx(float(ours), rel=1e-9, abs=1e-9)


def test_a_heads_part_is_what_removing_it_takes_with_the_scale_held():
    model = random_model(small_config())
    tokens, answer = torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([4])
    frame = logit_attribution(model, tokens, answer, layers=[1])
    _, cache = model.run_with_cache(tokens)
    resid = cache["resid_post", model.cfg.n_layers - 1][:, -1]
    scale = cache["ln_final.hook_scale"][:, -1]
    for head in range(model.cfg.n_heads):
        z = cache["z", 1][:, -1, head]
        without = resid - z @ model.blocks[1].attn.W_O[head]
        logits = []
        for x in (resid, without):
            normed = (x - x.mean(-1, keepdim=True)) / scale
            if model.ln_final.w is not None:
                normed = normed * model.ln_final.w
            logits.append(float((normed @ model.W_U)[0, 4]))
        part = frame[(frame["layer"] == 1) & (frame["head"] == head)]["value"].item()
        assert part == pytest.approx(logits[0] - logits[1], rel=1e-9, abs=1e-12)
    assert set(frame.loc[frame["component"] == "attn", "layer"]) == set(range(model.cfg.n_layers))
    assert (frame.loc[(frame["component"] == "attn") & (frame["layer"] == 0), "head"] == -1).all()


def test_attribution_reads_where_it_is_asked(unchecked):
    model = random_model(small_config())
    tokens = Tokens(torch.tensor([[3, 1, 4, 1, 5]]), roles={"name": torch.tensor([2])})
    by_role = logit_attribution(model, tokens, torch.tensor([4]), pos="name")
    by_index = logit_attribution(model, tokens, torch.tensor([4]), pos=2)
    pd.testing.assert_frame_equal(by_role, by_index)
    total = by_role.loc[by_role["component"] == "total", "value"].item()
    assert total == pytest.approx(float(model(tokens)[0, 2, 4]), rel=1e-9)
    for arguments, message in (
        ({"by": "layers"}, "expected 'component', 'head' or 'neuron'"),
        ({"layers": [7]}, "layers=7: expected 0 to"),
        ({"pos": "subject"}, "these tokens have the roles name"),
    ):
        with pytest.raises(ValueError, match=message):
            logit_attribution(model, tokens, torch.tensor([4]), **arguments)


# The lens ------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(cfg=configs())
def test_the_lens_is_the_unembedding_of_every_stream(cfg):
    model = random_model(cfg)
    tokens, answer = Tokens.from_rows(ROWS), torch.tensor([4, 2])
    if cfg.head == "none":
        with pytest.raises(ValueError, match="no unembedding"):
            logit_lens(model, tokens, answer)
        return
    frame = logit_lens(model, tokens, answer).set_index(["example", "layer", "pos"])
    assert len(frame) == (7 + 5) * (cfg.n_layers + 1)
    final = model(tokens).log_softmax(-1)
    for layer in range(cfg.n_layers + 1):
        stream = model(tokens, stop_at_layer=layer)
        logits = model.to_logits(stream)
        own = logits.log_softmax(-1)
        for row, pos in ((0, 0), (0, 6), (1, 4)):
            found = frame.loc[row, layer, pos]
            p = own[row, pos].exp()
            assert found["top"] == int(p.argmax())
            assert found["top_prob"] == pytest.approx(float(p.max()))
            entropy = -sum(float(x) * np.log2(float(x)) for x in p if x > 0)
            assert found["entropy"] == pytest.approx(entropy, abs=1e-9)
            assert found["prob"] == pytest.approx(float(p[answer[row]]))
            assert found["rank"] == int((logits[row, pos] >= logits[row, pos, answer[row]]).sum())
            last = final[row, pos]
            kl = float((last.exp() * (last - own[row, pos])).sum())
            assert found["kl"] == pytest.approx(kl, abs=1e-9)
    assert (frame.xs(cfg.n_layers, level="layer")["kl"].abs() < 1e-9).all()


def test_the_lens_follows_sets_of_ids_as_metrics_do():
    model = random_model(small_config())
    tokens, answer = Tokens.from_rows(ROWS), torch.tensor([[4, 7, 1], [2, 3, 9]])
    ends = logit_lens(model, tokens, answer, layers=[model.cfg.n_layers])
    ends = ends.groupby("example").last()
    for name, column in (("prob", "prob"), ("rank", "rank")):
        bound = getattr(metrics, name)(answer).bind(model, tokens, lambda reads: None)
        examples = torch.arange(2)
        values = bound.measure(bound.pick(model(tokens), examples), examples)
        assert np.allclose(ends[column], values.numpy()), name
    logits = model(tokens)[torch.arange(2), torch.tensor([6, 4])].gather(1, answer)
    assert np.allclose(ends["logit"], logits.mean(1).numpy())


# Heads ---------------------------------------------------------------------------------------


def looks_by_hand(pattern, ids, real, causal):
    """Shares per look, by loops over positions."""
    found = {name: [] for name in LOOKS}
    places = [i for i in range(len(ids)) if real[i]]
    for at, q in enumerate(places):
        if causal and at == 0:
            continue
        keys = places[: at + 1] if causal else places
        look = {
            "previous_token": [places[at - 1]] if at else [],
            "bos": [places[0]],
            "self": [q],
            "duplicate_token": [k for k in keys if k != q and ids[k] == ids[q]],
            "induction": [
                k for k in keys
                if places.index(k) and places[places.index(k) - 1] != q
                and ids[places[places.index(k) - 1]] == ids[q]
            ],
        }  # fmt: skip
        for name, chosen in look.items():
            if chosen:
                found[name].append(float(sum(pattern[q, k] for k in chosen)))
    return found


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_looks_are_shares_of_attention(causal, side, monkeypatch):
    model = random_model(small_config(causal=causal))
    tokens = Tokens.from_rows(ROWS, side=side)
    monkeypatch.setattr("interp.heads.looks.ELEMENTS", 1)  # row by row
    frame = head_scores(model, tokens).set_index(["layer", "head"])
    _, cache = model.run_with_cache(tokens, "pattern")
    for (layer, head), row in frame.iterrows():
        shares = {name: [] for name in LOOKS}
        for i in range(2):
            pattern = cache["pattern", layer][i, head]
            found = looks_by_hand(pattern, tokens.ids[i].tolist(), tokens.real[i], causal)
            for name, values in found.items():
                shares[name] += values
        for name in LOOKS:
            assert row[name] == pytest.approx(np.mean(shares[name]), abs=1e-6), name


def test_entropy_copying_and_norms_equal_the_plain_route():
    model = random_model(small_config())
    frame = head_scores(model, ROWS[:1]).set_index(["layer", "head"])
    _, cache = model.run_with_cache(ROWS[:1], "pattern")
    folded = model.folded()
    for (layer, head), row in frame.iterrows():
        pattern = cache["pattern", layer][0, head, 1:].numpy()
        entropy = [-sum(p * np.log2(p) for p in line if p > 0) for line in pattern]
        assert row["entropy"] == pytest.approx(np.mean(entropy), abs=1e-6)
        whole = folded.W_E @ folded.OV[layer, head].AB @ folded.W_U
        values = torch.linalg.eigvals(whole)
        copying = float(values.real.sum() / values.abs().sum())
        assert row["copying"] == pytest.approx(copying, abs=1e-6)
        assert row["ov_norm"] == pytest.approx(float(model.OV[layer, head].AB.norm()))
        assert row["qk_norm"] == pytest.approx(float(model.QK[layer, head].AB.norm()))


def test_composition_equals_the_products_multiplied_out():
    model = random_model(small_config())
    frame = composition(model)
    for row in frame.itertuples():
        writer = model.OV[row.from_layer, row.from_head].AB
        reader = {"q": model.QK, "k": model.QK.T, "v": model.OV}[row.kind]
        reader = reader[row.to_layer, row.to_head].AB
        value = (writer @ reader).norm() / writer.norm() / reader.norm()
        assert row.value == pytest.approx(float(value), rel=1e-9)
        assert row.from_layer < row.to_layer
    cfg = model.cfg
    pairs = cfg.n_layers * (cfg.n_layers - 1) // 2 * cfg.n_heads**2
    assert frame.groupby("kind").size().tolist() == [pairs] * 3
    assert composition(random_model(small_config(n_layers=1))).empty


def test_the_baseline_of_composition_is_what_random_directions_give():
    generator = torch.Generator().manual_seed(0)
    d, values = 24, []
    A, B = (torch.randn(d, 4, generator=generator) @ torch.randn(4, d, generator=generator)
            for _ in range(2))  # fmt: skip
    for _ in range(400):
        turn, _ = torch.linalg.qr(torch.randn(d, d, generator=generator))
        values.append(float((A @ turn @ B).norm() / A.norm() / B.norm()) ** 2)
    assert np.mean(values) ** 0.5 == pytest.approx(d**-0.5, rel=0.03)


def test_random_repeats_are_repeated_and_seeded():
    model = random_model(small_config())
    tokens = random_repeats(model, 9, 50, seed=1)
    width = tokens.shape[1]
    assert width == model.cfg.n_ctx // 2 * 2  # as long as the context allows
    spans = []
    for row in tokens.ids.tolist():
        span = next(n for n in range(width // 2, 0, -1) if row[-n:] == row[-2 * n : -n])
        spans.append(span)
        assert len(set(row)) == width - span  # nothing else stands twice
    assert set(spans) == set(range((width // 2 + 1) // 2, width // 2 + 1))
    assert torch.equal(tokens.ids, random_repeats(model, 9, 50, seed=1).ids)
    assert not torch.equal(tokens.ids, random_repeats(model, 9, 50, seed=2).ids)


def test_tokens_that_show_nothing_are_refused():
    with pytest.raises(ValueError, match="duplicate_token, induction"):
        head_scores(random_model(small_config()), [[1, 2, 3]])


def test_an_encoder_without_words_has_no_copying():
    frame = head_scores(random_model(small_config(causal=False, head="none")), ROWS)
    assert frame["copying"].isna().all()
    assert interp.head_scores is head_scores
