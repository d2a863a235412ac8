"""What users give in place of an activation is read in one place, and means the same in both
engines; or it raises."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp import edits, metrics
from interp.core.basis import random_orthonormal, span
from interp.core.tokens import Tokens
from interp.core.vectors import number, numbers, vector

from .strategies import random_model, small_config

IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [3, 3, 1, 4, 2]])
BATCH, WIDTH, HEADS = 3, 5, 4
DIFF = metrics.logit_diff(torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return random_model(small_config())


def drawn(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def both(model, edit, nodes, tokens=IDS, metric=DIFF):
    """Values of the nodes by the naive engine, which are also the rerun's."""
    naive, rerun = (
        interp.sweep(model, tokens, nodes, edit=edit, metric=metric, reduce="none", engine=engine,
                     progress=False, allow_noop=True)["value"].to_numpy()
        for engine in ("naive", "rerun")
    )  # fmt: skip
    assert np.allclose(naive, rerun, rtol=0, atol=1e-9)
    return naive


def difference(logits):
    """DIFF by hand."""
    rows = torch.arange(BATCH)
    return logits[rows, -1, torch.tensor([1, 2, 3])] - logits[rows, -1, torch.tensor([4, 5, 6])]


# Numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        [1, 2, 3], (1.0, 2.0, 3.0), np.array([1, 2, 3]), np.array([1.0, 2, 3], dtype=np.float32),
        torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3], dtype=torch.uint8), pd.Series([1, 2, 3]),
        [torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)], range(1, 4),
        torch.tensor([1.0, 2, 3]).requires_grad_(), torch.tensor([1, 2, 3]).bfloat16(),
    ],
    ids=lambda given: f"{type(given).__name__} {getattr(given, 'dtype', '')}",
)  # fmt: skip
def test_numbers_of_any_form_are_the_same_numbers(given):
    found = numbers(given, "x")
    assert found.is_floating_point() and found.tolist() == [1, 2, 3] and not found.requires_grad
    assert vector(given, "x").tolist() == [1, 2, 3]
    if isinstance(given, torch.Tensor):
        assert found.data_ptr() != given.data_ptr()  # what is changed afterwards is not read


