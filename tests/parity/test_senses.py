"""ViT and the decision transformer: as Hugging Face's, sites with their meaning, rerun as naive."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
from interp import Tokens, edits, metrics
from tests.parity.conftest import Pair
from tests.parity.families import build, save
from tests.parity.reference import relative_error, run
from tests.parity.senses import GRID, SENSES
from tests.parity.test_mutants import (
    FAINT,
    MISS,
    config,
    shift_positions,
    swap_norms,
    weights,
    zeroed,
)

AS_IT_IS, LIFTED = 1e-5, 1e-9
every_sense = pytest.mark.parametrize("name", SENSES)


@pytest.fixture(scope="session")
def sensed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Makes the pair of a family by name, once."""

    @cache
    def make(name: str) -> Pair:
        family = SENSES[name].family
        reference = build(family)
        folder = save(reference, tmp_path_factory.mktemp(name))
        return Pair(family, reference, interp.load(folder, dtype="float64"), folder)

    return make


def reference_of(this: Pair, name: str, *, lifted: bool = False) -> Any:
    return run(this.reference, this.family.layout, SENSES[name].inputs(), lifted=lifted)


def miss(ours: Tensor, reference: Tensor, name: str) -> float:
    """Of what is read of our output."""
    sense = SENSES[name]
    mask = None if sense.mask is None else sense.mask(sense.inputs())
    return relative_error(sense.read(ours), reference, mask)


@every_sense
@pytest.mark.parametrize("lifted", [False, True], ids=["as it is", "float64 islands"])
def test_output_and_sites(sensed, name: str, lifted: bool) -> None:
    this = sensed(name)
    reference = reference_of(this, name, lifted=lifted)
    tokens = SENSES[name].ours(this.ours, SENSES[name].inputs())
    output, cached = this.ours.run_with_cache(tokens, names_filter=list(reference.sites))
    found = {
        site: relative_error(cached[site], x, tokens.real) for site, x in reference.sites.items()
    }
    found["output"] = miss(output, reference.output, name)
    tolerance = LIFTED if lifted else AS_IT_IS
    assert {site: e for site, e in found.items() if not e <= tolerance} == {}
    assert miss(this.ours(tokens), reference.output, name) <= tolerance  # without a cache


@every_sense
def test_identities(sensed, name: str) -> None:
    model = sensed(name).ours
    frame = model.check_identities(SENSES[name].ours(model, SENSES[name].inputs()))
    assert frame[~frame["holds"]].empty


@every_sense
def test_folding_keeps_the_output(sensed, name: str) -> None:
    """Logits of labels move by a constant, actions not at all."""
    model = sensed(name).ours
    tokens = SENSES[name].ours(model, SENSES[name].inputs())
    before, after = model(tokens), model.folded()(SENSES[name].ours(model, SENSES[name].inputs()))
    if model.cfg.head == "none":  # without a reader the last norm stays
        assert relative_error(after, before, tokens.real) < LIFTED
    elif model.cfg.inputs == "patches":
        assert relative_error(after.log_softmax(-1), before.log_softmax(-1)) < LIFTED
    else:
        assert relative_error(after, before, tokens.real) < LIFTED
    again = model.folded()
    assert again.check_identities(SENSES[name].ours(again, SENSES[name].inputs()))["holds"].all()


