"""Patching both ways: shares, groups and controls against hooks put by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import interp
from interp.methods.patching import Study, named_heads, stacked, strongest_heads, strongest_paths
from tests.one_class import one_class_model, pairs_of_one_class

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.of(one_class_model(d_mlp=4, mlp_bias=True), pairs_of_one_class(mixed=True))


def lead(model, tokens, pairs, hooks=()) -> np.ndarray:
    logits = model.run_with_hooks(tokens, [*hooks])
    rows, end = torch.arange(len(pairs)), tokens.roles["end"]
    right, wrong = (logits[rows, end, ids] for ids in (pairs.answer, pairs.wrong))
    return (right - wrong).double().detach().numpy()


def other_run(study: Study, source, heads):
    """A hook that puts z of another run into some heads of layer 0."""
    _, cache = study.model.run_with_cache(source, "z")

    def put(z, hook):
        z[:, :, heads] = cache["z", 0][:, :, heads]

    return [(("z", 0), put)]


def test_three_lines_give_the_shares_that_hooks_give(study):
    effects = study.both(study.nodes("z", ("layer", "head")))
    table = study.table(effects)
    model, pairs = study.model, study.pairs
    clean, corrupted = (lead(model, run, pairs) for run in (pairs.clean, pairs.corrupted))
    gap = clean - corrupted
    for head, row in table.iterrows():
        restored = lead(model, pairs.corrupted, pairs, other_run(study, pairs.clean, [head]))
        lost = lead(model, pairs.clean, pairs, other_run(study, pairs.corrupted, [head]))
        assert row["denoise"] == pytest.approx((restored - corrupted).mean(), abs=1e-9)
        assert row["denoise_share"] == pytest.approx((restored - corrupted).mean() / gap.mean())
        assert row["noise_share"] == pytest.approx((clean - lost).mean() / gap.mean())
        spread = (restored - corrupted).std(ddof=1)
        assert row["denoise_sd"] == pytest.approx(spread, abs=1e-9)


def test_a_group_is_patched_at_once(study):
    nodes = study.nodes("z", ("layer", "head"))
    two = nodes[nodes["head"].isin([0, 1])]
    table = study.together({"two": two, "every": nodes}).set_index("nodes")
    model, pairs = study.model, study.pairs
    restored = lead(model, pairs.corrupted, pairs, other_run(study, pairs.clean, [0, 1]))
    effect = (restored - lead(model, pairs.corrupted, pairs)).mean()
    assert table.loc["two", "denoise"] == pytest.approx(effect, abs=1e-9)
    assert table["count"].tolist() == [2, len(nodes)]


def test_the_head_that_reads_the_class_is_named_and_no_other(study):
    """By construction head 0 alone makes the difference between the classes."""
    nodes = stacked([study.nodes(site, ("layer", "head")) for site in ("z", "v")])
    effects = study.both(nodes)
    assert strongest_heads(effects, 1).to_numpy().tolist() == [[0, 0]]
    assert named_heads(study, effects, 0.5, None) == [(0, 0)]
    assert named_heads(study, effects, 0.5, 1e9) == []  # nothing is above such a control
    paths = strongest_paths(study, [(0, 0), (0, 1)], [(0, 0)])
    assert (paths["to"] == "logits").all() and paths["denoise"].abs().idxmax() == 0


def test_a_run_put_into_itself_changes_nothing(study):
    assert (study.itself(study.nodes("z", ("layer", "head")))["effect"] == 0).all()


def test_journals_are_kept_by_name_alone(tmp_path, study):
    kept = Study(study.model, study.pairs, study.baseline, tmp_path / "j")
    nodes = kept.nodes("z", ("layer", "head"))
    first = kept.both(nodes, name="heads")
    assert sorted(path.name for path in (tmp_path / "j").glob("*.jsonl")) == [
        "heads-denoise.jsonl", "heads-noise.jsonl",
    ]  # fmt: skip
    again = kept.both(nodes, name="heads")
    assert all(np.array_equal(first.ways[way], again.ways[way]) for way in first.ways)
    assert interp.patching.Study is Study
