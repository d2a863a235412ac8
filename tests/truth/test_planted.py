"""The planted circuits do what their docstrings say, and only the planted heads do it."""

from __future__ import annotations

import dataclasses
from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

import interp
from interp.data.tasks import Pairs
from interp.zoo import planted
from tests.truth.by_hand import (
    MATRICES,
    SEEDS,
    SINGLE_CAUSE,
    TASKS,
    N,
    accuracy,
    all_heads,
    auroc,
    build,
    logit_diff,
    norms_of,
    patch_effects,
    with_z,
    without,
    zero_effects,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# The task, and where the heads look --------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", TASKS)
def test_the_circuit_does_the_task(name, seed):
    known = build(name, seed)
    prompts = known.prompts(N, seed=seed + 10)
    assert len(prompts) == N
    assert accuracy(known.model, prompts.clean, prompts.answer) == 1.0
    assert accuracy(known.model, prompts.corrupted, prompts.wrong) == 1.0
    assert logit_diff(known.model, prompts.clean, prompts) > 3
    assert (prompts.answer != prompts.wrong).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", TASKS)
def test_heads_look_where_they_are_planted(name, seed):
    known = build(name, seed)
    prompts = known.prompts(N)
    _, cache = known.model.run_with_cache(prompts.clean, "pattern")
    row, roles = torch.arange(N), prompts.clean.roles
    assert {look.head for look in known.truth.attends} == set(known.truth.heads)
    for look in known.truth.attends:
        layer, head = look.head
        weight = cache["pattern", layer][row, head, roles[look.query], roles[look.key]]
        assert weight.min() >= 0.99, look


def test_prompts_hold_what_their_roles_say():
    prompts = planted.induction().prompts(N)
    ids, row, roles = prompts.clean.ids, torch.arange(N), prompts.clean.roles
    assert (ids[:, 0] == 0).all() and (ids[:, 1:-1] > 0).all()
    assert torch.equal(ids[:, -1], ids[row, roles["first"]])
    assert torch.equal(prompts.answer, ids[row, roles["first"] + 1])
    assert torch.equal(prompts.wrong, ids[row, roles["other"] + 1])
    assert all(len(set(one[:-1].tolist())) == ids.shape[1] - 1 for one in ids)
    changed = (ids != prompts.corrupted.ids).nonzero().view(N, 2, 2)[..., 1]
    both = torch.stack([roles["first"], roles["other"]], dim=1).sort(dim=1).values
    assert torch.equal(changed, both)
    assert torch.equal(prompts.corrupted.ids[:, -1], ids[:, -1])


@pytest.mark.parametrize(
    "name", ["backup_movers", "copy_suppression", "rotary_previous_token", "lookup"]
)
def test_other_prompts_are_corrupted_in_one_place(name):
    prompts = build(name).prompts(N)
    changed = prompts.clean.ids != prompts.corrupted.ids
    assert changed.sum(1).eq(1).all()
    role = {"rotary_previous_token": "previous", "lookup": "a"}.get(name, "name")
    assert torch.equal(changed.long().argmax(1), prompts.clean.roles[role])


# 1, 4, 5: one circuit among distractors of equal norm --------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SINGLE_CAUSE)
def test_the_true_heads_and_only_they_matter(name, seed):
    known = build(name, seed)
    prompts = known.prompts(N)
    truth = known.truth.heads
    base = logit_diff(known.model, prompts.clean, prompts)
    removed, patched = zero_effects(known, prompts), patch_effects(known, prompts)
    for effects in (removed, patched):
        assert auroc(effects, truth) == 1.0
        assert (
            average_precision_score([h in truth for h in effects], np.abs([*effects.values()])) == 1
        )
    for head in all_heads(known.model):
        if head in truth:
            assert removed[head] < -0.8 * base
            assert patched[head] > 0.9
        else:
            assert 0 < abs(removed[head]) < 0.1 * base
            assert abs(patched[head]) < 0.1


@pytest.mark.parametrize("name", SINGLE_CAUSE)
def test_the_true_heads_matter_under_mean_ablation_too(name):
    known = build(name)
    prompts = known.prompts(N)
    base = logit_diff(known.model, prompts.clean, prompts)
    _, cache = known.model.run_with_cache(prompts.clean, "z")
    effects = {}
    for layer, head in all_heads(known.model):
        z = cache["z", layer]
        view = with_z(known.model, (layer, head), z.mean(0, keepdim=True).expand_as(z))
        effects[layer, head] = logit_diff(view, prompts.clean, prompts) - base
    assert auroc(effects, known.truth.heads) == 1.0
    assert all(effects[head] < -0.8 * base for head in known.truth.heads)


@pytest.mark.parametrize("name", SINGLE_CAUSE)
def test_distractors_have_the_norms_of_the_real_heads(name):
    known = build(name)
    norms = norms_of(known.model)
    for layer, head in known.truth.heads:
        own = norms[:, layer, head, None]
        assert ((norms[:, layer] - own).abs() <= 1e-9 * own).all()
    singular = known.model.OV.svd()[1]
    assert torch.allclose(singular, singular[:, :1].expand_as(singular), atol=1e-9)


@pytest.mark.parametrize("n", [0, 1, 2, 6])
def test_any_number_of_distractors(n):
    for name in TASKS:
        known = build(name, n_distractors=n, **{"n_kv_heads": 1} if "grouped" in name else {})
        prompts = known.prompts(64)
        assert accuracy(known.model, prompts.clean, prompts.answer) == 1.0


def test_induction_moves_through_prev_and_out():
    """The algebra of the docstring, read off the residual stream by the truth's directions."""
    known = planted.induction()
    prompts = known.prompts(N)
    _, cache = known.model.run_with_cache(prompts.clean, "resid_post")
    prev = cache["resid_post", 0] @ known.truth.directions["prev"].T
    assert torch.equal(prev[:, 1:].argmax(-1), prompts.clean.ids[:, :-1])
    out = cache["resid_post", 1][:, -1] @ known.truth.directions["out"].T
    assert torch.equal(out.argmax(-1), prompts.answer)
    assert (out.max(-1).values - 1).abs().max() < 0.2


def test_previous_token_head_looks_back_everywhere():
    known = planted.induction()
    _, cache = known.model.run_with_cache(known.prompts(N).clean, "pattern")
    ((_, head),) = known.truth.roles["previous_token"]
    assert cache["pattern", 0][:, head].diagonal(-1, dim1=-2, dim2=-1).min() >= 0.99


def test_grouped_queries_share_keys_and_values_with_distractors():
    known = planted.grouped_induction()
    cfg = known.model.cfg
    assert (cfg.n_heads, cfg.n_kv_heads) == (8, 4)
    group = cfg.n_heads // cfg.n_kv_heads
    for _, head in known.truth.heads:
        assert head // group != head % cfg.n_kv_heads


def test_wrong_grouping_of_query_heads_is_seen():
    """A mutant that groups query heads as h % n_kv_heads loses the task."""
    known = planted.grouped_induction()
    wrong = torch.arange(8) % 4
    mutant = interp.HookedTransformer(known.model.cfg.replace(n_kv_heads=8), dtype=torch.float64)
    state = known.model.state_dict()
    for layer in range(2):
        attn = known.model.blocks[layer].attn
        parts = (attn.W_Q, attn.W_K[wrong], attn.W_V[wrong])
        state[f"blocks.{layer}.attn.qkv_weight"] = torch.cat([W.mT.flatten(0, 1) for W in parts])
    mutant.load_state_dict(state)
    prompts = known.prompts(N)
    assert accuracy(mutant, prompts.clean, prompts.answer) < 0.5


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_attention_depends_on_the_offset_alone(interleaved):
    known = planted.rotary_previous_token(interleaved=interleaved)
    ids = torch.randint(1, 24, (8, 24), generator=torch.Generator().manual_seed(0))
    _, cache = known.model.run_with_cache(ids, ["attn_scores", "pattern"])
    ((_, head),) = known.truth.heads
    scores = cache["attn_scores", 0][:, head]
    pairs = torch.arange(16, dtype=torch.float64)
    for offset in range(24):
        angle = 4.0 ** (-pairs / 16) * (offset - 1)
        assert (
            scores.diagonal(-offset, dim1=-2, dim2=-1) - 60 / 16 * angle.cos().sum()
        ).abs().max() < 1e-9
    assert cache["pattern", 0][:, head].diagonal(-1, dim1=-2, dim2=-1).min() >= 0.99


@pytest.mark.parametrize(
    "change", [{"positions": "none"}, {"rotary_interleaved": True}, {"rotary_base": 10_000.0}]
)
def test_another_rotation_loses_the_previous_token(change):
    known = planted.rotary_previous_token()
    mutant = interp.HookedTransformer(known.model.cfg.replace(**change), dtype=torch.float64)
    mutant.load_state_dict(known.model.state_dict())
    ((_, head),) = known.truth.heads
    _, cache = mutant.run_with_cache(known.prompts(N).clean, "pattern")
    assert cache["pattern", 0][:, head].diagonal(-1, dim1=-2, dim2=-1).mean() < 0.9


# 2, 3: heads that act against each other ---------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_backups_hide_the_mover_until_all_are_removed(seed):
    known = planted.backup_movers(seed=seed)
    prompts = known.prompts(N)
    base = logit_diff(known.model, prompts.clean, prompts)
    (mover,), (one, two) = known.truth.roles["mover"], known.truth.roles["backup"]

    def lost(*heads):
        return 1 - logit_diff(without(known.model, heads), prompts.clean, prompts) / base

    single = {head: -change / base for head, change in zero_effects(known, prompts).items()}
    assert single[mover] == pytest.approx(0.1, abs=0.05)
    assert single[one] == pytest.approx(0, abs=0.01) and single[two] == pytest.approx(0, abs=0.01)
    assert max(map(abs, single.values())) < 0.15  # no single removal says what is going on
    for backup in (one, two):
        assert lost(mover, backup) == pytest.approx(0.55, abs=0.05)
    assert lost(one, two) == pytest.approx(0, abs=0.01)
    assert lost(mover, one, two) == pytest.approx(1, abs=0.05)
    assert accuracy(without(known.model, [mover]), prompts.clean, prompts.answer) == 1.0
    assert accuracy(without(known.model, [mover, one]), prompts.clean, prompts.answer) == 1.0
    gone = without(known.model, [mover, one, two])
    assert accuracy(gone, prompts.clean, prompts.answer) < 0.4


def test_pairs_and_triples_rank_the_movers_first():
    known = planted.backup_movers()
    prompts = known.prompts(N)
    base = logit_diff(known.model, prompts.clean, prompts)
    for size, best in ((2, 2), (3, 1)):
        effects = {
            heads: base - logit_diff(without(known.model, heads), prompts.clean, prompts)
            for heads in combinations(all_heads(known.model), size)
        }
        top = sorted(effects, key=effects.get, reverse=True)
        if size == 3:
            assert set(top[0]) == set(known.truth.heads)
        else:
            assert all(set(heads) <= set(known.truth.heads) for heads in top[:best])


def test_backups_sleep_on_bos_and_wake_on_the_name():
    known = planted.backup_movers()
    prompts = known.prompts(N)
    awake = without(known.model, known.truth.roles["mover"])
    at, row = prompts.clean.roles["name"], torch.arange(N)
    for model, key in ((known.model, torch.zeros_like(at)), (awake, at)):
        _, cache = model.run_with_cache(prompts.clean, ("pattern", 1))
        for _, head in known.truth.roles["backup"]:
            assert cache["pattern", 1][row, head, -1, key].min() >= 0.99


def test_backups_stay_asleep_under_mean_ablation():
    """The truth is tied to zero ablation: a mean name in the mover's place wakes nobody."""
    known = planted.backup_movers()
    prompts = known.prompts(N)
    (mover,) = known.truth.roles["mover"]
    _, cache = known.model.run_with_cache(prompts.clean, ("z", 0))
    mean = cache["z", 0].mean(0, keepdim=True).expand_as(cache["z", 0])
    base = logit_diff(known.model, prompts.clean, prompts)
    assert logit_diff(with_z(known.model, mover, mean), prompts.clean, prompts) < 0.2 * base
    assert auroc(patch_effects(known, prompts), [mover]) == 1.0


@pytest.mark.parametrize("seed", SEEDS)
def test_the_negative_head_lowers_the_answer(seed):
    known = planted.copy_suppression(seed=seed)
    prompts = known.prompts(N)
    base = logit_diff(known.model, prompts.clean, prompts)
    effects = zero_effects(known, prompts)
    (mover,), (negative,) = known.truth.roles["mover"], known.truth.roles["negative"]
    assert effects[mover] < -0.9 * base
    assert effects[negative] == pytest.approx(
        base, rel=0.1
    )  # half of 1 is taken, so 1/2 comes back
    assert auroc(effects, known.truth.heads) == 1.0
    row = torch.arange(N)
    answer = lambda model: model(prompts.clean)[:, -1][row, prompts.answer]  # noqa: E731
    assert (answer(without(known.model, [negative])) > answer(known.model) + 3).all()


def test_the_negative_head_needs_a_prediction_to_suppress():
    known = planted.copy_suppression()
    prompts = known.prompts(N)
    (mover,), (negative,) = known.truth.roles["mover"], known.truth.roles["negative"]
    silent = without(known.model, [mover])
    _, cache = silent.run_with_cache(prompts.clean, ("pattern", 1))
    assert cache["pattern", 1][:, negative[1], -1, 0].min() >= 0.99
    before, after = (
        logit_diff(without(known.model, heads), prompts.clean, prompts)
        for heads in ([mover], [mover, negative])
    )
    assert after == pytest.approx(before, abs=0.1)


# The object, and mutants of these checks ---------------------------------------------------------


@pytest.mark.parametrize("name", list(planted.BUILDERS))
def test_seeds_and_dtypes(name):
    one, two, other = build(name), build(name), build(name, seed=1)
    assert all(map(torch.equal, one.model.parameters(), two.model.parameters()))
    assert not all(map(torch.equal, one.model.parameters(), other.model.parameters()))
    assert one.model.dtype == torch.float64
    single = build(name, dtype=torch.float32)
    assert single.model.dtype == torch.float32
    assert single.truth.note and single.model.name == f"planted-{name}"
    if name in TASKS:
        a, b, c = one.prompts(32), two.prompts(32), one.prompts(32, seed=1)
        assert torch.equal(a.clean.ids, b.clean.ids) and not torch.equal(a.clean.ids, c.clean.ids)
        prompts = single.prompts(N)
        assert accuracy(single.model, prompts.clean, prompts.answer) == 1.0


def test_real_heads_sit_elsewhere_from_seed_to_seed():
    found = {planted.induction(seed=seed).truth.heads for seed in range(8)}
    assert len(found) > 2


@pytest.mark.parametrize("name", TASKS)
def test_prompts_are_pairs_of_a_task(name):
    """The validation of `interp.tasks` accepts them as they are."""
    prompts = build(name).prompts(16)
    pairs = Pairs(name, prompts.clean, prompts.corrupted, prompts.answer, prompts.wrong)
    assert len(pairs) == 16


def test_what_a_model_lacks_raises():
    with pytest.raises(ValueError, match=r"no prompts; it has analogies"):
        planted.vocabulary().prompts()
    with pytest.raises(ValueError, match=r"no labelled; it has prompts"):
        planted.induction().labelled()
    with pytest.raises(ValueError, match="n=0"):
        planted.induction().prompts(0)
    with pytest.raises(ValueError, match="n_distractors=-1"):
        planted.induction(n_distractors=-1)
    with pytest.raises(ValueError, match="n_kv_heads"):
        planted.grouped_induction(n_kv_heads=3)


@pytest.mark.parametrize("name", [*SINGLE_CAUSE, "copy_suppression"])
def test_a_wrong_truth_fails(name):
    """Mutant of the checks above: any other set of heads scores below 1 and is not attended to."""
    known = build(name)
    prompts = known.prompts(64)
    effects, truth = zero_effects(known, prompts), set(known.truth.heads)
    for wrong in all_heads(known.model):
        if wrong not in truth:
            assert auroc(effects, truth - {max(truth)} | {wrong}) < 1
            _, cache = known.model.run_with_cache(prompts.clean, ("pattern", wrong[0]))
            look = next(one for one in known.truth.attends if one.head[0] == wrong[0])
            q, k = (prompts.clean.roles[role] for role in (look.query, look.key))
            assert cache["pattern", wrong[0]][torch.arange(64), wrong[1], q, k].min() < 0.99


@pytest.mark.parametrize("name", SINGLE_CAUSE)
def test_a_broken_circuit_fails(name):
    """Mutant: with one real matrix zeroed the task is lost, whichever it is."""
    known = build(name)
    prompts = known.prompts(64)
    group = known.model.cfg.n_heads // known.model.cfg.n_kv_heads
    for layer, head in known.truth.heads:
        for matrix in MATRICES:
            broken = planted.rotated(known)  # a copy
            at = head // group if matrix in ("W_K", "W_V") else head
            getattr(broken.model.blocks[layer].attn, matrix)[at] = 0
            assert accuracy(broken.model, prompts.clean, prompts.answer) < 0.6, (matrix, layer)


def test_planted_is_a_frozen_value():
    known = planted.induction()
    with pytest.raises(dataclasses.FrozenInstanceError):
        known.truth = planted.Truth()