@pytest.mark.parametrize("site", ["attn.hook_z", "hook_resid_pre", "hook_embed"])
@every_sense
def test_rerun_equals_naive(sensed, name: str, site: str) -> None:
    model = sensed(name).ours
    tokens, other = (SENSES[name].ours(model, SENSES[name].inputs(seed)) for seed in (0, 1))
    by = {"attn.hook_z": ("layer", "head"), "hook_embed": ("pos",)}.get(site, ("layer", "pos"))
    nodes = interp.nodes(model, site, by=by, tokens=tokens)
    role = "class" if model.cfg.inputs == "patches" else "state"
    right, wrong = torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1])
    metric = (
        metrics.cosine(torch.ones(model.cfg.d_model, dtype=torch.float64), pos=role)
        if model.cfg.head == "none"
        else metrics.logit_diff(right, wrong, pos=role)
    )
    options = {
        "edit": edits.patch(other),
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
    assert rerun.attrs["forward_equivalents"] < naive.attrs["forward_equivalents"] + (
        site == "hook_embed"  # of which nothing is saved
    )


# Mutants: what a run is given, changed between raw inputs and the first site.


def given(change: Callable[[Tokens], dict[str, Any]]) -> Callable[[Any, Tokens], Tensor]:
    return lambda model, tokens: model(dataclasses.replace(tokens, **change(tokens)))


def changed(mutation: Callable[[Any], Any]) -> Callable[[Any, Tokens], Tensor]:
    return lambda model, tokens: mutation(model)(tokens)


def remade(mutation: Callable[[Any], Any], name: str) -> Callable[[Any, Tokens], Tensor]:
    """The mutant makes the vectors too."""
    inputs = SENSES[name].inputs
    return lambda model, _: (lambda mutant: mutant(SENSES[name].ours(mutant, inputs())))(
        mutation(model)
    )


def class_last(model: Any, tokens: Tokens) -> Tensor:
    vectors = tokens.vectors.roll(-1, dims=1)
    return model(Tokens(None, vectors=vectors)).roll(1, dims=1)


def by_columns(tokens: Tokens) -> dict[str, Any]:
    grid = tokens.vectors[:, 1:].unflatten(1, GRID).transpose(1, 2).flatten(1, 2)
    return {"vectors": torch.cat([tokens.vectors[:, :1], grid], dim=1)}


def sort_steps(*order: int) -> Callable[[Tokens], dict[str, Any]]:
    """As if the three vectors of a step came in another order."""

    def change(tokens: Tokens) -> dict[str, Any]:
        return {"vectors": tokens.vectors.unflatten(1, (-1, 3))[:, :, list(order)].flatten(1, 2)}

    return change


def blocks_of_steps(tokens: Tokens) -> dict[str, Any]:
    """All returns, then all states, then all actions."""
    return {"vectors": tokens.vectors.unflatten(1, (3, -1)).transpose(1, 2).flatten(1, 2)}


def flip_channels(_: Any, copies: dict[str, Tensor]) -> None:
    copies["inputs.weight"] = copies["inputs.weight"].flip(1)


def flip_patches(_: Any, copies: dict[str, Tensor]) -> None:
    copies["inputs.weight"] = copies["inputs.weight"].flip(3)


def forget_first_row(this: Pair) -> Callable[[Any, Tokens], Tensor]:
    row = this.reference.get_submodule("encoder.wpe").weight[0]

    def change(_: Any, copies: dict[str, Tensor]) -> None:
        copies["embed_ln.b"] = copies["embed_ln.b"] - row

    return changed(weights(change))


VIT, DECISION = "vit", "decision_transformer"
MUTANTS: dict[tuple[str, str], Callable[[Any, Tokens], Tensor]] = {
    (VIT, "class vector at the end"): class_last,
    (VIT, "patches column by column"): given(by_columns),
    (VIT, "positions one off"): changed(weights(shift_positions)),
    (VIT, "no positions"): changed(zeroed("W_pos")),
    (VIT, "no class vector"): remade(zeroed("class_vector"), VIT),
    (VIT, "no bias of patches"): remade(zeroed("inputs.bias"), VIT),
    (VIT, "channels in reverse"): remade(weights(flip_channels), VIT),
    (VIT, "patches mirrored"): remade(weights(flip_patches), VIT),
    (VIT, "causal"): changed(config(causal=True)),
    (VIT, "norms swapped"): changed(weights(swap_norms)),
    (VIT, "norms behind the sublayers"): changed(config(norm_position="post")),
    (VIT, "no final norm"): changed(config(final_norm=False)),
    (VIT, "tanh for exact gelu"): changed(config(activation="gelu_tanh")),
    (VIT, "no bias of the logits"): changed(zeroed("unembed.bias")),
    (DECISION, "state before return"): given(sort_steps(1, 0, 2)),
    (DECISION, "action before state"): given(sort_steps(0, 2, 1)),
    (DECISION, "returns, then states, then actions"): given(blocks_of_steps),
    (DECISION, "positions counted by token"): given(
        lambda t: {"positions": torch.arange(t.shape[1]).expand(t.shape)}
    ),
    (DECISION, "mask not expanded per timestep"): given(
        lambda t: {"mask": t.mask[:, ::3].repeat(1, 3)}
    ),
    (DECISION, "no mask"): given(lambda t: {"mask": None}),
    (DECISION, "bidirectional"): changed(config(causal=False)),
    (DECISION, "no embedding norm"): changed(config(embed_norm=False)),
    (DECISION, "actions not squeezed"): changed(config(final_softcap=None)),
    (DECISION, "gelu"): changed(config(activation="gelu_tanh")),
    (DECISION, "no bias of states"): remade(zeroed("state_bias"), DECISION),
    ("decision_transformer-no-tanh-scaled", "actions squeezed"): changed(config(final_softcap=1.0)),
    ("decision_transformer-no-tanh-scaled", "scores alike in all layers"): changed(
        config(attn_scale_by_layer=False)
    ),
}


@pytest.mark.parametrize(
    ("name", "broken"), MUTANTS, ids=[f"{name}: {broken}" for name, broken in MUTANTS]
)
def test_mutant_misses(sensed, name: str, broken: str) -> None:
    this = sensed(name)
    reference = reference_of(this, name).output
    tokens = SENSES[name].ours(this.ours, SENSES[name].inputs())
    least = FAINT if "exact gelu" in broken else MISS
    assert miss(MUTANTS[name, broken](this.ours, tokens), reference, name) >= least


def test_without_the_first_position_vector_actions_miss(sensed) -> None:
    this = sensed(DECISION)
    tokens = SENSES[DECISION].ours(this.ours, SENSES[DECISION].inputs())
    mutant = forget_first_row(this)
    assert miss(mutant(this.ours, tokens), reference_of(this, DECISION).output, DECISION) >= MISS


@pytest.mark.parametrize("name", [VIT, DECISION])
def test_rebuilding_alone_misses_nothing(sensed, name: str) -> None:
    this = sensed(name)
    same = remade(weights(lambda cfg, copies: None), name)
    assert miss(same(this.ours, None), reference_of(this, name).output, name) < LIFTED


@every_sense
def test_saved_and_loaded_again(sensed, name: str, tmp_path) -> None:
    model = sensed(name).ours
    again = interp.load(interp.save(model, tmp_path))
    theirs, own = (SENSES[name].ours(m, SENSES[name].inputs()) for m in (model, again))
    assert again.cfg == model.cfg and again.labels == model.labels
    assert all(torch.equal(p, again.state_dict()[key]) for key, p in model.state_dict().items())
    assert relative_error(again(own), model(theirs), own.real) < LIFTED
    assert interp.info(tmp_path).n_params == model.num_params() == interp.num_params(model.cfg)


def test_labels_are_those_of_the_config(sensed) -> None:
    assert sensed(VIT).ours.labels == tuple(f"label {i}" for i in range(5))
    assert sensed("vit-no-head-no-bias").ours.labels == ()
