"""The forward pass against the plain numpy route, over random architectures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.core.sites import UnknownSite
from interp.core.tokens import Tokens
from interp.model import Layout, Prefix

from . import plain
from .strategies import configs, random_model, small_config

ROWS = [[3, 1, 4, 1, 5, 9, 2], [2, 7, 1], [8]]


def weights_of(model):
    return {name: p.numpy() for name, p in model.named_parameters()}


def difference(ours, reference):
    return np.abs(ours.numpy() - reference).max() / max(np.abs(reference).max(), 1e-12)


@settings(max_examples=60, deadline=None)
@given(cfg=configs(), side=st.sampled_from(["left", "right"]))
def test_every_architecture_equals_the_plain_route(cfg, side):
    model = random_model(cfg)
    tokens = Tokens.from_rows(ROWS, side=side)
    plain_out = model(tokens)
    out, cache = model.run_with_cache(tokens, [s for s in model.sites.names if "input" not in s])
    assert torch.allclose(out, plain_out, rtol=1e-9, atol=1e-9)
    for i, row in enumerate(ROWS):
        reference = plain.run(cfg, weights_of(model), row)
        real = tokens.real[i]
        assert difference(plain_out[i][real], reference.pop("output")) < 1e-9
        for (site, layer), value in reference.items():
            ours = cache[site, layer][i]
            ours = ours[:, real][:, :, real] if site == "pattern" else ours[real]
            assert difference(ours, value) < 1e-9, (site, layer)


@settings(max_examples=40, deadline=None)
@given(cfg=configs())
def test_identities_hold_on_every_architecture(cfg):
    frame = random_model(cfg).check_identities(Tokens.from_rows(ROWS))
    assert frame["holds"].all(), frame[~frame["holds"]]


@settings(max_examples=40, deadline=None)
@given(cfg=configs())
def test_every_site_is_met_with_the_shape_it_declares(cfg):
    model = random_model(cfg)
    _, cache = model.run_with_cache([[1, 2, 3, 4, 5]], model.sites.names)
    sizes = {"batch": 1, "pos": 5, "q_pos": 5, "k_pos": 5, "one": 1, "d_model": cfg.d_model,
             "head": cfg.n_heads, "kv_head": cfg.n_kv_heads, "d_head": cfg.d_head,
             "d_mlp": cfg.d_mlp, "d_vocab": cfg.d_vocab, "expert": cfg.n_experts}  # fmt: skip
    assert list(cache) == model.sites.names  # forward order, nothing missing
    for site in model.sites:
        assert list(cache[site.name].shape) == [sizes[axis] for axis in site.axes], site


@settings(max_examples=30, deadline=None)
@given(cfg=configs(), side=st.sampled_from(["left", "right"]))
def test_logits_at_some_positions_are_those_of_the_whole_run(cfg, side):
    model = random_model(cfg).requires_grad_(True)
    tokens = Tokens.from_rows(ROWS, side=side)
    asked = tokens.real & (torch.arange(tokens.ids.shape[1]) % 3 != 1)
    weight = torch.arange(asked.sum() * model(tokens).shape[-1]).view(int(asked.sum()), -1).sin()

    def gradients(logits):
        (logits * weight).sum().backward()
        found = [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return found

    few, whole = model.logits_at(tokens, asked), model(tokens)[asked]
    torch.testing.assert_close(few, whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients(few), gradients(whole), rtol=1e-8, atol=1e-9)


def test_logits_at_refuses_what_would_miss_positions():
    model, asked = random_model(small_config()), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="call the model instead"):
        model.with_hooks([("resid_post", lambda x, hook: x)]).logits_at([[1, 2]], asked)


@settings(max_examples=30, deadline=None)
@given(cfg=configs(), at=st.integers(1, 6))
def test_a_prefix_continues_the_run(cfg, at):
    if not cfg.causal:
        return
    model = random_model(cfg)
    ids = torch.tensor([ROWS[0], ROWS[0][::-1]])
    whole, cache = model.run_with_cache(ids)
    keys = [cache["rot_k" if cfg.is_rotary(layer) else "k", layer] for layer in range(cfg.n_layers)]
    if cfg.qk_norm != "none":
        return  # normed keys without rotation are no site; generation covers them
    values = [cache["v", layer] for layer in range(cfg.n_layers)]
    prefix = Prefix([k[:, :at] for k in keys], [v[:, :at] for v in values])
    rest = model(ids[:, at:], prefix=prefix)
    assert torch.allclose(rest, whole[:, at:], rtol=1e-9, atol=1e-9)


def test_attention_scores_are_finite_where_the_tap_sees_them():
    model = random_model(small_config())
    _, cache = model.run_with_cache(Tokens.from_rows(ROWS, side="left"))
    assert all(cache["attn_scores", layer].isfinite().all() for layer in range(3))


def test_split_inputs_read_as_views_and_edited_per_head():
    model = random_model(small_config(n_kv_heads=2, positions="rotary", norm="rmsnorm"))
    ids = torch.tensor([[1, 2, 3, 4]])
    base, cache = model.run_with_cache(ids, ["q_input", "resid_pre", "k_input"])
    read = cache["q_input", 1]
    assert read.untyped_storage().data_ptr() == cache["resid_pre", 1].untyped_storage().data_ptr()
    assert list(cache["k_input", 1].shape) == [1, 4, 2, 32]

    same = model.run_with_hooks(ids, [(("v_input", 1), lambda x, hook: x)])
    assert torch.allclose(same, base, atol=1e-12)

    def zero_head(x, hook):
        x[:, :, 1] = 0

    edited = model.run_with_hooks(ids, [(("v_input", 1), zero_head)])
    # By hand: key-value head 1 serves query heads 2 and 3, and reads the norm of zero.
    W_V, b_V = model.blocks[1].attn.W_V, model.blocks[1].attn.b_V

    def by_hand(v, hook):
        v[:, :, 1] = model.blocks[1].ln1(torch.zeros(32, dtype=v.dtype)) @ W_V[1] + b_V[1]

    assert torch.allclose(edited, model.run_with_hooks(ids, [(("v", 1), by_hand)]), atol=1e-12)
    assert not torch.allclose(edited, base, atol=1e-3)


def test_editing_one_heads_result_equals_editing_its_z():
    model = random_model(small_config())

    def zero(x, hook):
        x[:, :, 2] = 0

    by_result = model.run_with_hooks([[1, 2, 3]], [(("result", 1), zero)])
    by_z = model.run_with_hooks([[1, 2, 3]], [(("z", 1), zero)])
    assert torch.allclose(by_result, by_z, atol=1e-12)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm", "rmsnorm_plus1"])
@pytest.mark.parametrize("parallel", [False, True])
def test_folding_keeps_predictions_and_leaves_the_original(norm, parallel):
    cfg = small_config(norm=norm, parallel=parallel, parallel_shared_norm=parallel, tied=True,
                       qkv_bias=False, mlp_bias=False)  # fmt: skip
    model = random_model(cfg)
    before = {name: p.clone() for name, p in model.named_parameters()}
    ids = torch.tensor([[1, 5, 9, 3]])
    folded = model.folded()
    expected = model(ids).log_softmax(-1)
    assert torch.allclose(folded(ids).log_softmax(-1), expected, atol=1e-10)
    assert torch.allclose(folded.folded()(ids), folded(ids), atol=1e-10)  # twice is once
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert folded.W_U.mean(-1).abs().max() < 1e-12
    if norm == "layernorm":
        _, cache = folded.run_with_cache(ids, "resid_post")
        assert cache.stack("resid_post").mean(-1).abs().max() < 1e-10


def test_folding_refuses_post_norm():
    with pytest.raises(ValueError, match="norm_position='post'"):
        random_model(small_config(norm_position="post")).folded()


def test_stop_at_layer_returns_what_that_layer_would_read():
    model = random_model(small_config())
    _, cache = model.run_with_cache([[1, 2, 3]], ["resid_pre", "resid_post"])
    for stop, site in ((0, ("resid_pre", 0)), (1, ("resid_pre", 1)), (-1, ("resid_pre", 2)),
                       (3, ("resid_post", 2))):  # fmt: skip
        assert torch.equal(model([[1, 2, 3]], stop_at_layer=stop), cache[site])
    with pytest.raises(ValueError, match="stop_at_layer=4: expected 0 to 3"):
        model([[1]], stop_at_layer=4)
    with pytest.raises(UnknownSite):  # a site behind the stop is not reached
        model.run_with_cache([[1]], ("z", 2), stop_at_layer=1)


def test_vectors_stand_in_for_ids():
    model = random_model(small_config())
    ids = torch.tensor([[4, 5, 6]])
    assert torch.equal(model(model.W_E[ids]), model(ids))
    with pytest.raises(ValueError, match="d_model=32"):
        model(torch.zeros(1, 2, 31))


COMPILE = """
import torch
from interp.model import HookedTransformer
from tests.strategies import small_config

