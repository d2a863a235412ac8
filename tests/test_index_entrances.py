"""Every entrance that takes indices, against every way to write them: all read them alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from interp import edits, metrics
from interp.core.tokens import Tokens
from interp.data.tasks.pairs import Pairs
from interp.methods.ablation import second_removals
from interp.methods.attribution import logit_attribution
from interp.methods.lens import logit_lens, top_tokens
from interp.methods.neurons import neuron_logits, neuron_stats, top_activations
from interp.methods.paths import path_patch
from interp.methods.tracing import causal_trace

from .strategies import random_model, small_config
from .written_indices import NONE_AT_ALL, READ, READ_ALONE, REFUSED, REFUSED_ALONE, TWICE

LAYERS, HEADS, NEURONS, WIDTH, BATCH, VOCABULARY = 4, 4, 8, 5, 4, 29
MODEL = random_model(
    small_config(n_layers=LAYERS, n_heads=HEADS, d_mlp=NEURONS, d_model=16, d_vocab=VOCABULARY)
)
IDS = torch.randint(1, VOCABULARY, (BATCH, WIDTH), generator=torch.Generator().manual_seed(2))
ANSWER = torch.tensor([3, 1, 4, 1])
TOKENS = Tokens(IDS)
END = {"end": torch.full((BATCH,), WIDTH - 1)}
PAIRS = Pairs("own", Tokens(IDS, roles=END), Tokens(IDS % 28 + 1, roles=END), ANSWER, ANSWER + 9)


class Entrance(NamedTuple):
    """A call that takes indices of an axis; what it returns depends on them alone."""

    size: int
    call: Callable[[Any], Any]
    ordered: bool = True
    """Whether the order in which they are given counts."""


def swept(node: dict) -> list[float]:
    frame = interp.sweep(
        MODEL, IDS, [{"site": "attn.hook_z", "layer": 1} | node], edit=edits.zero(),
        metric=metrics.loss(), progress=False,
    )  # fmt: skip
    return frame["value"].tolist()


def measured(pos: Any) -> list[float]:
    bound = metrics.logit_diff(ANSWER, ANSWER + 9, pos=pos).bind(MODEL, TOKENS, lambda *_: None)
    every = torch.arange(BATCH)
    return bound.measure(bound.pick(MODEL(IDS), every), every).tolist()


def patched(**options: Any) -> list[float]:
    return path_patch(MODEL, PAIRS, progress=False, **options)["effect"].tolist()


ONE = {
    "stop_at_layer": Entrance(LAYERS, lambda i: MODEL(IDS, stop_at_layer=i).tolist()),
    "pos of run_with_cache": Entrance(
        WIDTH, lambda i: MODEL.run_with_cache(IDS, "z", pos=i)[1]["z", 1].tolist()
    ),
    "a pair of site and layer": Entrance(
        LAYERS, lambda i: MODEL.run_with_cache(IDS, ("z", i))[1]["z", i].tolist()
    ),
    "a pair in a list": Entrance(LAYERS, lambda i: MODEL.sites.select(["hook_embed", ("z", i)])),
    "a pair of a hook": Entrance(
        LAYERS, lambda i: MODEL.run_with_hooks(IDS, [(("z", i), lambda z, hook: z * 0)]).tolist()
    ),
    "a frame's layer": Entrance(LAYERS, lambda i: swept({"layer": i})),
    "a frame's head": Entrance(HEADS, lambda i: swept({"head": i})),
    "a frame's position": Entrance(WIDTH, lambda i: swept({"pos": i})),
    "a frame's neuron": Entrance(NEURONS, lambda i: swept({"site": "mlp.hook_post", "neuron": i})),
    "a metric's position": Entrance(WIDTH, measured),
    "a lens's position": Entrance(
        WIDTH, lambda i: logit_lens(MODEL, IDS, pos=i)["entropy"].tolist()
    ),
    "an attribution's position": Entrance(
        WIDTH, lambda i: logit_attribution(MODEL, IDS, ANSWER, pos=i)["value"].tolist()
    ),
    "a sender's layer": Entrance(LAYERS, lambda i: patched(senders=[(i, 0)])),
    "a sender's head": Entrance(HEADS, lambda i: patched(senders=[(0, i)])),
    "a receiver's layer": Entrance(
        LAYERS, lambda i: patched(senders=[(0, 0)], receivers=("q", i, 0))
    ),
    "a receiver's head": Entrance(
        HEADS, lambda i: patched(senders=[(0, 0)], receivers=("v", 2, i))
    ),
    "a neuron's layer": Entrance(LAYERS, lambda i: neuron_logits(MODEL, [(i, 0)]).tolist()),
    "a neuron's number": Entrance(
        NEURONS, lambda i: top_activations(MODEL, IDS, [(1, i)])["value"].tolist()
    ),
    "a row of tokens": Entrance(BATCH, lambda i: TOKENS[i].ids.tolist()),
    "a row of pairs": Entrance(BATCH, lambda i: PAIRS[i].answer.tolist()),
}  # fmt: skip
"""One index."""
SEVERAL = {
    "pos of run_with_cache": ONE["pos of run_with_cache"],
    "layers of a lens": Entrance(
        LAYERS + 1, lambda i: logit_lens(MODEL, IDS, layers=i)["layer"].tolist(), ordered=False
    ),
    "layers of a lens's tokens": Entrance(
        LAYERS + 1, lambda i: top_tokens(MODEL, IDS, 1, layers=i)["layer"].tolist(), ordered=False
    ),
    "layers of an attribution": Entrance(
        LAYERS,
        lambda i: logit_attribution(MODEL, IDS, ANSWER, layers=i)[["layer", "head"]]
        .value_counts().sort_index().index.tolist(),
        ordered=False,
    ),
    "layers of neurons": Entrance(
        LAYERS, lambda i: neuron_stats(MODEL, IDS, layers=i)["layer"].tolist(), ordered=False
    ),
    "layers of a trace": Entrance(
        LAYERS,
        lambda i: causal_trace(MODEL, IDS, IDS > 12, ANSWER, layers=i, sites=["hook_resid_post"],
                               draws=1, sigma=0.1, progress=False)["layer"].tolist(),
    ),
    "positions of probes": Entrance(
        WIDTH,
        lambda i: interp.probe_sweep(
            {"x": np.random.default_rng(0).normal(size=(20, WIDTH, 3))}, np.arange(20) % 2,
            positions=i, control=False, cv=2, progress=False,
        )["pos"].tolist(),
    ),
    "firsts of second removals": Entrance(
        HEADS,
        lambda i: second_removals(
            MODEL, IDS, interp.nodes(MODEL, "z", by="head", layers=[1]), i, edit=edits.zero(),
            metric=metrics.loss(), progress=False,
        )["first"].tolist(),
    ),
}  # fmt: skip
"""Several of them."""
LABELS = ("firsts of second removals",)
"""Names of rows, which have no end to count from."""


SLOW = ("sender", "receiver", "trace", "probes", "second removals", "attribution")
"""Words in the names of entrances whose calls take long: some forms stand for all."""


def cases(entrances: dict[str, Entrance], forms: Any) -> list[tuple[str, str]]:
    """Every entrance with every form; of those that take long, with every fifth."""
    return [
        (entrance, form)
        for entrance in entrances
        for i, form in enumerate(forms)
        if i % 5 == 0 or not any(word in entrance for word in SLOW)
    ]


def same(one: Any, other: Any) -> bool:
    first, second = np.asarray(one), np.asarray(other)
    return bool(np.array_equal(first, second, equal_nan=first.dtype.kind == "f"))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("entrance", "form"), cases(ONE, READ_ALONE))
def test_one_index_is_a_whole_number_of_any_type(entrance, form):
    size, call, _ = ONE[entrance]
    value, meant = READ_ALONE[form]
    if "layer" in entrance and ("sender" in entrance or "receiver" in entrance):
        value, meant = {2: (value, 2), 1: (value, 1)}.get(meant, (np.int64(-2), -2))
    assert same(call(value), call(meant % size))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("entrance", "form"), cases(ONE, REFUSED_ALONE))
def test_what_is_no_index_is_refused(entrance, form):
    value = REFUSED_ALONE[form]
    if entrance.startswith("a frame's") and form == "NaN":
        return  # how pandas writes a blank, which means all
    with pytest.raises(ValueError):  # noqa: PT011  # its words are those of test_indices
        ONE[entrance].call(value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("entrance", ONE)
def test_both_ends_of_an_axis_are_where_they_are(entrance, offset):
    size, call, _ = ONE[entrance]
    behind = size + (entrance == "stop_at_layer")
    for value in (behind + offset, -size - 1 - offset):
        with pytest.raises(ValueError):  # noqa: PT011
            call(value)
    if "layer" not in entrance:
        assert same(call(-size), call(0))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("entrance", "form"), cases(SEVERAL, [*READ_ALONE, *READ]))
def test_several_indices_are_whole_numbers_in_any_container(entrance, form):
    size, call, ordered = SEVERAL[entrance]
    value, meant = READ_ALONE[form] if form in READ_ALONE else (READ[form][0](), READ[form][1])
    meant = [meant] if isinstance(meant, int) else meant
    if entrance in LABELS and min(meant) < 0:
        with pytest.raises(ValueError, match="the nodes have the rows 0 to 3"):
            call(value)
        return
    plain = [i % size for i in meant]
    assert same(call(value), call(plain if ordered else sorted(plain)))


BAD = {
    **REFUSED_ALONE, **REFUSED, "text": "1", "text in a list": ["1"], "slice": slice(True, 2),
    **{f"no {form}": value for form, value in NONE_AT_ALL.items()},
    **{f"twice {form}": value for form, value in TWICE.items()},
}  # fmt: skip


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("entrance", "form"), cases(SEVERAL, BAD))
def test_lists_that_are_no_indices_are_refused(entrance, form):
    with pytest.raises(ValueError):  # noqa: PT011  # its words are those of test_indices
        SEVERAL[entrance].call(BAD[form])


PER_ROW = {
    "list": [3, 1, 0, -1],
    "array": np.array([3, 1, 0, -1], dtype=np.int32),
    "tensor": torch.tensor([3, 1, 0, -1], dtype=torch.int16),
    "column": pd.Series([3, 1, 0, 4], dtype="Int64"),
    "list of any": [np.int64(3), torch.tensor(1), 0, -1],
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("form", PER_ROW)
def test_a_position_for_every_row(form):
    expected = measured(torch.tensor([3, 1, 0, 4]))
    assert measured(PER_ROW[form]) == expected
    by_hand = MODEL(IDS)[torch.arange(BATCH), torch.tensor([3, 1, 0, 4])]
    rows = torch.arange(BATCH)
    assert np.allclose(expected, by_hand[rows, ANSWER] - by_hand[rows, ANSWER + 9])


BAD_PER_ROW = {
    **{form: value for form, value in REFUSED.items() if form != "nested list"},
    "nested list": [[0], [1], [2], [3]], "mask of the batch": IDS > 12, "too few": [0, 1],
    "one in a list": [3], "beyond": [0, 1, 2, WIDTH], "text": "1", "none": [],
}  # fmt: skip


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("form", BAD_PER_ROW)
def test_positions_that_are_not_one_for_every_row_are_refused(form):
    with pytest.raises(ValueError, match="pos"):
        measured(BAD_PER_ROW[form])


ANSWERS = {
    "list": [3, 1, 4, 1],
    "array": np.array([3, 1, 4, 1], dtype=np.uint8),
    "int32 tensor": ANSWER.int(),
    "column": pd.Series([3, 1, 4, 1], dtype="Int64"),
    "sets of one": [[3], [1], [4], [1]],
}
BAD_ANSWERS = {
    "floats": [3.0, 1.0, 4.0, 1.0],
    "float tensor": ANSWER.float(),
    "mask": ANSWER > 2,
    "list of booleans": [True, False, True, False],
    "a boolean": [3, True, 4, 1],
    "negative": [3, 1, -4, 1],
    "beyond the vocabulary": [3, 1, VOCABULARY, 1],
    "None": [3, None, 4, 1],
    "text": ["3", "1", "4", "1"],
    "uneven sets": [[3], [1, 2], [4], [1]],
    "too few": [3, 1],
    "none of each": [[], [], [], []],
    "a column with a blank": pd.Series([3, None, 4, 1], dtype="Int64"),
}


def read_answers() -> dict[str, Callable[[Any], Any]]:
    def swept_by(metric) -> list[float]:
        return interp.sweep(
            MODEL, IDS, [{"site": "hook_embed"}], edit=edits.scale(2.0), metric=metric,
            progress=False,
        )["value"].tolist()  # fmt: skip

    other = torch.full((BATCH,), 20)
    return {
        "logit_diff": lambda ids: swept_by(metrics.logit_diff(ids, other)),
        "log_prob": lambda ids: swept_by(metrics.log_prob(ids)),
        "rank": lambda ids: swept_by(metrics.rank(ids)),
        "accuracy": lambda ids: swept_by(metrics.accuracy(ids)),
        "logit_lens": lambda ids: logit_lens(MODEL, IDS, ids)["prob"].tolist(),
        "logit_attribution": lambda ids: logit_attribution(MODEL, IDS, ids)["value"].tolist(),
    }


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("form", ANSWERS)
@pytest.mark.parametrize("entrance", read_answers())
def test_answers_are_ids_of_any_integer_type(entrance, form):
    call = read_answers()[entrance]
    assert same(call(ANSWERS[form]), call(ANSWER))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("form", BAD_ANSWERS)
@pytest.mark.parametrize("entrance", read_answers())
def test_answers_that_are_no_ids_are_refused(entrance, form):
    with pytest.raises(ValueError, match=r"answer ids|ids of shape"):
        read_answers()[entrance](BAD_ANSWERS[form])


def test_a_position_that_is_a_pad_is_refused():
    right = Tokens.from_rows([[5, 6, 7, 8], [9, 4]])
    answer = torch.tensor([1, 2])
    for pos in (-1, 3, torch.tensor([3, 2])):
        with pytest.raises(ValueError, match="of row 1 is a pad; pos=None reads the last real"):
            metrics.log_prob(answer, pos=pos).bind(MODEL, right, lambda *_: None)
    left = Tokens.from_rows([[5, 6, 7, 8], [9, 4]], side="left")
    for tokens, pos in ((right, torch.tensor([3, 1])), (left, -1)):
        given, default = (
            metrics.log_prob(answer, pos=at).bind(MODEL, tokens, lambda *_: None).positions
            for at in (pos, None)
        )
        assert torch.equal(given, default)


@pytest.mark.usefixtures("unchecked")
def test_sets_without_order_are_read_too():
    assert logit_lens(MODEL, IDS, layers={0, 2})["layer"].unique().tolist() == [0, 2]
    assert math.isclose(*measured(WIDTH - 1)[:1], *measured(-1)[:1])
