"""The analytic fixtures: by sweep, by autograd and on paper, the numbers of GROUND_TRUTH.md."""

from __future__ import annotations

import copy
import dataclasses
from math import e, exp, log, sqrt

import pytest
import torch

import interp
from interp import edits, metrics
from interp.core.tokens import Tokens
from interp.sweeps.edits import Edit
from interp.sweeps.nodes import Selection, as_frame, read_nodes
from interp.zoo.planted import fixtures

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = {"rel": 0, "abs": 1e-12}
ENGINES = ("rerun", "naive")
SCALE = "ln_final.hook_scale"

# As the table prints them: exact and first order per node, integrated by number of steps.
PRINTED = {
    "F1 s=1": (["-.924"], ["-.786"], {}),
    "F1 s=3": (["-1.810"], ["-.542"], {}),
    "F1 s=10": (["-2.000"], ["-.0018"], {5: "-2.288", 20: "-2.000"}),
    "F1 s=20": (["-2.000"], ["0.000"], {5: "-4.01", 20: "-1.996"}),
    "F2": (["2.005"], ["0.000"], {5: "2.005", 20: "2.005"}),
    "F3": (["0.000", "0.000", "-1.000"], ["0.000"] * 3, {}),
    "F4": ([".078"], ["0.000"], {5: ".078", 20: ".078"}),
}


def on_paper(name):
    """Exact and first order per node, written otherwise than in the fixtures."""
    if name.startswith("F1"):  # in exponentials: tanh(s/2) = (eˢ − 1)/(eˢ + 1)
        s = float(name.partition("=")[2])
        return [-2 * (exp(s) - 1) / (exp(s) + 1)], [-4 * s * exp(s) / (exp(s) + 1) ** 2]
    p = 1 / (1 + exp(-0.8))  # F4: the more probable token of the edited run
    return {
        "F2": ([3 - (e**6 - 1) / (e**6 + 1)], [0]),
        "F3": ([0, 0, -1], [0, 0, 0]),
        "F4": ([log(0.5 / p) / 2 + log(0.5 / (1 - p)) / 2], [0]),
        "F5": ([-1 - 1], None),
        "F6": ([1 - 2 / sqrt(2)], [0]),
    }[name]


def agrees(value, printed):
    """Whether a number, rounded to as many digits, is the printed one."""
    return round(value, len(printed.partition(".")[2])) == float(printed)


def swept(known, edit, nodes=None, tokens=None, engine="naive", metric=None, allow_noop=False):
    """One row per node, in order."""
    return (
        interp.sweep(
            known.model,
            known.clean if tokens is None else tokens,
            known.nodes if nodes is None else nodes,
            edit=edit,
            metric=metric or metrics.function(lambda x, examples: known.measure(x), known.name),
            engine=engine,
            allow_noop=allow_noop,
            progress=False,
        )
        .groupby("row")
        .first()
    )


def patched(known, engine="naive"):
    return swept(known, edits.patch(known.corrupted), engine=engine).effect.tolist()


def patch_but_hold(source, held):
    """Patch from another run, with one site held at what it has in the unedited run."""

    def bind(model, tokens, sites):
        put, hold = (edits.patch(run).bind(model, tokens, sites) for run in (source, tokens))
        return lambda x, rows: (hold if rows.site.name == held else put)(x, rows)

    return Edit("patch but hold", "patch", bind)


def holding(known, site):
    """The known node, and a site beside it that `patch_but_hold` keeps."""
    return as_frame([*known.nodes.to_dict("records"), {"row": 0, "site": site}])


def slopes(known, share=0.0, hooks=()):
    """Per node, gradient · (corrupted − clean) when it has gone a share of the way."""
    model, examples = known.model, range(len(known.clean))
    found = []
    for node in read_nodes(known.nodes, model, known.clean):
        sites = list({part.site for part in node.parts})
        clean, corrupted = (
            model.run_with_cache(run, sites)[1] for run in (known.clean, known.corrupted)
        )
        way = {site: torch.zeros_like(clean[site]) for site in sites}
        for site, part in ((part.site, part) for part in node.parts):
            here, rows = model.sites[site], [(i, part) for i in examples]
            mask = Selection.of(here, rows, known.clean).mask(here, clean[site])
            way[site] = torch.where(mask, corrupted[site] - clean[site], way[site])
        at = {site: (clean[site] + share * way[site]).requires_grad_() for site in sites}
        own = [(site, lambda x, hook, at=at: at[hook.name]) for site in sites]
        y = known.measure(model.run_with_hooks(known.clean, [*own, *hooks]))
        grads = torch.autograd.grad(y.sum(), [at[site] for site in sites])
        found.append(
            float(sum((g * way[site]).sum() for g, site in zip(grads, sites, strict=True)))
        )
    return found


def integral(known, steps):
    """Integrated gradients of the one node."""
    return sum(slopes(known, (i + 0.5) / steps)[0] for i in range(steps)) / steps


