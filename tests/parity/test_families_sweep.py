"""On every family: sites keep their identities, and the rerun gives the naive engine's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import interp
from interp import edits, metrics
from tests.parity.families import FAMILIES
from tests.parity.inputs import batch

WIDTH = 7


@pytest.mark.parametrize("site", ["attn.hook_z", "hook_resid_pre"])
@pytest.mark.parametrize("name", FAMILIES)
def test_rerun_equals_naive(pair, name: str, site: str) -> None:
    model, inputs, other = pair(name).ours, batch("left"), batch("left", seed=1)
    # Rows 1 and 2 begin with pads, whose positions are edited as well.
    tokens, patched = (
        interp.Tokens(b.ids[:, -WIDTH:], mask=b.mask[:, -WIDTH:]) for b in (inputs, other)
    )
    by = ("layer", "head") if site == "attn.hook_z" else ("layer", "pos")
    nodes = interp.nodes(model, site, by=by, tokens=tokens)
    answer = torch.tensor([1, 2, 3])
    metric = (
        metrics.cosine(torch.ones(model.cfg.d_model, dtype=torch.float64), pos=-2)
        if model.cfg.head == "none"
        else metrics.log_prob(answer, pos=-2)
    )
    options = {
        "edit": edits.patch(patched),
        "metric": metric,
        "reduce": "none",
        "allow_noop": True,
        "progress": False,
    }
    naive = interp.sweep(model, tokens, nodes, engine="naive", **options)
    rerun = interp.sweep(model, tokens, nodes, engine="rerun", **options)
    for column in ("value", "baseline", "effect"):
        scale = max(1.0, naive["value"].abs().max())
        assert np.allclose(rerun[column], naive[column], rtol=0, atol=1e-10 * scale)
    assert naive["effect"].abs().max() > 1e-3  # edits land
    assert rerun.attrs["forward_equivalents"] < naive.attrs["forward_equivalents"]


@pytest.mark.parametrize("name", FAMILIES)
def test_identities(pair, name: str) -> None:
    inputs = batch("left")
    frame = pair(name).ours.check_identities(interp.Tokens(inputs.ids, mask=inputs.mask))
    assert frame[~frame["holds"]].empty
