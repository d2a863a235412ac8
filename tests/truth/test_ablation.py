"""The report on removals names the planted heads, their backups and the negative one, and nobody
in controls."""

from __future__ import annotations

import re

import numpy as np
import pytest

import interp
from analyses import head_ablation
from analyses.head_ablation import KINDS, Config, examine
from interp.data.tasks import Pairs
from interp.methods.ablation import significance
from interp.report import Report
from interp.zoo import planted
from tests.truth.by_hand import SINGLE_CAUSE, build, logit_diff, without, zero_effects

pytestmark = pytest.mark.usefixtures("one_thread", "unchecked")

N = 16
CASES = [("induction", 1), ("induction", 2)]


@pytest.fixture
def examined(monkeypatch):
    """The sentences and the measurements; nothing is drawn."""

    def told(known, seed=0, n=N, **options):
        kept = []
        monkeypatch.setattr(head_ablation, "show", lambda report, m, config: kept.append(m))
        prompts = known.prompts(n, seed)
        pairs = Pairs(known.name, prompts.clean, prompts.corrupted, prompts.answer, prompts.wrong)
        report = Report("T", "Q?")
        config = Config(seed=seed, **{"random_sets": 2, "top": 2} | options)
        examine(report, known.model, pairs, config)
        return report, kept[0]

    return told


def places(frame):
    return {*zip(frame["layer"], frame["head"], strict=True)}


def named(m, kind):
    own = m.heads.of(kind)
    return places(own[own["named"]])


def in_words(heads):
    return {f"L{layer} H{head}" for layer, head in heads}


def heads_in(text):
    return {*re.findall(r"L\d+ H\d+", text)}


@pytest.mark.parametrize(("name", "seed"), [*((name, 0) for name in SINGLE_CAUSE), *CASES])
def test_exactly_the_true_heads_are_named_by_every_kind(name, seed, examined):
    known = build(name, seed)
    report, m = examined(known, seed)
    truth = {*known.truth.heads}
    assert not report.warnings
    for kind in KINDS:
        assert named(m, kind) == truth, kind
        assert (m.heads.of(kind)["lost"].abs().nlargest(len(truth)) > 0.8).all()
    starts = (f"{len(truth)} of ", *(f"By {kind} ablation, the same" for kind in KINDS))
    by_kind = [finding for finding in report.findings if finding.startswith(starts)]
    assert [heads_in(finding) for finding in by_kind] == [in_words(truth)] * len(KINDS)
    assert heads_in(report.headline) and heads_in(report.headline) <= in_words(truth)
    assert not m.seconds["wakes"].any()
    assert not any("Negative heads" in one or "Backups" in one for one in report.findings)
    for kind, row in m.sets.set_index("kind").iterrows():
        assert heads_in(row["heads"]) == in_words(truth), kind
        assert row["as_much_without"] == 0
    (carry,) = (one for one in report.findings if "carry 90\u00a0%" in one)
    assert carry.count(f"{len(truth)} by ") == len(KINDS)
    series = [one for one in report.findings if "in series" in one]
    assert [heads_in(one) for one in series] == [in_words(truth)] * (len(truth) == 2)


@pytest.mark.parametrize("seed", [0, 1])
def test_backups_are_found_by_the_second_removal_and_by_no_single_one(seed, examined):
    known = build("backup_movers", seed)
    report, m = examined(known, seed)
    (mover,), backups = known.truth.roles["mover"], {*known.truth.roles["backup"]}
    for kind in KINDS:
        assert named(m, kind) == {mover}
        single = m.heads.of(kind).set_index(["layer", "head"])["lost"]
        assert single.loc[[*backups]].abs().max() < 0.02
    woken = m.seconds[m.seconds["wakes"]]
    assert places(woken) == backups and len(woken) == len(backups)
    assert {*woken["kind"]} == {"zero"}  # a mean or another name in the mover's place wakes nobody
    assert {*zip(woken["first_layer"], woken["first_head"], strict=True)} == {mover}
    lost = -woken["given"] / m.baseline.clean.mean()
    assert np.allclose(lost, 0.45, atol=0.05)
    (told,) = (one for one in report.findings if one.startswith("Backups that wake"))
    assert heads_in(told) == in_words({mover} | backups)
    assert "by zero ablation" in told
    assert any(one.startswith("By mean and resample ablation no head") for one in report.findings)


