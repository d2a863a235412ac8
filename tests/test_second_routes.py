"""The same number by two ways: what a sweep says must follow from other runs too."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp import edits, metrics
from interp.core.tokens import Tokens
from interp.sweeps.rerun import plan

from .strategies import configs, random_model, small_config

CLEAN = torch.tensor([[1, 2, 3, 4, 5, 6], [6, 7, 8, 9, 10, 1]])
CORRUPTED = torch.tensor([[1, 2, 9, 4, 5, 6], [6, 7, 8, 3, 10, 1]])
# Fused kernels round otherwise than the same arithmetic step by step, with something to look at.
PLAIN = {
    *("hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out"),
    *("hook_mlp_out", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z"),
    *("mlp.hook_pre", "mlp.hook_post"),
}


ANSWER, WRONG = torch.tensor([3, 4]), torch.tensor([5, 6])
ROW = torch.arange(2)


def metric_for(cfg):
    if cfg.head == "unembed":
        return metrics.log_prob(ANSWER)
    return metrics.cosine(torch.ones(cfg.d_model))


def by_hand(model, ids):
    """What `metric_for` measures, of a plain run."""
    if model.cfg.head == "unembed":
        return model(ids)[:, -1].log_softmax(-1)[ROW, ANSWER]
    resid = model(ids, stop_at_layer=model.cfg.n_layers)[:, -1]
    return resid.sum(-1) / (resid.norm(dim=-1) * resid.shape[-1] ** 0.5)


def logit_diff_by_hand(model, ids):
    logits = model(ids)[:, -1]
    return logits[ROW, ANSWER] - logits[ROW, WRONG]


@settings(max_examples=30, deadline=None)
@given(cfg=configs(), data=st.data())
def test_patching_a_run_into_itself_changes_nothing(cfg, data):
    """With the detection of no-ops off, so that every row really runs; naive: bit for bit, where
    looking at the site does not take another path through the arithmetic."""
    model = random_model(cfg)
    tokens = Tokens.of(CLEAN)
    names = data.draw(st.lists(st.sampled_from(model.sites.names), min_size=1, max_size=4))
    late = ("ln_final", "hook_logits")
    # what lies behind the residual stream, which is read where there are no plain logits
    unseen = () if cfg.head == "unembed" else late
    names = [n for n in names if not n.startswith(unseen)] or ["hook_embed"]
    sites = [model.sites[name] for name in names]
    frame = pd.DataFrame([{"site": s.local_name, "layer": s.layer} for s in sites])
    options = {"edit": edits.patch(tokens), "metric": metric_for(cfg), "reduce": "none",
               "allow_noop": True, "progress": False}  # fmt: skip
    naive = interp.sweep(model, tokens, frame, engine="naive", **options)
    if all(site.local_name in PLAIN for site in sites):
        assert naive["value"].equals(naive["baseline"])
    with pytest.MonkeyPatch.context() as patched:
        changes = plan._changes
        patched.setattr(plan, "_changes", lambda *a: torch.ones_like(changes(*a)))
        run = interp.sweep(model, tokens, frame, engine="rerun", **options)
    assert run.attrs["forward_equivalents"] > 1
    baseline = run["baseline"].to_numpy().reshape(-1, 2)  # per node and example
    assert np.allclose(baseline, by_hand(model, CLEAN), rtol=0, atol=1e-9)
    scale = max(1.0, run["baseline"].abs().max())
    assert run["effect"].abs().max() <= 1e-10 * scale


@settings(max_examples=30, deadline=None)
@given(cfg=configs(), data=st.data())
def test_patching_a_whole_stream_gives_the_other_run(cfg, data):
    """A cut through the model: whatever lies behind it sees the clean run alone."""
    model = random_model(cfg)
    layer = data.draw(st.integers(0, cfg.n_layers - 1))
    site = data.draw(st.sampled_from(["hook_resid_pre", "hook_resid_post"]))
    frame = pd.DataFrame({"site": [site], "layer": [layer]})
    clean, metric = Tokens.of(CLEAN), metric_for(cfg)
    for engine in ("rerun", "naive"):
        run = interp.sweep(model, CORRUPTED, frame, edit=edits.patch(clean), metric=metric,
                           reduce="none", engine=engine, progress=False)  # fmt: skip
        assert np.allclose(run["value"], by_hand(model, CLEAN), rtol=0, atol=1e-9)
        assert np.allclose(run["baseline"], by_hand(model, CORRUPTED), rtol=0, atol=1e-9)


def test_patching_every_writer_gives_the_other_run():
    """All attention and MLP outputs as one node: the last token, which is the same in both runs,
    hears of the others through them alone."""
    model = random_model(small_config())
    parts = [{"row": 0, "site": site, "layer": layer}
             for layer in range(3) for site in ("hook_attn_out", "hook_mlp_out")]  # fmt: skip
    metric = metrics.logit_diff(ANSWER, WRONG)
    options = {"edit": edits.patch(Tokens.of(CLEAN)), "metric": metric, "reduce": "none",
               "progress": False}  # fmt: skip
    whole = interp.sweep(model, CORRUPTED, parts, **options)
    assert np.allclose(whole["value"][:2], logit_diff_by_hand(model, CLEAN), rtol=0, atol=1e-10)
    less = interp.sweep(model, CORRUPTED, parts[2:], **options)  # a hole in the cut shows
    assert not np.allclose(less["value"][:2], logit_diff_by_hand(model, CLEAN), atol=1e-3)


def test_parts_sum_to_the_logit():
    """Through a linear end, removing every writer's share of a logit difference adds up to it."""
    model = random_model(small_config(final_norm=False))
    metric = metrics.logit_diff(ANSWER, WRONG)
    _, cache = model.run_with_cache(CLEAN)
    direction = model.W_U[:, ANSWER] - model.W_U[:, WRONG]
    writers = ["hook_embed", "hook_pos_embed"]
    writers += [f"blocks.{i}.hook_{part}_out" for i in range(3) for part in ("attn", "mlp")]
    shares = sum((cache[name][:, -1] * direction.T).sum(-1) for name in writers)
    bias = getattr(model.unembed, "bias", None)
    extra = 0 if bias is None else bias[ANSWER] - bias[WRONG]
    assert np.allclose(shares + extra, logit_diff_by_hand(model, CLEAN), atol=1e-10)
    # The last MLP writes to the output alone: removing it takes exactly its share.
    frame = pd.DataFrame({"site": ["hook_mlp_out"], "layer": [2]})
    run = interp.sweep(model, CLEAN, frame, edit=edits.zero(), metric=metric, reduce="none",
                       progress=False)  # fmt: skip
    share = (cache["mlp_out", 2][:, -1] * direction.T).sum(-1)
    assert np.allclose(run["effect"], -share, atol=1e-10)
