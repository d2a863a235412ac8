"""Mean ablation where all prompts have one answer: the mean holds it, which is warned of, and the
default reference, clean and corrupted prompts together, does not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import interp
from analyses import attention_heads, head_ablation
from interp import edits, metrics
from interp.methods.ablation import Ablations
from interp.report import Report
from tests.one_class import GAP, LENGTH, one_class_model, pairs_of_one_class


def ablated(monkeypatch, pairs, **options) -> tuple[Report, Ablations]:
    kept = []
    monkeypatch.setattr(head_ablation, "show", lambda report, m, config: kept.append(m))
    report = Report("T", "Q?")
    config = head_ablation.Config(top=1, random_sets=1, kinds=("mean",), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        head_ablation.examine(report, one_class_model(), pairs, config)
    return report, kept[0]


def test_the_strongest_head_is_hidden_by_a_mean_of_its_own_class(monkeypatch):
    """By construction head 0 makes the whole difference: without it GAP is gone. The mean over
    prompts of its class keeps it, and the head of the fillers seems the only one that acts."""
    pairs = pairs_of_one_class()
    report, m = ablated(monkeypatch, pairs)
    effects = m.heads.of("mean")["effect"]
    assert effects[0] == pytest.approx(-GAP) and abs(effects[2]) < 1e-9
    assert effects.abs().idxmax() == 0 and not report.warnings
    hidden, wrong = ablated(monkeypatch, pairs, reference="clean")
    assert abs(wrong.heads.of("mean")["effect"][0]) < 1e-9
    (warning,) = [text for text in hidden.warnings if "same answer" in text]
    assert "All 12 clean prompts" in warning and "--reference both" in warning
    swapped, twice = ablated(monkeypatch, pairs, reference="corrupted")
    assert twice.heads.of("mean")["effect"][0] == pytest.approx(-2 * GAP)
    assert any("All 12 corrupted prompts" in text for text in swapped.warnings)


@pytest.mark.parametrize("reference", ["both", "clean", "corrupted"])
def test_prompts_of_both_answers_need_no_warning(monkeypatch, reference):
    """The positive control: means over both classes agree, whichever side they are taken over."""
    report, m = ablated(monkeypatch, pairs_of_one_class(mixed=True), reference=reference)
    assert not [text for text in report.warnings if "same answer" in text]
    assert m.heads.of("mean")["effect"][0] == pytest.approx(-GAP)
    said = " ".join(report.certainty)
    count = 24 if reference == "both" else 12
    name = "clean and corrupted" if reference == "both" else reference
    assert f"mean over {count} {name} prompts" in said


def test_donors_of_the_same_answer_are_warned_of(monkeypatch):
    kept = []
    monkeypatch.setattr(head_ablation, "show", lambda report, m, config: kept.append(m))
    for donors, warned in (("clean", True), ("corrupted", False)):
        report = Report("T", "Q?")
        config = head_ablation.Config(top=1, random_sets=1, kinds=("resample",), donors=donors)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            head_ablation.examine(report, one_class_model(), pairs_of_one_class(), config)
        assert any("donors are among them" in text for text in report.warnings) == warned


@pytest.mark.parametrize("per", [None, "pos", "all"])
@pytest.mark.parametrize("reference", ["both", "clean", "corrupted"])
def test_attention_heads_take_the_same_reference(reference, per):
    """The effects of attention-heads are those of head-ablation, option by option."""
    model, pairs = one_class_model(), pairs_of_one_class()
    options = {"reference": reference, "per": per}
    config = attention_heads.Config(null=5, repeats=4, length=2, shown=1, **options)
    report = Report("T", "Q?")
    effects = attention_heads._effects(report, model, pairs, pairs.clean, config)
    rows = {"both": pairs.both, "clean": pairs.clean, "corrupted": pairs.corrupted}[reference]
    expected = interp.sweep(
        model, pairs.clean, interp.nodes(model, "z", ("layer", "head")),
        edit=edits.mean(rows, per=per or "pos"), allow_noop=True, progress=False,
        metric=metrics.logit_diff(pairs.answer, pairs.wrong, pos="end"),
    )  # fmt: skip
    assert np.allclose(effects["task_effect"], expected["effect"])
    if reference == "both" and per != "all":
        assert effects["task_effect"][0] == pytest.approx(-GAP)


def test_options_that_are_no_references_are_refused(unchecked):
    for module in (head_ablation, attention_heads):
        with pytest.raises(ValueError, match="reference='clan': expected one of both, clean"):
            module.Config(reference="clan")
        with pytest.raises(ValueError, match="per='token': expected one of pos, all"):
            module.Config(per="token")


# The library -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mean", "resample"])
@pytest.mark.parametrize("metric", ["logit_diff", "log_prob", "prob", "rank", "accuracy"])
def test_the_library_warns_of_one_answer(kind, metric):
    model, pairs = one_class_model(), pairs_of_one_class()
    mixed = pairs_of_one_class(mixed=True)
    options = {"kind": kind, "allow_noop": True, "progress": False}

    def asked(of):
        more = (of.wrong,) if metric == "logit_diff" else ()
        return getattr(metrics, metric)(of.answer, *more, pos="end")

    with pytest.warns(UserWarning, match="all 12 examples have the same answer"):
        interp.ablate(model, pairs.clean, "z", metric=asked(pairs), **options)
    with pytest.warns(UserWarning, match="pairs.both"):
        interp.ablate(model, pairs.clean, "z", metric=asked(pairs), reference=pairs.clean,
                      **options)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interp.ablate(model, pairs.clean, "z", metric=asked(pairs), reference=pairs.both, **options)
        interp.ablate(model, mixed.clean, "z", metric=asked(mixed), **options)
        interp.ablate(model, pairs.clean, "z", metric=asked(pairs), **options | {"kind": "zero"})
        interp.ablate(model, pairs.clean, "z", metric=metrics.loss(), **options)


def test_sets_of_answers_in_any_order_are_one_answer():
    assert metrics.single_answer(torch.tensor([[3, 5], [5, 3]]))
    assert not metrics.single_answer(torch.tensor([[3, 5], [5, 4]]))
    assert metrics.single_answer(torch.tensor([7])) and not metrics.single_answer(
        torch.tensor([7, 8])
    )


def test_both_sides_stand_below_each_other():
    pairs = pairs_of_one_class(3)
    assert torch.equal(pairs.both.ids, torch.cat([pairs.clean.ids, pairs.corrupted.ids]))
    assert pairs.both.roles["end"].tolist() == [LENGTH - 1] * 6 and pairs.both.mask is None
