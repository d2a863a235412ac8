"""The control of corrupted prompts: a constant bias is no answer, what a prompt brings about is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from analyses._lens.corrupted import (
    DIFFERENCE,
    FIRST,
    ON_CORRUPTED,
    against,
    clean_against_corrupted,
)
from analyses.logit_lens import Config, examine
from interp.model import HookedTransformer
from interp.report import Report
from tests.one_class import GAP, YES, one_class_model, pairs_of_one_class

BIAS = 6.0
CHANGES = {
    "unembed": {"unembed_bias": True},
    "mlp": {"d_mlp": 4, "mlp_bias": True},
    "attention": {"attn_out_bias": True},
    "position": {"positions": "learned"},
}


def biased(where: str, circuit: bool = False) -> HookedTransformer:
    """A model that says YES whatever the prompt, by a bias of one kind; with its circuit or not."""
    model = one_class_model(**CHANGES[where])
    block = model.blocks[0]
    with torch.no_grad():
        if not circuit:
            block.attn.out_weight.zero_()
        bias = {
            "unembed": lambda: model.b_U,
            "mlp": lambda: block.mlp.b_out,
            "attention": lambda: block.attn.b_O,
            "position": lambda: model.W_pos[3],
        }[where]()
        bias[YES] = BIAS
    return model


def examined(model, pairs=None) -> tuple[Report, dict[str, pd.DataFrame]]:
    report = Report("T", "Q?")
    pairs = pairs_of_one_class() if pairs is None else pairs
    examine(report, model, pairs, Config(tuned=False, top=3))
    items = [getattr(item, "table", item) for item in report.exhibits()]
    return report, {table.name: table.frame for table in items}


def by_the_lens(report: Report) -> str:
    """The finding that names a layer, or none."""
    return next(text for text in report.findings if text.startswith("By the logit lens, "))


@pytest.mark.parametrize("where", sorted(CHANGES))
def test_a_constant_bias_is_no_answer_from_any_layer(where):
    report, tables = examined(biased(where))
    first = by_the_lens(report)
    assert first.startswith("By the logit lens, no layer is named"), first
    assert "top token there in 100\u00a0% of clean and 100\u00a0% of corrupted prompts" in first
    assert report.headline.startswith("The answer appears at no layer")
    assert not any("first the top token" in text for text in report.findings)
    assert not any("grows most" in text for text in report.findings)
    table = tables["clean-against-corrupted"]
    assert np.allclose(table["difference"], 0)
    last = table[(table["layer"] == 1) & (table["what"] == DIFFERENCE)].iloc[0]
    assert last["clean"] == last["corrupted"] == pytest.approx(BIAS)


def test_the_circuit_is_found_without_a_bias():
    """The positive control: the head writes the class in layer 0, so that layer 1 reads it."""
    report, tables = examined(one_class_model())
    first = by_the_lens(report)
    assert "clean prompts differ from corrupted ones from layer 1 on" in first
    assert "first the top token at layer 1" in first
    assert f"difference {2 * GAP:.2f}" in first
    assert report.headline == (
        "The answer can be read only at the output: from there on it is the likeliest token where "
        "the prompt asks for it, and not where it asks for another."
    )
    table = tables["clean-against-corrupted"].set_index(["layer", "what"])
    assert table.loc[(1, DIFFERENCE), "difference"] == pytest.approx(2 * GAP)
    assert table.loc[(0, DIFFERENCE), "difference"] == pytest.approx(0)
    assert table.loc[(1, FIRST), "low"] > 0 and table.loc[(1, FIRST), "high"] <= 1
    assert any("grows most between layer 0 and 1" in text for text in report.findings)


def test_beside_a_bias_the_circuit_is_named_and_the_top_token_is_not():
    """YES is on top of all prompts by the bias, and further on top of the clean ones."""
    report, _ = examined(biased("unembed", circuit=True))
    first = by_the_lens(report)
    assert "clean prompts differ from corrupted ones from layer 1 on" in first
    assert (
        "in 100\u00a0% of clean and 100\u00a0% of corrupted prompts, which may be chance or a bias"
        in first
    )
    assert "no layer is named for that" in first
    assert report.headline.endswith(
        "the likeliest token about as often where another is asked for."
    )


def test_of_one_prompt_no_layer_is_named():
    report, tables = examined(one_class_model(), pairs_of_one_class()[:1])
    assert "of one pair nothing is sure" in by_the_lens(report)
    assert report.headline == "One pair of prompts cannot tell at which layer the answer appears."
    assert "nan" not in " ".join(report.findings)
    logits = tables["clean-against-corrupted"]
    assert logits.loc[logits["what"] == DIFFERENCE, "low"].isna().all()


def readings(effect: float, rng: np.random.Generator | None = None, layers: int = 1):
    """What a lens might say of 20 clean and 20 corrupted prompts, apart by `effect`."""
    frames = []
    for name, shift in (("plain", effect), (f"plain{ON_CORRUPTED}", 0.0)):
        for layer in range(layers):
            spread = 0.0 if rng is None else rng.normal(size=20)
            frames.append(
                pd.DataFrame({"lens": name, "layer": layer, "example": range(20),
                              "answer_rank": 1, "logit_diff": 5 + shift + spread})
            )  # fmt: skip
    return against(pd.concat(frames, ignore_index=True))


@pytest.mark.parametrize(("effect", "named"), [(0.0, False), (1.5, True)])
def test_noise_names_a_layer_no_more_often_than_it_may(effect, named):
    rng = np.random.default_rng(0)
    found = [
        clean_against_corrupted(readings(effect, rng), "plain", 0.0).layer is not None
        for _ in range(60)
    ]
    assert sum(found) >= 50 if named else sum(found) <= 6


def test_rounding_names_no_layer():
    table = readings(1e-7)
    assert clean_against_corrupted(table, "plain", 0.0).layer == 0
    assert clean_against_corrupted(table, "plain", 1e-6).layer is None