# What patching and its approximations give -------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", fixtures.FIXTURES)
def test_sweeps_give_the_exact_values(name, engine):
    known = fixtures.FIXTURES[name]()
    effects = patched(known, engine)
    assert known.name == name
    assert known.model.dtype == torch.float64
    assert effects == pytest.approx(known.exact, **EXACT)
    assert effects == pytest.approx(on_paper(name)[0], **EXACT)
    if name in PRINTED:
        assert all(map(agrees, effects, PRINTED[name][0]))


@pytest.mark.parametrize("name", [name for name in fixtures.FIXTURES if name != "F5"])
def test_autograd_gives_the_first_order(name):
    known = fixtures.FIXTURES[name]()
    found = slopes(known)
    assert found == pytest.approx(known.first_order, **EXACT)
    assert found == pytest.approx(on_paper(name)[1], **EXACT)
    if name in PRINTED:
        assert all(map(agrees, found, PRINTED[name][1]))


@pytest.mark.parametrize("name", [name for name in fixtures.FIXTURES if name != "F5"])
def test_the_first_order_is_read_off_a_cache_with_gradients(name):
    known = fixtures.FIXTURES[name]()
    (site,) = {
        part.site
        for node in read_nodes(known.nodes, known.model, known.clean)
        for part in node.parts
    }
    logits, cache = known.model.run_with_cache(known.clean, site, grad=True)
    (grad,) = torch.autograd.grad(known.measure(logits).sum(), cache[site])
    way = known.model.run_with_cache(known.corrupted, site)[1][site] - cache[site].detach()
    # Nothing else at the site reaches y, and the last node of F3 is all of its site.
    assert float((grad * way).sum()) == pytest.approx(known.first_order[-1], **EXACT)


INTEGRATED = [name for name in fixtures.FIXTURES if name[:2] in ("F1", "F2", "F4")]


@pytest.mark.parametrize("steps", fixtures.STEPS)
@pytest.mark.parametrize("name", INTEGRATED)
def test_autograd_gives_the_integrated_gradients(name, steps):
    known = fixtures.FIXTURES[name]()
    found = integral(known, steps)
    assert found == pytest.approx(known.integrated[steps], **EXACT)
    if steps in PRINTED[name][2]:
        assert agrees(found, PRINTED[name][2][steps])


@pytest.mark.parametrize("name", INTEGRATED)
def test_integrated_gradients_of_the_input_vectors_are_the_same(name):
    """The two runs differ in the node's number alone, so all of the input counts as the node."""
    known = fixtures.FIXTURES[name]()
    clean, corrupted = (known.model.W_E[run.ids] for run in (known.clean, known.corrupted))
    total = 0.0
    for i in range(20):
        x = torch.lerp(clean, corrupted, (i + 0.5) / 20).requires_grad_()
        (grad,) = torch.autograd.grad(known.measure(known.model(Tokens.of(x))).sum(), x)
        total += float((grad * (corrupted - clean)).sum()) / 20
    assert total == pytest.approx(known.integrated[20], **EXACT)


# Weights that are off by one step give other numbers ----------------------------------------------


def mutant(known, change):
    model = copy.deepcopy(known.model)
    change(model)
    return dataclasses.replace(known, model=model)


