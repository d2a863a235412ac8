"""Sweeps find what is planted, and nothing where nothing is."""

from __future__ import annotations

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import interp
from interp import edits, metrics
from interp.zoo import planted

pytestmark = pytest.mark.usefixtures("one_thread")


def auroc(frame, truth) -> float:
    """How well |effect| ranks the planted heads above all others."""
    is_true = [(line.layer, line.head) in truth.heads for line in frame.itertuples()]
    return roc_auc_score(is_true, frame["effect"].abs())


def metric_of(prompts):
    return metrics.logit_diff(prompts.answer, prompts.wrong, pos="end")


@pytest.mark.parametrize("name", ["induction", "grouped_induction", "rotary_previous_token"])
@pytest.mark.parametrize("kind", ["zero", "mean", "resample", "patch"])
def test_single_cause_circuits_are_found(name, kind):
    circuit = planted.BUILDERS[name](seed=1)
    prompts = circuit.prompts(40, seed=2)
    options = {"metric": metric_of(prompts), "progress": False, "by": ("layer", "head")}
    if kind == "patch":
        frame = interp.patch(circuit.model, prompts, "z", **options)
    else:
        frame = interp.ablate(circuit.model, prompts.clean, "z", kind=kind, **options)
    assert auroc(frame, circuit.truth) == 1.0
    assert frame.attrs["engine"] == "rerun"


def test_backups_hide_from_single_removal_and_show_together():
    circuit = planted.backup_movers(seed=1)
    prompts = circuit.prompts(40, seed=2)
    model, tokens, metric = circuit.model, prompts.clean, metric_of(prompts)
    single = interp.ablate(model, tokens, "z", kind="zero", metric=metric, progress=False)
    base = single["baseline"].iloc[0]
    heads = list(circuit.truth.heads)
    assert (single["effect"].abs() < 0.15 * base).all()  # no removal alone costs much

    together = pd.DataFrame(
        [{"row": 0, "site": "z", "layer": layer, "head": head} for layer, head in heads]
    )

    lost = interp.sweep(model, tokens, together, edit=edits.zero(), metric=metric, progress=False)
    assert lost["effect"].iloc[0] == pytest.approx(-base, rel=0.05)


def test_a_negative_head_is_found_with_its_sign():
    circuit = planted.copy_suppression(seed=1)
    prompts = circuit.prompts(40, seed=2)
    frame = interp.ablate(
        circuit.model, prompts.clean, "z", kind="zero", metric=metric_of(prompts), progress=False
    )
    assert auroc(frame, circuit.truth) == 1.0
    assert frame["effect"].max() > 0  # removing it raises the answer


@pytest.mark.parametrize("control", ["random_control", "permuted_control"])
def test_nothing_is_found_in_controls(control):
    circuit = planted.induction(seed=1)
    null = getattr(planted, control)(circuit, seed=3)
    prompts = circuit.prompts(100, seed=2)
    options = {"kind": "zero", "metric": metric_of(prompts), "progress": False}
    found = interp.ablate(circuit.model, prompts.clean, "z", **options)
    nothing = interp.ablate(null.model, prompts.clean, "z", **options)
    assert nothing["baseline"].iloc[0] < 0.1 * found["baseline"].iloc[0]
    assert nothing["effect"].abs().max() < 0.2 * found["effect"].abs().max()
