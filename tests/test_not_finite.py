"""NaN, infinity and overflow, in every weight that a run passes: each verb and method either raises
and names the place, or gives the numbers that the sound model gives, the fault not being reached.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
from interp import edits
from interp.core.finite import NotFinite
from interp.model import HookedTransformer

from . import calls

pytestmark = pytest.mark.usefixtures("unchecked")  # a thousand calls, whose shapes others check
NAN, INF = float("nan"), float("inf")
PLACE = re.compile(
    r"'(\w+\.)*hook_\w+'|blocks\.\d|embed\.W_\w|unembed\.|ln_final\.w|factor [AB]"
    r"|of hook_\w+, layer"
)
"""A site, a weight, the factor of a product, or whose activations."""


def weights(model: HookedTransformer) -> dict[str, tuple[Tensor, tuple[int, ...], float]]:
    """Per fault: the parameter, the entry, and what stands there."""
    first, last = model.blocks[0], model.blocks[1]
    d_head = model.cfg.d_head
    return {
        "a word vector": (model.embed.W_E, (4, 3), NAN),
        "a word vector that no text reads": (model.embed.W_E, (28, 3), INF),
        "a position": (model.embed.W_pos, (2, 0), -INF),
        "W_Q of a head": (last.attn.qkv_weight, (2 * d_head + 1, 3), NAN),
        "W_V of a head": (first.attn.qkv_weight, (9 * d_head + 2, 5), INF),
        "W_O of a head": (last.attn.out_weight, (0, d_head), -INF),
        "a bias of the MLP": (first.mlp.in_bias, (7,), NAN),
        "W_out of a neuron": (last.mlp.out_weight, (3, 9), INF),
        "the last norm": (model.ln_final.w, (1,), NAN),
        "a column of W_U": (model.unembed.weight, (21, 2), NAN),
        "infinity in W_U": (model.unembed.weight, (26, 2), INF),
    }


FAULTS = list(weights(calls.tiny()))


def broken(fault: str) -> HookedTransformer:
    model = calls.tiny()
    parameter, at, value = weights(model)[fault]
    with torch.no_grad():
        parameter[at] = value
    return model


def overflowing(dtype: torch.dtype) -> HookedTransformer:
    """Finite weights, times 10⁴ in one place: what the MLP writes passes float16's 65504."""
    model = calls.tiny()
    with torch.no_grad():
        model.blocks[0].mlp.out_weight *= 1e4
    return model.to(dtype)


def all_numbers(result: object) -> dict[str, np.ndarray]:
    found = calls.numbers(result)
    if isinstance(result, Tensor) and not result.is_floating_point():
        found["ids"] = result.numpy().astype(float)
    return found


def check_raises_or_right(
    call: Callable, model: HookedTransformer, sound: HookedTransformer, tolerance: float
) -> None:
    result, refused = None, ""
    try:
        result = call(model)
    except ValueError as error:
        refused = str(error)
    if refused:
        assert PLACE.search(refused), f"this names no place: {refused}"
        return
    expected = all_numbers(call(sound))
    for column, numbers in all_numbers(result).items():
        size = max(1.0, np.nan_to_num(np.abs(expected[column])).max(initial=0))
        np.testing.assert_allclose(
            numbers, expected[column], atol=tolerance * size, rtol=0, err_msg=column
        )


@pytest.mark.parametrize("name", calls.CALLS)
def test_a_fault_is_named_or_not_reached(name):
    for fault in FAULTS:
        check_raises_or_right(calls.CALLS[name], broken(fault), calls.tiny(), 1e-5)


@pytest.mark.parametrize("name", calls.CALLS)
def test_an_overflow_is_named_or_not_reached(name):
    half, single = overflowing(torch.float16), overflowing(torch.float32)
    check_raises_or_right(calls.CALLS[name], half, single, 2e-2)


@pytest.mark.parametrize(
    ("fault", "site", "weight"),
    [
        ("a word vector", "hook_embed", "the word vector of id 4"),
        ("a position", "hook_pos_embed", "embed.W_pos holds -inf at [2, 0]"),
        ("W_Q of a head", "blocks.1.attn.hook_q", "head 2 of W_Q"),
        ("W_V of a head", "blocks.0.attn.hook_v", "head 1 of W_V"),
        ("W_O of a head", "blocks.1.hook_attn_out", "head 1 of W_O"),
        ("a bias of the MLP", "blocks.0.mlp.hook_pre", "neuron 7 of b_in"),
        ("W_out of a neuron", "blocks.1.hook_mlp_out", "neuron 9 of W_out"),
        ("a column of W_U", "hook_logits", "the logit of id 21"),
    ],
)
def test_the_first_site_and_the_weight_are_named(fault, site, weight):
    with pytest.raises(NotFinite) as raised:
        calls.CALLS["sweep loss"](broken(fault))
    text = str(raised.value)
    assert f"first site with such numbers is {site!r}" in text and weight in text


@pytest.mark.parametrize("engine", ["rerun", "naive"])
@pytest.mark.parametrize(
    ("edit", "site"),
    [
        *((edits.scale(1e300), site) for site in ("q", "k", "z", "mlp.hook_post", "attn_scores")),
        *((edits.set_to(-INF), site) for site in ("q", "k", "z", "mlp.hook_post")),
    ],
    ids=lambda given: given if isinstance(given, str) else given.name,
)
def test_an_edit_that_puts_what_is_not_finite_names_its_node(engine, edit, site):
    """Fused attention answers a query that is NaN with zeros: the result alone would be finite."""
    model = calls.tiny()
    nodes = interp.nodes(model, site, by=("layer",), layers=[1])
    with pytest.raises(NotFinite, match=r"node blocks\.1\..*the unedited run is finite"):
        interp.sweep(
            model, calls.ROWS, nodes, edit=edit, metric=calls.metric(), engine=engine,
            progress=False,
        )  # fmt: skip


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_values_that_are_not_finite_are_refused_before_a_run(value):
    for make in (edits.set_to, edits.add, edits.scale, edits.noise):
        if make is edits.set_to and value == -INF:
            continue  # a score that hides a key
        with pytest.raises(ValueError, match="not finite"):
            make(value)
    for make in (edits.add, edits.project_out):
        with pytest.raises(ValueError, match="not finite"):
            make(torch.tensor([1.0, value]))


@pytest.mark.parametrize("engine", ["rerun", "naive"])
def test_a_score_of_minus_infinity_hides_a_key(engine):
    model = calls.tiny()
    by = ("layer", "k_pos")
    nodes = interp.nodes(model, "attn_scores", by=by, layers=[1], positions=[2, 3])
    hidden, low = (
        interp.sweep(
            model, calls.ROWS, nodes, edit=edits.set_to(score), metric=calls.metric(),
            engine=engine, progress=False,
        )["value"]
        for score in (-INF, -1e30)
    )  # fmt: skip
    assert np.isfinite(hidden).all()
    np.testing.assert_allclose(hidden, low, rtol=0, atol=1e-6)