MUTANTS = {f"F1 s={s}": lambda m: m.blocks[0].attn.W_Q.mul_(0.1) for s in (1, 3, 10, 20)} | {
    "F2": lambda m: m.blocks[0].attn.W_O.zero_(),
    "F3": lambda m: m.blocks[1].mlp.b_in.add_(1),
    "F4": lambda m: m.W_U.mul_(2),
    "F5": lambda m: m.W_U[2].zero_(),
    "F6": lambda m: m.blocks[0].attn.W_O.mul_(2),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", fixtures.FIXTURES)
def test_other_weights_give_other_numbers(name, engine):
    known = fixtures.FIXTURES[name]()
    off = mutant(known, MUTANTS[name])
    options = {"engine": engine, "allow_noop": True}
    effects = swept(off, edits.patch(known.corrupted), **options).effect.tolist()
    assert any(abs(a - b) > 0.05 for a, b in zip(effects, known.exact, strict=True))
    assert patched(known, engine) == pytest.approx(known.exact, **EXACT)  # and it stays as it is


# What each fixture is there to show ---------------------------------------------------------------


@pytest.mark.parametrize("gap", [10.0, 20.0])
def test_f1_completeness_shows_that_few_steps_over_count(gap):
    known = fixtures.saturated_attention(gap)
    clean, corrupted = (
        float(known.measure(known.model(run))) for run in (known.clean, known.corrupted)
    )
    errors = {steps: abs(known.integrated[steps] / (corrupted - clean) - 1) for steps in (5, 20)}
    assert errors[5] > 0.14
    assert errors[20] < 0.003
    assert abs(known.first_order[0]) < 1e-3 * abs(known.exact[0])


def test_f2_the_direct_path_and_the_head_cancel():
    known, z = fixtures.cancellation(), "blocks.0.attn.hook_z"
    direct = swept(known, patch_but_hold(known.corrupted, z), holding(known, z)).effect[0]
    indirect = swept(known, edits.patch(known.corrupted), as_frame([{"site": z}])).effect[0]
    assert direct == pytest.approx(3, **EXACT)
    assert indirect == pytest.approx(known.exact[0] - 3, **EXACT)
    without = mutant(known, MUTANTS["F2"])
    assert slopes(without) == pytest.approx([3.0], **EXACT)  # no head, no cancellation


@pytest.mark.parametrize("engine", ENGINES)
def test_f3_either_input_restores_the_gate(engine):
    known = fixtures.or_gate()
    back = swept(known, edits.patch(known.clean), tokens=known.corrupted, engine=engine)
    assert back.baseline.tolist() == [0, 0, 0]
    assert back.effect.tolist() == pytest.approx(known.restored, **EXACT)
    both = mutant(known, MUTANTS["F3"])  # relu(2 − a − b): neither suffices, each is missed
    assert patched(both, engine) == pytest.approx([-1, -1, -2], **EXACT)
    assert slopes(both) == pytest.approx([0, 0, 0], **EXACT)


@pytest.mark.parametrize("engine", ENGINES)
def test_f4_is_the_divergence_of_the_metrics(engine):
    known = fixtures.stationary_kl()
    edit = edits.patch(known.corrupted)
    found = swept(known, edit, metric=metrics.kl(), engine=engine)
    assert found.baseline[0] == pytest.approx(0, **EXACT)
    assert found.effect[0] == pytest.approx(known.exact[0], **EXACT)


def test_f4_is_flat_at_the_clean_point_only():
    known = fixtures.stationary_kl()
    assert slopes(known, share=0.5)[0] > 0.07
    logit = dataclasses.replace(known, measure=fixtures.first_logit)
    assert slopes(logit) == pytest.approx([0.4], **EXACT)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("which", ["unread", "dormant", "illusory", "real"])
def test_f5_directions_move_y_as_they_should(which, engine):
    known = fixtures.illusory_direction()
    vector, *values = known.directions[which]
    options = {"engine": engine, "allow_noop": True}
    way = known.model.W_E[known.corrupted.ids] - known.model.W_E[known.clean.ids]
    found = [
        swept(known, edit, **options).effect[0]
        for edit in (
            edits.add(vector, float(way[0, 0] @ vector)),
            edits.project_out(vector),
            edits.add(vector),
        )
    ]
    assert float(vector.norm()) == pytest.approx(1, **EXACT)
    assert found == pytest.approx(values, **EXACT)


def test_f5_the_data_show_which_part_is_dormant():
    known = fixtures.illusory_direction()
    on_data = {name: known.model.W_E @ d.vector for name, d in known.directions.items()}
    read = {name: float(known.model.W_U[:, 0] @ d.vector) for name, d in known.directions.items()}
    assert (on_data["dormant"] == 0).all() and read["dormant"] == 2
    assert (on_data["unread"].abs() == 1).all() and read["unread"] == 0
    assert on_data["illusory"].std() > 0 and read["illusory"] == pytest.approx(sqrt(2))

    cut = mutant(known, lambda m: m.W_U[1].zero_())  # nothing reads the dormant axis: no illusion
    moved = swept(cut, edits.add(known.directions["illusory"].vector)).effect[0]
    assert moved == pytest.approx(0, **EXACT)


@pytest.mark.parametrize("engine", ENGINES)
def test_f6_the_norm_hides_two_fifths_of_the_drop(engine):
    known = fixtures.hidden_by_norm()
    plain = swept(known, edits.patch(known.corrupted), engine=engine)
    edit = patch_but_hold(known.corrupted, SCALE)
    frozen = swept(known, edit, holding(known, SCALE), engine=engine)
    assert agrees(plain.baseline[0], "1.414") and agrees(plain.value[0], "1.000")
    assert agrees(frozen.value[0], ".707")
    assert frozen.effect.tolist() == pytest.approx(known.frozen, **EXACT)
    assert frozen.value[0] == pytest.approx(1 / sqrt(2), **EXACT)
    assert 1 - plain.effect[0] / frozen.effect[0] == pytest.approx(sqrt(2) - 1, **EXACT)

    both = swept(known, edits.patch(known.corrupted), holding(known, SCALE), engine=engine)
    assert both.effect[0] == pytest.approx(plain.effect[0], **EXACT)  # the scale is not held


def test_f6_first_order_with_the_scale_held():
    known = fixtures.hidden_by_norm()
    scale = known.model.run_with_cache(known.clean, SCALE)[1][SCALE]
    held = [(SCALE, lambda x, hook: scale)]
    for share in (0.0, 0.5):
        assert slopes(known, share, held) == pytest.approx(known.frozen, **EXACT)
    assert slopes(known) == pytest.approx([0.0], **EXACT)
