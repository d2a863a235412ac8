"""Heads by a second route: rotated queries are rotated weights, what is written is attribution."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp import heads
from interp.core.tokens import Tokens
from interp.methods.attribution import logit_attribution
from interp.methods.heads import roles
from interp.methods.heads.circuits import rotation_z
from interp.methods.heads.outputs import direct_writes, unreadable
from tests.strategies import configs, random_model, small_config

ROWS = [[1, 5, 2, 7, 5, 2, 9], [3, 4, 3, 4, 8]]


@settings(max_examples=15, deadline=None)
@given(cfg=configs(), side=st.sampled_from(["left", "right"]), seed=st.integers(0, 99))
def test_a_rotated_head_is_one_whose_weights_are_rotated(cfg, side, seed):
    """Of every architecture; one layer at a time, since the layers before it are as they were."""
    model = random_model(cfg, seed)
    tokens = model.accept(Tokens.from_rows(ROWS, side=side))
    weights = torch.rand(2, *tokens.shape, tokens.shape[1], generator=torch.manual_seed(seed))
    weights *= tokens.real[:, :, None] & tokens.real[:, None, :]
    weights[:, :, 3] = 0  # not every query is asked
    found, null = roles.rotated_shares(model, tokens, weights, draws=2, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in range(cfg.n_layers):
        turns = roles.rotations(2, cfg.d_head, generator)
        for turn, shares in [(torch.eye(cfg.d_head).double(), found[:, layer]),
                             *zip(turns, null[:, :, layer].unbind(1), strict=True)]:  # fmt: skip
            turned = _turned(model, layer, turn)
            pattern = turned.run_with_cache(tokens, "attn.pattern")[1]["attn.pattern", layer]
            expected = torch.einsum("bhqk,sbqk->sh", pattern, weights.to(pattern))
            torch.testing.assert_close(shares, expected, atol=1e-5, rtol=1e-4)


def _turned(model, layer, turn):
    other = copy.deepcopy(model)
    attn = other.blocks[layer].attn
    rows = attn.rows(0, 1)
    for name, axis in (("qkv_weight", 0), ("qkv_bias", 0)):
        value = getattr(attn, name)
        if value is not None:
            own = value[rows].unflatten(axis, (-1, attn.d_head))
            value[rows] = torch.einsum("hd...,de->he...", own, turn).flatten(0, 1)
    return other


def test_a_trace_over_random_rotations_has_the_mean_and_variance_it_is_said_to_have():
    generator = torch.Generator().manual_seed(0)
    for size in (2, 8):
        M = torch.randn(size, size, generator=generator, dtype=torch.float64) + torch.eye(size)
        turns = roles.rotations(20_000, size, generator)
        eye = torch.eye(size).double()
        assert torch.allclose(turns @ turns.mT, eye.expand_as(turns), atol=1e-9)
        z = rotation_z(M.expand_as(turns), turns, torch.float64)
        assert float(z.mean()) == pytest.approx(0, abs=0.03)
        assert float(z.var()) == pytest.approx(1, abs=0.04)
        share = float((z > 1.645).double().mean())
        assert share == pytest.approx(0.05, abs=0.008)


@settings(max_examples=20, deadline=None)
@given(cfg=configs())
def test_what_heads_write_is_their_part_of_the_logit(cfg):
    model = random_model(cfg)
    tokens, answer, wrong = model.accept(Tokens.from_rows(ROWS)), [4, 2], [1, 6]
    end = tokens.real.sum(1) - 1
    direction = torch.zeros(*tokens.shape, cfg.d_model, dtype=torch.float64)
    if cfg.head != "none":
        direction[torch.arange(2), end] = (model.W_U[:, answer] - model.W_U[:, wrong]).T
    if unreadable(model) is not None:
        with pytest.raises(ValueError, match=r"head=|norm_position="):
            direct_writes(model, tokens, direction)
        return
    found = direct_writes(model, tokens, direction)
    if cfg.norm == "none" or cfg.norm_position == "pre":
        frame = logit_attribution(model, tokens, torch.tensor(answer), torch.tensor(wrong), pos=end)
        own = frame[(frame["component"] == "attn") & (frame["head"] >= 0)]
        expected = own.groupby(["layer", "head"])["value"].sum()
        np.testing.assert_allclose(found.value.flatten(), expected, rtol=1e-5, atol=1e-8)
        return
    # An output norm is no obstacle while its scale is held: heads and bias make attn's part.
    frame = logit_attribution(
        model, tokens, torch.tensor(answer), torch.tensor(wrong), pos=end, by="component"
    )
    whole = frame[frame["component"] == "attn"].groupby("layer")["value"].sum()
    if not cfg.attn_out_bias and not (cfg.norm == "layernorm" and cfg.norm_bias):
        np.testing.assert_allclose(found.value.sum(1), whole, rtol=1e-5, atol=1e-8)


def test_promoted_tokens_are_those_of_the_outputs_multiplied_out(monkeypatch):
    monkeypatch.setattr("interp.heads.outputs.WORDS", 4)  # the vocabulary in parts
    model = random_model(small_config(norm="none", final_norm=False))
    tokens = model.accept(ROWS[:1])
    frame = heads.promoted_tokens(model, tokens, k=2, sources=2)
    _, cache = model.run_with_cache(tokens, ["hook_result", "hook_v", "hook_pattern"])
    for (layer, head), own in frame.groupby(["layer", "head"]):
        mean = cache["hook_result", layer][0, :, head].mean(0) @ model.W_U
        lines = own[(own["source"] == -1)].set_index(["kind", "rank"])
        order = mean.argsort(descending=True).tolist()
        assert lines["token"].tolist() == [*order[:2], *order[::-1][:2]]
        assert lines.loc[("promoted", 1), "logit"] == pytest.approx(
            float(mean.max() - mean.mean()), rel=1e-5
        )
        assert lines.loc[("suppressed", 1), "logit"] == pytest.approx(
            float(mean.min() - mean.mean()), rel=1e-5
        )
        group = head // (model.cfg.n_heads // model.cfg.n_kv_heads)
        written = cache["hook_v", layer][0, :, group] @ model.blocks[layer].attn.W_O[head]
        taken = cache["hook_pattern", layer][0, head].sum(0)
        strength: dict[int, float] = {}
        for at, token in enumerate(ROWS[0]):
            by = float(taken[at] * written[at].norm())
            strength[token] = strength.get(token, 0.0) + by
        best = sorted(strength, key=strength.__getitem__, reverse=True)[:2]
        shares = own[own["source"] >= 0].groupby("source", sort=False)["share"].first()
        assert shares.index.tolist() == best
        total = sum(strength.values())
        np.testing.assert_allclose(shares, [strength[one] / total for one in best], rtol=1e-5)


def test_the_control_of_induction_is_as_far_away_and_repeats_nothing():
    model = random_model(small_config())
    rows = torch.tensor([[1, 2, 3, 4, 5, 3, 4, 5], [6, 7, 8, 9, 1, 2, 1, 2]])
    frame = heads.attention_scores(model, Tokens(rows, bos=False)).set_index(["layer", "head"])
    _, cache = model.run_with_cache(rows, "pattern")
    pairs = [(0, q, q - 2) for q in (2, 3, 4)] + [(1, q, q - 1) for q in range(1, 6)]
    again = [(0, q, q - 2) for q in (5, 6, 7)] + [(1, q, q - 1) for q in (6, 7)]
    for (layer, head), row in frame.iterrows():
        pattern = cache["pattern", layer]
        for name, chosen in (("same_distance", pairs), ("induction", again)):
            expected = np.mean([float(pattern[b, head, q, k]) for b, q, k in chosen])
            assert row[name] == pytest.approx(expected, abs=1e-6), name
        local = [float(pattern[b, head, q, max(0, q - 4) : q].sum())
                 for b in range(2) for q in range(1, 8)]  # fmt: skip
        assert row["local"] == pytest.approx(np.mean(local), abs=1e-6)
        by_offset = [float(pattern[:, head].diagonal(-d, dim1=-2, dim2=-1)[:, d == 0 :].mean())
                     for d in range(5)]  # fmt: skip
        assert row["offset"] == int(np.argmax(by_offset))
        assert row["offset_share"] == pytest.approx(max(by_offset), abs=1e-6)


def test_one_row_has_no_error_and_a_text_without_repetition_no_induction():
    model = random_model(small_config())
    frame = heads.attention_scores(model, [[1, 2, 3, 4]])
    assert (
        frame[["induction", "duplicate_token", "same_distance", "induction_stderr"]]
        .isna()
        .all(axis=None)
    )
    assert frame[["previous_token", "bos", "offset_share", "entropy"]].notna().all(axis=None)


def test_the_error_of_induction_is_that_of_a_mean_over_rows():
    model = random_model(small_config())
    tokens = heads.random_repeats(model, 6, 4, seed=2)
    whole = heads.attention_scores(model, tokens)
    assert (whole["induction_stderr"] > 0).all()
    same = Tokens(tokens.ids[:1].repeat(6, 1))  # every row alike: no spread
    assert heads.attention_scores(model, same)["induction_stderr"].max() < 1e-7


def test_models_that_see_both_sides_have_no_induction_and_no_movers():
    model = random_model(small_config(causal=False, head="none"))
    frame = heads.head_roles(model, draws=3)
    assert not set(frame["role"]) & set(roles.CAUSAL_ONLY)
    assert {"previous token", "duplicate token"} <= set(frame["role"])


def test_bad_arguments_and_edited_patterns_are_errors():
    model = random_model(small_config())
    with pytest.raises(ValueError, match="draws=0"):
        heads.head_roles(model, draws=0)
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        heads.head_roles(model, alpha=1.5)

    def even(pattern, hook):
        return torch.full_like(pattern, 1 / pattern.shape[-1])

    with pytest.raises(ValueError, match="does not follow from its queries and keys"):
        heads.head_roles(model.with_hooks([("pattern", even)]), draws=2)
