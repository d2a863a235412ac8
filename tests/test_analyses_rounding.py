"""Effects that are all rounding are not ranked, named or correlated, in any analysis of a task;
what lies above it still is. And maps: one scale, and grey where the control is."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from analyses import activation_patching, attention_heads, head_ablation, logit_lens, neurons
from interp.methods.baseline import measure_baseline
from interp.methods.neurons import rank_neurons
from interp.methods.trace_averages import averaged
from interp.report import Report, figures
from tests.one_class import NO, YES, one_class_model, pairs_of_one_class

PART = re.compile(r"L0 [HN]\d")


def faint(strength: float, dtype: torch.dtype = torch.float32):
    """A model that is told the class by its position embedding (a stand-in for anything that makes
    it able), and whose heads change the answer by about `strength` logits."""
    model = one_class_model(d_mlp=4, mlp_bias=True)
    block = model.blocks[0]
    with torch.no_grad():
        block.attn.out_weight.mul_(strength)
        # The last token is A or B, and says YES or NO by itself.
        model.W_U[1, YES] = model.W_U[2, NO] = 5.0
        block.mlp.W_in[1, 0] = block.mlp.W_in[2, 1] = 1.0
        block.mlp.W_out[0, YES] = block.mlp.W_out[1, NO] = strength
    return model.to(dtype)


def told(module, model, **options) -> str:
    """All findings of an analysis on the pairs of both classes."""
    report, pairs = Report("T", "Q?"), pairs_of_one_class(mixed=True)
    config = module.Config(**options)
    if module is neurons:
        found = measure_baseline(model, pairs)
        ranking = rank_neurons(model, pairs, [0], noise=found.noise)
        neurons._findings(report, ranking, None, float(found.clean.mean()), config)
    else:
        module.examine(report, model, pairs, config)
    return "\n".join(report.findings)


OPTIONS = {
    head_ablation: {"top": 1, "random_sets": 1, "kinds": ("mean", "zero")},
    attention_heads: {"null": 5, "repeats": 4, "length": 2, "shown": 1},
    activation_patching: {"parts": ("heads",), "top": 2},
    logit_lens: {"tuned": False, "top": 2},
    neurons: {},
}


def ranks_heads(text: str) -> bool:
    """Whether a head (or neuron) is named with an effect."""
    names = ("Beyond chance", "No head is named", "Of the earlier heads")  # of looks, not effects
    lines = [line for line in text.split("\n") if not line.startswith(names)]
    return any(PART.search(line) for line in lines)


@pytest.mark.parametrize("module", list(OPTIONS), ids=lambda one: one.__name__.rpartition(".")[2])
@pytest.mark.parametrize(("strength", "real"), [(1e-9, False), (0.5, True)])
def test_rounding_is_not_ranked_and_what_is_above_it_is(module, strength, real):
    text = told(module, faint(strength), **OPTIONS[module])
    assert ("no effect above rounding" in text) != real, text
    if not real:
        assert re.search(r"no effect above rounding \(\de-\d\)", text)
        assert "correlation" not in text
    assert ranks_heads(text) == real, text


def test_a_gap_that_is_rounding_is_no_gap():
    pairs = pairs_of_one_class(mixed=True)
    model = one_class_model().float()
    with torch.no_grad():
        model.blocks[0].attn.out_weight.mul_(1e-9)
    found = measure_baseline(model, pairs)
    assert not found.normal and found.noise > 0
    assert measure_baseline(one_class_model().float(), pairs).normal


def test_the_size_of_rounding_follows_the_precision_and_the_logits():
    pairs = pairs_of_one_class(mixed=True)
    single, half = (measure_baseline(faint(1.0, dtype), pairs).noise
                    for dtype in (torch.float32, torch.bfloat16))  # fmt: skip
    assert half / single == pytest.approx(2.0**16, rel=0.05)
    model = faint(1.0)
    with torch.no_grad():
        model.W_U.mul_(10)
    assert measure_baseline(model, pairs).noise == pytest.approx(10 * single)


def test_a_trace_of_rounding_names_no_state():
    states = pd.DataFrame({
        "metric": np.repeat(["prob", "logit_diff"], 8), "site": "hook_mlp_out",
        "example": [0, 1] * 8, "layer": np.tile(np.repeat([0, 1], 4), 2), "pos": 0,
        "place": "last token", "effect": np.linspace(1e-8, 3e-8, 16),
    })  # fmt: skip
    totals = pd.DataFrame({
        "noise": "subject", "metric": ["prob", "prob", "logit_diff", "logit_diff"],
        "example": [0, 1, 0, 1], "clean": 0.9, "corrupted": 0.1, "effect": [0.7, 0.8, 3.0, 3.1],
    })  # fmt: skip
    for factor, named in ((1, False), (1e6, True)):
        own = states.assign(effect=states["effect"] * factor)
        trace = averaged(own, totals, noise=1e-6)
        assert (trace.best("hook_mlp_out") is not None) == named
        assert np.isfinite(trace.agreement()) == named


# Maps ---------------------------------------------------------------------------------------------


def test_what_lies_within_the_noise_is_grey():
    frame = pd.DataFrame({"a": [0, 0, 1, 1], "b": [0, 1, 0, 1], "v": [0.05, -0.05, 0.5, -1.0]})
    options = {"rows": "a", "columns": "b", "value": "v", "axis": "x", "alt": "y"}
    grey = figures.canvas.RULE.encode()

    def cells(**more):
        svg = figures.heatmap(frame, **options, **more).svg
        return svg.count(b"fill: " + grey)

    plain = cells()
    assert cells(noise=0.1) > plain  # one path for the cells, one for the scale
    assert cells(noise=0.0) == plain
    shades = set(re.findall(rb"fill: (#\w+)", figures.heatmap(frame, **options, noise=2.0).svg))
    drawn = shades & {shade.encode() for shade in figures.canvas.SHADES}
    assert drawn <= {shade.encode() for shade in figures.canvas.SHADES}
    with pytest.raises(ValueError, match=r"noise=-1\.0: expected a size"):
        figures.heatmap(frame, **options, noise=-1.0)


def test_all_maps_of_patching_share_one_scale_and_the_band_of_the_control(monkeypatch):
    calls = []

    def kept(data, **options):
        calls.append(SimpleNamespace(data=data, **options))
        return real(data, **options)

    real = figures.heatmap
    for module in ("words", "heads"):
        monkeypatch.setattr(f"analyses._patching.{module}.figures.heatmap", kept)
    report, pairs = Report("T", "Q?"), pairs_of_one_class(mixed=True)
    config = activation_patching.Config(top=2, least=0.05)
    model = one_class_model(d_mlp=4, mlp_bias=True)
    activation_patching.examine(report, model, pairs, config)
    assert len(calls) >= 5
    assert any("to the logits" in call.axis for call in calls)
    limits, bands = ({getattr(call, name) for call in calls} for name in ("limit", "noise"))
    assert len(limits) == len(bands) == 1
    largest = max(float(call.data["share"].abs().max()) for call in calls)
    assert limits.pop() == pytest.approx(largest)
    items = [getattr(item, "table", item) for part in report.sections for item in part.items]
    control = next(one.frame for one in items if one.name == "control")
    gap = abs(float(measure_baseline(model, pairs).gap.mean()))
    noise = measure_baseline(model, pairs).noise
    level = max(float(control["effect"].abs().max()), noise)
    assert bands.pop() == pytest.approx(level / gap)
    assert dataclasses.is_dataclass(config)