NO_NUMBERS = {
    "a mask": [True, False],
    "a boolean": True,
    "a boolean tensor": torch.tensor([True, False]),
    "a boolean array": np.array([True]),
    "complex": torch.tensor([1j, 2]),
    "a complex number": 1 + 2j,
    "text": "1.0",
    "words": ["1", "2"],
    "nothing": None,
    "an object": object(),
    "a mapping": {"a": 1.0},
    "unequal rows": [[1.0, 2.0], [3.0]],
    "tensors of unequal length": [torch.ones(2), torch.ones(3)],
    "empty": [],
    "an empty tensor": torch.zeros(0, 32),
    "NaN": float("nan"),
    "infinity": [1.0, float("inf")],
    "NaN in an array": np.array([0.0, np.nan]),
    "a sparse tensor": torch.eye(3).to_sparse(),
    "a tensor without numbers": torch.ones(3, device="meta"),
    "too large": 10**400,
}
ENTRANCES = {
    "add": edits.add,
    "add's factor": lambda x: edits.add(torch.ones(32), x),
    "set_to": edits.set_to,
    "scale": edits.scale,
    "noise": edits.noise,
    "project_out": edits.project_out,
    "cosine": metrics.cosine,
    "pooled_cosine": lambda x: metrics.pooled_cosine(NOTHING if x is None else x),
}
NOTHING = object()


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("what", NO_NUMBERS)
def test_what_are_no_finite_numbers_is_refused_everywhere(unchecked, entrance, what):
    with pytest.raises(ValueError, match=r"finite|expected|empty|different|numbers"):
        ENTRANCES[entrance](NO_NUMBERS[what])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: edits.scale(torch.ones(3)), r"factor has the shape \[3\]: expected one number"),
        (lambda: edits.add(torch.ones(3), [1.0, 2.0]), "factor has the shape"),
        (lambda: edits.noise(-0.1), "sigma=-0.1: expected 0 or more"),
        (lambda: edits.noise(0.1, seed=1.5), "seed=1.5"),
        (lambda: edits.noise(0.1, seed=True), "seed=True"),
        (lambda: edits.resample(IDS, seed="a"), "seed='a'"),
        (lambda: metrics.cosine(torch.zeros(32)), "zero is no direction"),
        (lambda: metrics.cosine(torch.ones(3, 32)), "expected one vector"),
        (lambda: metrics.pooled_cosine(torch.eye(3)[:, :2]), "zero is no direction"),
        (lambda: metrics.function(len, of="cache"), "of='cache'"),
        (lambda: interp.Direction(torch.zeros(3), "s", "o"), "zero"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(unchecked, make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_number_is_one_number():
    for two in (2, 2.0, np.float32(2), np.int64(2), torch.tensor(2), torch.tensor([[2.0]]), [2]):
        assert number(two, "x") == 2.0


@pytest.mark.parametrize("kind", [int, np.int64, np.int8, torch.tensor])
def test_a_seed_of_any_integer_type_is_the_same_seed(unchecked, model, kind):
    nodes = [{"site": "z", "layer": 1}]
    for make in (
        lambda seed: edits.noise(0.5, seed),
        lambda seed: edits.resample(Tokens.of(IDS), seed),
    ):
        assert np.array_equal(both(model, make(kind(3)), nodes), both(model, make(3), nodes))


# How a value lies at a site ----------------------------------------------------------------------

PLACES = (None, WIDTH - 1, 1)
SITES = {  # widths of the last axis
    ("resid_pre", 1): 32, ("z", 1): 8, ("mlp.hook_post", 0): 64, ("pattern", 1): WIDTH,
    ("hook_embed", None): 32, ("ln1.hook_scale", 2): 1, ("result", 0): 32, ("k", 2): 8,
    ("hook_logits", None): 29, ("resid_post", 2): 32,
}  # fmt: skip


def shapes(site, axes, batch, lengths):
    """Every shape that a value may have, and what it is with all axes."""
    width = SITES[site]
    inner = [1] * (len(axes) - 2)
    full = [1 if axis in ("pos", "q_pos") else n for axis, n in zip(axes, lengths, strict=True)]
    yield [], [1] * len(axes)
    yield [width], [1, *inner, width]
    yield [batch, width], [batch, *inner, width]
    yield [batch, *inner, width], [batch, *inner, width]
    yield full, full
    yield [1, *full[1:]], [1, *full[1:]]


@pytest.mark.parametrize("site", SITES, ids=str)
def test_a_value_lies_as_its_shape_says_in_both_engines(model, site):
    """Against a hook by hand, at one position and at all."""
    name = model.sites[site if site[1] is not None else site[0]]
    lengths = list(model.run_with_cache(IDS, name.name)[1][name.name].shape)
    for i, (shape, whole) in enumerate(shapes(site, name.axes, BATCH, lengths)):
        value, action = drawn(*shape, seed=i) + 1.5, ("add", "set_to")[i % 2]
        edit = edits.set_to(value) if action == "set_to" else edits.add(value, 0.5)
        expected = []
        for pos in PLACES:
            at = [slice(None)] * len(lengths)
            at[name.pos_axis] = slice(None) if pos is None else slice(pos, pos + 1)

            def hand(x, hook, whole=whole, value=value, at=tuple(at), action=action):
                by = value.view(whole).expand_as(x)[at]
                x[at] = by if action == "set_to" else x[at] + 0.5 * by

            expected.append(difference(model.run_with_hooks(IDS, [(name.name, hand)])))
        nodes = [{"site": site[0], "layer": site[1], "pos": pos} for pos in PLACES]
        found = both(model, edit, nodes).reshape(len(PLACES), BATCH)
        assert np.allclose(found, torch.stack(expected), atol=1e-9), shape


def test_a_tensor_per_position_is_refused(model):
    """edits.add(D[5, d]) at the last position: .0023 by the naive engine and .535 by the rerun."""
    nodes = interp.nodes(model, "resid_pre", by=("layer", "pos"), positions=[-1])
    for make in (edits.add, edits.set_to):
        for engine in ("naive", "rerun"):
            with pytest.raises(ValueError, match=r"\[5, 32\] at a site of batch pos d_model"):
                interp.sweep(model, IDS, nodes, edit=make(drawn(5, 32)), metric=DIFF,
                             engine=engine, progress=False)  # fmt: skip


@pytest.mark.parametrize(
    ("site", "shape", "ids", "message"),
    [
        ("resid_pre", [WIDTH], IDS, "a vector of 5 for a site of width 32"),
        ("resid_pre", [1, 32], IDS, r"one for each example \[3, 32\]"),
        ("resid_pre", [2, 32], IDS, r"one for each example \[3, 32\]"),
        ("resid_pre", [32, 3], IDS, "expected one number"),
        ("resid_pre", [3, 5, 32], IDS, "edits.patch"),
        ("resid_pre", [3, 1, 1, 32], IDS, "expected one number"),
        (
            "resid_pre",
            [5, 32],
            IDS.repeat(2, 1)[:5],
            r"per example, or per pos\? Give \[5, 1, 32\]",
        ),
        ("z", [HEADS, 8], IDS, r"\[batch, 1, head, d_head\]"),
        (
            "z",
            [HEADS, 8],
            IDS.repeat(2, 1)[:4],
            r"or per head\? Give \[4, 1, 1, 8\].*\[1, 1, 4, 8\]",
        ),
        ("z", [5, 8], IDS.repeat(2, 1)[:5], r"or per pos\?"),
        ("z", [3, 4, 8], IDS, "expected one number"),
        ("z", [3, 5, 4, 8], IDS, "expected one number"),
        ("pattern", [3, 4, 5, 5], IDS, "expected one number"),
        ("pattern", [4, 5], IDS.repeat(2, 1)[:4], r"per example, or per head"),
        ("scale", [3], IDS, "a vector of 3 for a site of width 1"),
    ],
)
def test_another_shape_is_refused_alike(unchecked, model, site, shape, ids, message):
    node = [{"row": 0, "site": "ln1.hook_scale" if site == "scale" else site, "layer": 1, "pos": 4}]
    metric = metrics.log_prob(torch.ones(len(ids), dtype=torch.long))
    value = drawn(*shape)
    for edit in (edits.add(value), edits.set_to(value), edits.each({0: edits.add(value)})):
        for engine in ("naive", "rerun"):
            with pytest.raises(ValueError, match=message):
                interp.sweep(model, ids, node, edit=edit, metric=metric, engine=engine,
                             progress=False)  # fmt: skip


def test_one_example_and_one_head_mean_one_thing():
    """Nothing is in doubt where every meaning gives the same numbers."""
    model = random_model(small_config(n_heads=1))
    value, node, metric = drawn(1, 32), [{"site": "z", "layer": 1}], metrics.loss()
    alone = both(model, edits.add(value), node, IDS[:1], metric)
    assert np.array_equal(alone, both(model, edits.add(value[0]), node, IDS[:1], metric))


def test_a_value_beyond_the_precision_of_the_model_is_refused():
    model = random_model(small_config()).to(torch.float16)
    for make in (edits.set_to, lambda x: edits.add(1.0, x)):
        with pytest.raises(ValueError, match=r"100000.*beyond torch\.float16"):
            interp.sweep(model, IDS, [{"site": "z", "layer": 1}], edit=make(100000.0), metric=DIFF)


def test_a_value_is_read_when_the_edit_is_made(model):
    value, node = drawn(32), [{"site": "resid_pre", "layer": 1}]
    edit, removed = edits.add(value), edits.project_out(value)
    before = both(model, edit, node), both(model, removed, node)
    value.zero_()
    after = both(model, edit, node), both(model, removed, node)
    assert np.array_equal(before, after)


# Spans -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(1, 6), rank=st.integers(1, 4), seed=st.integers(0, 10**6),
    scales=st.lists(st.sampled_from([1e-30, 1e-3, 1.0, -2.0, 1e20]), min_size=6, max_size=6),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)  # fmt: skip
def test_a_basis_spans_what_the_directions_span(k, rank, seed, scales, dtype):
    """Dependent ones too, of any length: a least-squares fit on the directions agrees."""
    rows = drawn(k, rank, seed=seed) @ drawn(rank, 12, seed=seed + 1)
    rows = (rows * torch.tensor(scales[:k], dtype=torch.float64)[:, None]).to(dtype)
    basis = span(rows)
    assert basis.shape == (12, min(k, rank)) and basis.dtype == torch.float64
    assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    x = drawn(7, 12, seed=seed + 2).numpy()
    unit = (rows.double() / rows.double().norm(dim=1, keepdim=True)).numpy()
    fit = np.linalg.lstsq(unit.T, x.T, rcond=1e-6)[0]
    tolerance = 1e-4 if dtype == torch.float32 else 1e-8
    spread = np.linalg.svd(unit, compute_uv=False)
    if spread[min(k, rank) - 1] > 1e-2:  # else the fit itself is of few digits
        assert np.allclose(
            unit.T @ fit, (basis @ (basis.T @ torch.from_numpy(x.T))).numpy(), atol=tolerance
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rounding_adds_no_direction(dtype):
    a, b = drawn(2, 64)
    rows = torch.stack([a, b, a + b, a - 3 * b, a]).to(dtype)
    assert span(rows).shape == (64, 2)
    assert span(drawn(10, 64).to(dtype)).shape == (64, 10)
    assert span(torch.eye(3).to(dtype)).shape == (3, 3)


@pytest.mark.parametrize("wrong", [torch.zeros(8), torch.zeros(3, 8), torch.tensor(1.0),
                                   torch.ones(2, 2, 8), torch.eye(3, 2)])  # fmt: skip
def test_no_direction_spans_nothing(unchecked, wrong):
    with pytest.raises(ValueError, match=r"zero is no direction|expected one vector"):
        span(wrong)


@pytest.mark.parametrize("site", ["resid_pre", "z"])
def test_dependent_directions_are_projected_out_once(model, site):
    """stack([d, d]) removed another direction besides."""
    width = SITES[site, 1]
    nodes = [{"site": site, "layer": 1, "pos": pos} for pos in (1, 4)]
    d, other = drawn(2, width)
    one = both(model, edits.project_out(d), nodes)
    for same in ([d, d], [d, -3 * d], [d, d * 1e-12], [d, d, d, 1e9 * d], [d[None][0]],
                 d.numpy()[None], d.tolist()):  # fmt: skip
        same = (
            torch.stack(same) if isinstance(same, list) and not isinstance(same[0], float) else same
        )
        assert np.allclose(both(model, edits.project_out(same), nodes), one, atol=1e-9)
    two = both(model, edits.project_out(torch.stack([d, other])), nodes)
    assert not np.allclose(two, one)
    for same in ([d, other, d + other], [other, d, d], [d, d + 1e-3 * other]):
        assert np.allclose(both(model, edits.project_out(torch.stack(same)), nodes), two, atol=1e-8)
    unit = d / d.norm()

    def hand(x, hook):
        return x - (x @ unit)[..., None] * unit

    expected = difference(model.run_with_hooks(IDS, [((site, 1), hand)]))
    node = [{"site": site, "layer": 1}]
    assert np.allclose(both(model, edits.project_out(d), node), expected, atol=1e-9)


def test_directions_of_another_width_are_refused(model):
    with pytest.raises(ValueError, match=r"directions of 32 numbers at 'blocks\.1\.attn\.hook_z'"):
        both(model, edits.project_out(drawn(2, 32)), [{"site": "z", "layer": 1}])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_projected_in_single(dtype):
    model = random_model(small_config()).to(dtype)
    d = drawn(32).to(dtype)
    _, cache = model.run_with_cache(IDS, ("resid_pre", 1))
    replace = edits.project_out(d).bind(model, model.accept(IDS), ["blocks.1.hook_resid_pre"])
    rows = edits.Rows(model.sites["resid_pre", 1], torch.arange(3), [0] * 3)
    x = cache["resid_pre", 1]
    unit = d.double() / d.double().norm()
    exact = x.double() - (x.double() @ unit)[..., None] * unit
    assert torch.equal(replace(x, rows), exact.to(dtype)) or torch.allclose(
        replace(x, rows).double(), exact, rtol=0, atol=float(x.abs().max()) * torch.finfo(dtype).eps
    )


def test_random_columns_are_orthonormal():
    for shape in [(5, 5), (7, 3), (4, 6, 6), (2, 9, 2)]:
        q = random_orthonormal(*shape, generator=torch.Generator().manual_seed(0))
        assert q.shape == shape
        assert torch.allclose(q.mT @ q, torch.eye(shape[-1], dtype=torch.float64).expand(
            *shape[:-2], shape[-1], shape[-1]))  # fmt: skip


# Values of other runs ----------------------------------------------------------------------------


def padded(side, rows=((1, 2, 3, 4, 5), (6, 7, 8), (9, 1, 4, 2))):
    return Tokens.from_rows([list(row) for row in rows], side=side)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("make", "whose"),
    [
        (lambda other: edits.mean(other, per="pos"), "every row of the reference has a pad"),
        (edits.resample, "a row of the reference has a pad"),
        (edits.patch, "the same example has a pad"),
        (lambda other: edits.each({0: edits.patch(other)}), "the same example has a pad"),
    ],
)
def test_a_pad_stands_for_no_real_token(unchecked, model, side, make, whose):
    engine = "naive" if side == "left" else "rerun"
    short = padded(side, ((1, 2, 3), (6, 7, 8, 0)[:3], (9, 1, 4), (1, 1, 1, 1, 1))[:4])
    mask = short.mask[:3] if "same" in whose or "every" in whose else short.mask[[0, 1, 3]]
    other = Tokens(IDS.flip(0), mask=mask)
    edge = 0 if side == "left" else WIDTH - 1
    options = {"edit": make(other), "metric": metrics.loss(), "engine": engine, "progress": False}
    with pytest.raises(ValueError, match=f"position {edge if side == 'left' else 3} .*{whose}"):
        interp.sweep(model, IDS, [{"row": 0, "site": "z", "layer": 1}], **options)
    with pytest.raises(ValueError, match=f"position {edge} .*{whose}"):
        interp.sweep(model, IDS, [{"row": 0, "site": "z", "layer": 1, "pos": edge}], **options)
    inside = [{"row": 0, "site": "z", "layer": 1, "pos": 2}]
    assert np.isfinite(interp.sweep(model, IDS, inside, **options)["effect"]).all()
    same = Tokens(IDS, mask=other.mask)  # pads of both runs at the same places
    if "a row" not in whose:
        interp.sweep(model, same, [{"row": 0, "site": "z", "layer": 1}], **options)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_role_is_edited_where_it_is(model, side):
    """Rows of unequal length, patched at their last real token alone."""
    ours, theirs = padded(side), padded(side, ((1, 2, 3, 4, 4), (6, 7, 7), (9, 1, 4, 4)))
    last = metrics.one_position(None, ours)[:, 0]
    ours = Tokens(ours.ids, mask=ours.mask, roles={"end": last})
    shorter = Tokens(theirs.ids, mask=ours.mask & (torch.arange(WIDTH) > 0))
    node = [{"site": "resid_post", "layer": 1, "role": "end"}]
    interp.sweep(model, ours, node, edit=edits.patch(shorter), metric=DIFF, progress=False)
    with pytest.raises(ValueError, match="position 0 of example 0"):
        interp.sweep(model, ours, [{"site": "resid_post", "layer": 1}], edit=edits.patch(shorter),
                     metric=DIFF, progress=False)  # fmt: skip


def test_a_mean_per_position_is_that_of_its_real_tokens(model):
    """Ablating by it, in both engines and by hand."""
    reference = padded("right")
    frame = interp.ablate(model, IDS, "z", by=("layer",), kind="mean", per="pos",
                          reference=reference, metric=DIFF, progress=False)  # fmt: skip
    z = model.run_with_cache(reference, "z")[1]
    weights = reference.real.double()
    for layer in range(3):
        mean = torch.einsum("bp,bphd->phd", weights, z["z", layer]) / weights.sum(0)[:, None, None]
        logits = model.run_with_hooks(IDS, [(("z", layer), lambda x, hook, m=mean: m.expand_as(x))])
        expected = float(difference(logits).mean())
        assert frame["value"][layer] == pytest.approx(expected, abs=1e-9)
    all_alike = interp.ablate(model, IDS, "z", kind="mean", per="all", metric=DIFF, progress=False)
    usual = interp.ablate(model, IDS, "z", metric=DIFF, progress=False)
    assert all_alike.equals(usual) and frame["edit"].eq("mean per pos").all()


@pytest.mark.parametrize("kind", ["zero", "resample"])
def test_per_goes_with_a_mean(unchecked, model, kind):
    with pytest.raises(ValueError, match="per='pos' goes with kind='mean'"):
        interp.ablate(model, IDS, "z", kind=kind, per="pos", metric=DIFF)
    with pytest.raises(ValueError, match="per='position'"):
        interp.ablate(model, IDS, "z", per="position", metric=DIFF)


# Functions of the user's -------------------------------------------------------------------------

LABELS = torch.tensor([3.0, -20.0, 7.0], dtype=torch.float64)


def by_row(logits, examples):
    return logits[:, -1].logsumexp(-1) * LABELS[examples]


def by_name(logits, *, examples):
    return by_row(logits, examples)


def with_default(logits, scale=1.0, examples=None):
    return by_row(logits, examples) * scale


class Labelled:
    def __call__(self, logits, rows):
        return by_row(logits, rows)


@pytest.mark.parametrize("fn", [by_row, by_name, with_default, Labelled()],
                         ids=lambda fn: getattr(fn, "__name__", "object"))  # fmt: skip
def test_a_function_of_rows_knows_its_examples(model, fn):
    """Labels held outside: neurons of effect 0 came out as +26.7 and +28.6."""
    nodes = interp.nodes(model, "mlp.hook_post", by=("layer", "neuron"), layers=[2],
                         neurons=range(2))  # fmt: skip
    found = both(model, edits.add(0.0), nodes, metric=metrics.function(fn))
    base = (model(IDS)[:, -1].logsumexp(-1) * LABELS).numpy()
    assert np.allclose(found.reshape(2, BATCH), base)
    both(
        model,
        edits.zero(),
        interp.nodes(model, "z", by=("layer", "head")),
        metric=metrics.function(fn),
    )
    frame = interp.sweep(model, IDS, nodes, edit=edits.zero(), metric=metrics.function(fn),
                         progress=False)  # fmt: skip
    assert frame.attrs["engine"] == "rerun"


def whole(logits):
    assert len(logits) == BATCH
    return logits[:, -1].logsumexp(-1) * LABELS


@pytest.mark.parametrize(
    "fn",
    [whole, lambda logits, scale=1.0: whole(logits), lambda *given: whole(*given),
     lambda examples: whole(examples)],
)  # fmt: skip
def test_a_function_of_the_output_alone_gets_the_whole_batch(model, fn):
    metric = metrics.function(fn)
    nodes = interp.nodes(model, "z", by=("layer",))
    options = {"edit": edits.zero(), "metric": metric, "progress": False}
    frame = interp.sweep(model, IDS, nodes, **options)
    assert frame.attrs["engine"] == "naive" and "all examples at once" in frame.attrs["why"]
    by_rows = interp.sweep(model, IDS, nodes, **options | {"metric": metrics.function(by_row)})
    assert np.allclose(frame["value"], by_rows["value"])
    with pytest.raises(ValueError, match=r"fn\(output, examples\).*use engine='naive'"):
        interp.sweep(model, IDS, nodes, engine="rerun", **options)


@pytest.mark.parametrize("fn", [lambda: 0, lambda a, b, c: 0, 5, lambda *, logits: 0])
def test_a_function_that_cannot_be_called_is_refused(unchecked, fn):
    for make in (metrics.function, lambda fn: metrics.cache_function(fn, "z")):
        with pytest.raises(ValueError, match=r"fn(\(|: | is 5)"):
            make(fn)


def test_a_function_of_a_cache_may_know_its_examples(model):
    def fn(cache, examples):
        return cache["z", 2][:, -1, 0, 0] * LABELS[examples]

    metric = metrics.cache_function(fn, ("z", 2))  # a pair is one site
    frame = interp.sweep(model, IDS, [{"site": "z", "layer": 0}], edit=edits.zero(), metric=metric,
                         progress=False)  # fmt: skip
    _, cache = model.run_with_cache(IDS, ("z", 2))
    assert frame["baseline"][0] == pytest.approx(
        float((cache["z", 2][:, -1, 0, 0] * LABELS).mean())
    )
