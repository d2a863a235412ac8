"""A site means here what it means in TransformerLens: values against `TransformerBridge`.

The bridge is built around the very Hugging Face model, so both hold the same weights. It has every
one of our sites, the per-head expansions behind two flags; the other names in its cache (`hook_in`,
`hook_out`, `q.hook_out`, …) are second names of the same tensors. Two differences are stated below.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from tests.parity.families import build
from tests.parity.inputs import batch
from tests.parity.reference import relative_error

TOLERANCE = 1e-5  # the bridge keeps its library's float32 islands
RENAMED = {"hook_logits": "unembed.hook_out"}


def bridged(pair, name: str):
    """The bridge takes the module apart, so it gets one of its own."""
    model = build(pair(name).family)
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    bridge.set_use_attn_result(True)
    bridge.set_use_split_qkv_input(True)
    return bridge


def shared_part(site: str, value: Tensor) -> Tensor:
    """Scores to the right of the diagonal are masked there and finite here."""
    return value.tril() if site.endswith("hook_attn_scores") else value


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_every_site_agrees_with_the_bridge(pair, name: str) -> None:
    ids, ours = batch().ids, pair(name).ours
    _, cache = ours.run_with_cache(ids, names_filter=ours.sites.names)
    with torch.no_grad():
        _, theirs = bridged(pair, name).run_with_cache(ids)
    errors = {
        site: relative_error(
            shared_part(site, value), shared_part(site, theirs[RENAMED.get(site, site)])
        )
        for site, value in cache.items()
    }
    assert set(errors) == set(ours.sites.names)
    assert {site: error for site, error in errors.items() if not error <= TOLERANCE} == {}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_edit_of_z_does_the_same_in_the_bridge(pair, name: str) -> None:
    ids, ours = batch().ids, pair(name).ours

    def silence(z: Tensor, hook: object) -> Tensor:
        z = z.clone()
        z[:, :, 1] = 0
        return z

    hooks = [("blocks.1.attn.hook_z", silence)]
    with torch.no_grad():
        reference = bridged(pair, name).run_with_hooks(ids, fwd_hooks=hooks)
    edited = ours.run_with_hooks(ids, fwd_hooks=hooks)
    assert relative_error(edited, reference) <= TOLERANCE
    assert relative_error(edited, ours(ids)) > 1e-3
