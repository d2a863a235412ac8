"""Planted models in another basis, and controls in which there is nothing to find."""

from __future__ import annotations

import pytest
import torch

import interp
from interp.zoo import planted
from tests.strategies import random_model, small_config
from tests.truth.by_hand import MATRICES, SEEDS, TASKS, N, accuracy, build, logit_diff

pytestmark = pytest.mark.usefixtures("one_thread")


# 8: another basis --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(planted.BUILDERS))
def test_rotation_changes_the_basis_and_nothing_else(name):
    known = build(name)
    turned = planted.rotated(known, seed=3)
    tokens = (
        known.model.to_tokens("king queen cat") if name == "vocabulary" else known.prompts(32).clean
    )
    (logits, cache), (logits2, cache2) = (
        one.model.run_with_cache(tokens, lambda name: True) for one in (known, turned)
    )
    assert (logits - logits2).abs().max() <= 1e-9
    basis_free = ("hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k", "hook_attn_scores",
                  "hook_pattern", "hook_z", "hook_pre", "hook_post", "hook_logits")  # fmt: skip
    for site in known.model.sites.names:
        away = (cache[site] - cache2[site]).abs().max()
        if site.endswith(basis_free):
            assert away <= 1e-9, site
        elif cache[site].abs().max() > 0:
            assert away > 0.1, site
            assert torch.allclose(cache[site].norm(dim=-1), cache2[site].norm(dim=-1), atol=1e-9)
    last = known.model.cfg.n_layers - 1
    for what, rows in known.truth.directions.items():
        before, after = (
            c["resid_post", last] @ one.truth.directions[what].T
            for c, one in ((cache, known), (cache2, turned))
        )
        assert torch.allclose(before, after, atol=1e-9)
        assert (rows - turned.truth.directions[what]).abs().max() > 0.1
    assert turned.truth.heads == known.truth.heads


def test_rotation_leaves_analogies_and_the_original():
    known = planted.vocabulary()
    before = known.model.W_E.clone()
    turned = planted.rotated(known)
    assert torch.equal(known.model.W_E, before)
    assert (
        interp.embedding(turned.model)
        .evaluate(known.analogies, ["3cosadd"])
        .query("exclude_inputs")
        .correct.all()
    )


def test_rotation_under_rmsnorm_without_gain():
    cfg = small_config(norm="rmsnorm", norm_affine=False, norm_position="both", d_mlp=24)
    known = planted.Planted("rms", random_model(cfg), planted.Truth())
    ids = torch.arange(12).view(2, 6)
    away = known.model(ids) - planted.rotated(known).model(ids)
    assert away.abs().max() < 1e-9


@pytest.mark.parametrize("norm", [{"norm": "layernorm", "norm_affine": False}, {"norm": "rmsnorm"}])
def test_rotation_refuses_norms_that_know_the_axes(norm):
    known = planted.Planted("normed", random_model(small_config(**norm)), planted.Truth())
    with pytest.raises(ValueError, match=r"norm=.*expected norm='none'"):
        planted.rotated(known)


# 9: controls -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", TASKS)
def test_controls_fail_the_task(name, seed):
    known = build(name)
    prompts = known.prompts(N)
    for make in (planted.random_control, planted.permuted_control):
        control = make(known, seed)
        assert control.truth.heads == () and control.truth.neurons == ()
        assert accuracy(control.model, prompts.clean, prompts.answer) < 0.4
        diff = logit_diff(control.model, prompts.clean, prompts)
        assert abs(diff) < 0.25 * logit_diff(known.model, prompts.clean, prompts)


@pytest.mark.parametrize("name", list(planted.BUILDERS))
def test_random_controls_have_the_same_shapes_and_norms(name):
    known = build(name)
    control = planted.random_control(known, seed=1)
    for (key, one), two in zip(
        known.model.state_dict().items(), control.model.state_dict().values(), strict=True
    ):
        assert one.shape == two.shape
        assert one.norm() == pytest.approx(float(two.norm()), rel=1e-9), key
        assert one.norm() == 0 or not torch.allclose(one, two)
    for matrix in MATRICES:
        norms = [getattr(m, matrix).flatten(2).norm(dim=-1) for m in (known.model, control.model)]
        assert torch.allclose(*norms)


@pytest.mark.parametrize("name", TASKS)
def test_permuted_controls_hold_the_same_matrices_elsewhere(name):
    known = build(name)
    control = planted.permuted_control(known, seed=1)
    W_O, moved = known.model.W_O, control.model.W_O
    for layer in range(known.model.cfg.n_layers):
        same = (W_O[layer, :, None] == moved[layer, None]).all(-1).all(-1)
        assert same.any(0).all() and same.any(1).all()
        for head in range(known.model.cfg.n_heads):
            assert not same[head, head]
            if (layer, head) in known.truth.heads:
                assert not any(same[h, head] for at, h in known.truth.heads if at == layer)
    assert torch.equal(known.model.W_Q, control.model.W_Q)


def test_random_words_hold_no_analogy():
    known = planted.vocabulary()
    table = interp.embedding(planted.random_control(known).model)
    assert table.evaluate(known.analogies, exclude_inputs=True).correct.mean() < 0.05


def test_controls_say_what_they_cannot_do():
    with pytest.raises(ValueError, match="permuting needs"):
        planted.permuted_control(planted.vocabulary())
    with pytest.raises(ValueError, match="permuting needs"):
        planted.permuted_control(planted.backup_movers(n_distractors=1))
    with pytest.raises(ValueError, match="no planted analogies"):
        planted.shuffled_control(planted.induction())