cfg = small_config(n_kv_heads=2, positions="rotary", mlp_gated=True, sliding_window=(2, None, 2))
model = HookedTransformer(cfg, dtype=torch.float64)
ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
compiled = torch.compile(model, fullgraph=True)
assert torch.allclose(compiled(ids), model(ids), atol=1e-10)
"""


def test_compiles_without_a_graph_break():
    """In a process of its own: the shape checks of the test run are not traceable."""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_parameters_are_counted_without_allocating():
    huge = small_config(n_layers=126, d_model=16384, n_heads=128, n_kv_heads=8, d_mlp=53248,
                        d_vocab=128256, n_ctx=131072, positions="rotary", norm="rmsnorm",
                        mlp_gated=True, qkv_bias=False, attn_out_bias=False,
                        mlp_bias=False)  # fmt: skip
    assert interp.num_params(huge) == 405_853_388_800  # Llama 3.1 405B, as published
    model = random_model(small_config(n_kv_heads=2, mlp_gated=True))
    parts = model.num_params(by="component")
    assert parts.sum() == model.num_params() == sum(p.numel() for p in model.parameters())
    assert parts["W_Q"] == 3 * (32 * 32 + 32) and parts["W_K"] == 3 * (32 * 16 + 16)
    assert parts["W_gate"] == parts["W_in"] == 3 * (32 * 64 + 64)
    assert model.num_params(by="layer").sum() == model.num_params()


def test_weight_views_are_views():
    model = random_model(small_config(n_kv_heads=2, mlp_gated=True))
    attn = model.blocks[1].attn
    assert attn.W_Q.shape == (4, 32, 8) and attn.W_K.shape == (2, 32, 8)
    assert attn.W_O.shape == (4, 8, 32) and model.W_O.shape == (3, 4, 8, 32)
    assert model.blocks[0].mlp.W_gate.shape == (32, 64) and model.W_out.shape == (3, 64, 32)
    stored = attn.qkv_weight.untyped_storage().data_ptr()
    assert attn.W_V.untyped_storage().data_ptr() == stored
    _, cache = model.run_with_cache([[1, 2]], ["q", "result", "z", "ln1.hook_normalized"])
    read = model.blocks[1].ln1.w * cache["ln1.hook_normalized", 1] + model.blocks[1].ln1.b
    q = torch.einsum("bpm,hmd->bphd", read, attn.W_Q) + attn.b_Q
    assert torch.allclose(q, cache["q", 1])


def test_factored_products(unchecked):
    model = random_model(small_config(n_kv_heads=2))
    QK = model.QK
    assert QK.shape == (3, 4, 32, 32)
    full = model.blocks[1].attn.W_Q[3] @ model.blocks[1].attn.W_K[1].T  # head 3 reads kv head 1
    assert torch.allclose(QK[1, 3].AB, full)
    U, S, Vh = QK.svd()
    assert torch.allclose(U * S[..., None, :] @ Vh, QK.AB)
    assert torch.allclose(QK.norm(), torch.linalg.matrix_norm(QK.AB))
    direct = torch.linalg.eigvals(model.OV[0, 0].AB).abs().sort(descending=True).values
    ours = model.OV[0, 0].eigenvalues.abs().sort(descending=True).values
    assert torch.allclose(ours, direct[:8])
    assert torch.allclose((model.OV @ model.OV).AB, model.OV.AB @ model.OV.AB)
    assert torch.allclose((model.W_E @ model.OV[0, 0] @ model.W_U).AB,
                          model.W_E @ model.OV[0, 0].AB @ model.W_U)  # fmt: skip
    assert torch.allclose(model.OV.T.AB, model.OV.AB.mT)
    with pytest.raises(ValueError, match="inner sizes"):
        interp.FactoredMatrix(torch.zeros(3, 4), torch.zeros(5, 3))


def test_pool_ignores_padding(unchecked):
    model = random_model(small_config(causal=False))
    batch = model.pool(Tokens.from_rows(ROWS))
    for i, row in enumerate(ROWS):
        assert torch.allclose(model.pool([row])[0], batch[i])
    resid = model([ROWS[1]], stop_at_layer=3)
    left = Tokens.from_rows(ROWS, side="left")
    assert torch.allclose(model.pool(left, how="first")[1], resid[0, 0])
    assert torch.allclose(model.pool(left, how="last")[1], resid[0, -1])
    with pytest.raises(ValueError, match="'mean', 'first' or 'last'"):
        model.pool([[1]], how="max")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[1, 29]], "token id 29 is outside the vocabulary: expected 0 to 28"),
        ([[-1]], "token id -1"),
        ([[]], "empty prompt"),
        ([], "empty list"),
        (torch.zeros(1, 0, dtype=torch.long), "empty prompt"),
        ([list(range(25))], "n_ctx=24"),
        (torch.zeros(3, 3), r"\[batch pos d_model\]"),
        ("some text", "no tokenizer"),
    ],
)
def test_bad_input_is_named(unchecked, tokens, message):
    with pytest.raises(ValueError, match=message):
        random_model(small_config())(tokens)


def test_pad_queries_attend_to_themselves():
    model = random_model(small_config())
    tokens = Tokens.from_rows([[1, 2, 3], [4]], side="left")
    _, cache = model.run_with_cache(tokens, "pattern")
    assert torch.equal(cache["pattern", 0][1, :, :2, :2].diagonal(dim1=-2, dim2=-1),
                       torch.ones(4, 2, dtype=torch.float64))  # fmt: skip


def test_layout_is_built_once_per_window():
    cfg = small_config(sliding_window=(2, None, 2))
    layout = Layout(cfg, Tokens.of([[1, 2, 3]]), None, like=torch.zeros(1))
    assert layout.mask(2) is layout.mask(2)
    assert layout.mask(2)[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