def test_the_interaction_is_what_hooks_give(examined):
    known = build("backup_movers")
    prompts = known.prompts(N)
    _, m = examined(known, kinds=("zero",))
    (mover,), (backup, _) = known.truth.roles["mover"], known.truth.roles["backup"]
    single = zero_effects(known, prompts)
    joint = logit_diff(without(known.model, [mover, backup]), prompts.clean, prompts)
    joint -= logit_diff(known.model, prompts.clean, prompts)
    keys = ["first_layer", "first_head", "layer", "head"]
    row = m.seconds.set_index(keys).loc[(*mover, *backup)]
    assert row["interaction"] == pytest.approx(joint - single[mover] - single[backup], abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_removing_the_negative_head_raises_the_answer(seed, examined):
    known = build("copy_suppression", seed)
    report, m = examined(known, seed)
    (mover,), (negative,) = known.truth.roles["mover"], known.truth.roles["negative"]
    for kind in KINDS:
        assert named(m, kind) == {mover, negative}
        effect = m.heads.of(kind).set_index(["layer", "head"])["effect"]
        assert effect[negative] > 0.8 * m.baseline.clean.mean() and effect[mover] < 0
    assert heads_in(report.findings[0]) == in_words({mover})
    (told,) = (one for one in report.findings if one.startswith("Negative heads"))
    assert heads_in(told) == in_words({negative})
    assert not m.seconds["wakes"].any()  # the mover costs more without it, but steps in for nobody


@pytest.mark.parametrize("control", [planted.random_control, planted.permuted_control])
@pytest.mark.parametrize("name", ["induction", "backup_movers", "copy_suppression"])
def test_nothing_is_named_in_controls(name, control, examined):
    """A name needs a model that does the task, and then a corrected test. Without the first, real
    small effects of a control (its 12 names are few) would be named now and then."""
    known = control(build(name))
    report, m = examined(known, kinds=("mean",), random_sets=1)
    assert "cannot do the task" in report.warnings[0]
    assert report.findings[0].startswith("No head is named")
    assert not m.heads.table["named"].any() and not m.seconds["wakes"].any()
    assert not any("Negative heads" in one or "Backups" in one for one in report.findings)


def test_corrected_tests_stay_below_alpha_in_controls():
    """Of random and permuted induction models, whose true mean effects are next to zero."""
    families = false = 0
    for seed in range(10):
        for control in (planted.random_control, planted.permuted_control):
            known = control(build("induction", seed), seed=seed)
            prompts = known.prompts(N, seed)
            frame = interp.sweep(
                known.model, prompts.clean, interp.nodes(known.model, "z", ("layer", "head")),
                edit=interp.edits.mean(prompts.clean, per="pos"), reduce="none", progress=False,
                metric=interp.metrics.logit_diff(prompts.answer, prompts.wrong, pos="end"),
            )  # fmt: skip
            effects, baseline = (
                frame[one].to_numpy(float).reshape(-1, N) for one in ("effect", "baseline")
            )
            families += 1
            false += bool((significance(effects, baseline[0])["p_corrected"] < 0.05).any())
    assert false <= 3, (false, families)  # more than three of 20 come once in 60 times at .05


def test_a_head_whose_circuit_is_broken_is_not_named(examined):
    """Mutant: the induction head's output is gone, and with it the task and every name."""
    known = planted.rotated(build("induction"))  # a copy
    (layer, head) = known.truth.roles["induction"][0]
    known.model.blocks[layer].attn.W_O[head] = 0
    report, m = examined(known, kinds=("mean",), random_sets=1)
    assert report.warnings and not m.heads.table["named"].any()
