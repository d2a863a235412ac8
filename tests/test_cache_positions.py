"""A cache knows which positions it holds, and whatever reads one uses those or refuses it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import interp
from interp import edits, metrics
from interp.core.tap import ActivationCache
from interp.core.tokens import Tokens

from .strategies import random_model, small_config
from .written_indices import NONE_AT_ALL, READ, READ_ALONE, REFUSED, REFUSED_ALONE, TWICE

WIDTH = 5


@pytest.fixture(scope="module")
def model():
    return random_model(small_config())


@pytest.fixture(scope="module")
def ids():
    return torch.randint(29, (3, WIDTH), generator=torch.Generator().manual_seed(0))


def read(model, ids, pos) -> ActivationCache:
    return model.run_with_cache(ids, ["z", "pattern"], pos=pos)[1]


@pytest.mark.parametrize("form", [*READ_ALONE, *READ])
def test_positions_in_any_form_keep_those_positions(unchecked, model, ids, form):
    whole = read(model, ids, None)
    value, meant = READ_ALONE[form] if form in READ_ALONE else (READ[form][0](), READ[form][1])
    cache = read(model, ids, value)  # a generator too serves all sites
    meant = [p % WIDTH for p in ([meant] if isinstance(meant, int) else meant)]
    for layer in range(3):
        assert torch.equal(cache["z", layer], whole["z", layer][:, meant])
        assert torch.equal(cache["pattern", layer], whole["pattern", layer][:, :, meant])
        assert cache.positions(("z", layer)) == tuple(meant)


@pytest.mark.parametrize("pos", [slice(1, 3), slice(None, None, -1), slice(-2, None)])
def test_a_slice_keeps_its_positions(model, ids, pos):
    meant = list(range(WIDTH))[pos]
    cache = read(model, ids, pos)
    assert torch.equal(cache["z", 1], read(model, ids, None)["z", 1][:, meant])
    assert cache.positions(("z", 1)) == tuple(meant)


@pytest.mark.parametrize("pos", [None, slice(None), range(WIDTH), list(range(WIDTH))])
def test_all_positions_in_order_are_the_whole_run(model, ids, pos):
    cache = read(model, ids, pos)
    assert cache.positions(("z", 1)) is None
    result = patched(model, ids, cache)
    assert result["effect"].abs().max() < 1e-12


BAD = {
    **REFUSED_ALONE, **REFUSED, "text": "1", **{f"no {k}": v for k, v in NONE_AT_ALL.items()},
    **{f"twice {k}": v for k, v in TWICE.items()}, "empty slice": slice(3, 3),
    "from both ends": [4, -1], "slice of booleans": slice(True, 3),
}  # fmt: skip


@pytest.mark.parametrize("form", BAD)
def test_what_is_no_position_is_refused(unchecked, model, ids, form):
    with pytest.raises(ValueError, match="pos"):
        read(model, ids, BAD[form])


def patched(model, ids, cache):
    nodes = interp.nodes(model, "z", by=("layer", "head"))
    return interp.sweep(
        model, ids, nodes, edit=edits.patch(cache), metric=metrics.loss(), allow_noop=True,
        engine="naive", progress=False,
    )  # fmt: skip


ORDERS = [list(order) for order in itertools.permutations(range(WIDTH))][1::40]


@pytest.mark.parametrize("pos", [*ORDERS, [4], [0, 1, 2], slice(None, None, -1), -1], ids=str)
@pytest.mark.parametrize("make", [edits.patch, edits.mean, edits.resample])
def test_a_cache_of_other_positions_is_not_patched_in(model, ids, make, pos):
    """All five in another order moved the loss by .975, where a run in itself changes nothing."""
    cache = read(model, ids, pos)
    options = {"metric": metrics.loss(), "allow_noop": True, "progress": False}
    nodes = interp.nodes(model, "z")
    for engine in ("naive", "rerun"):
        with pytest.raises(ValueError, match=r"of 5 positions at .*taken with pos="):
            interp.sweep(model, ids, nodes, edit=make(cache), engine=engine, **options)


def test_a_step_of_generation_knows_its_position(model, ids):
    made = model.generate(ids, 3, names_filter="z")
    assert [cache.positions(("z", 0)) for cache in made.caches] == [None, (WIDTH,), (WIDTH + 1,)]
    whole = model.run_with_cache(made.tokens, "z")[1]
    for cache in made.caches[1:]:
        at = list(cache.positions(("z", 1)))
        assert torch.allclose(cache["z", 1], whole["z", 1][:, at])
    with pytest.raises(ValueError, match="in a step of generation"):
        edits.patch(made.caches[1]).bind(
            model, Tokens(made.new_ids[:, :1]), ["blocks.0.attn.hook_z"]
        )


@pytest.mark.parametrize("pos", [[3, 1], slice(1, 4), -2, None])
def test_probes_name_the_positions_of_the_run(model, ids, pos):
    """Not the place along the axis that was kept: layer 1 at position 3 is the same in both."""
    labels = np.arange(24) % 2
    tokens = ids.repeat(8, 1)
    at = list(range(WIDTH)) if pos is None else [p % WIDTH for p in positions_of(pos)]
    cache = model.run_with_cache(tokens, ("resid_post", 1), pos=pos)[1]
    whole = model.run_with_cache(tokens, ("resid_post", 1))[1]
    options = {"control": False, "cv": 3, "progress": False}
    frame = interp.probe_sweep(cache, labels, **options)
    assert frame["pos"].tolist() == at
    expected = interp.probe_sweep(whole, labels, positions=at, **options)
    assert frame["accuracy"].tolist() == expected["accuracy"].tolist()
    chosen = interp.probe_sweep(cache, labels, positions=[at[0]], **options)
    assert chosen["pos"].tolist() == at[:1]
    absent = next((p for p in range(WIDTH) if p not in at), None)
    if absent is not None:
        with pytest.raises(ValueError, match=f"position {absent} .* was not kept"):
            interp.probe_sweep(cache, labels, positions=[absent], **options)


def positions_of(pos):
    return [pos] if isinstance(pos, int) else range(WIDTH)[pos] if isinstance(pos, slice) else pos


def test_the_source_has_positions_of_its_own():
    cfg = small_config(
        n_layers=1, encoder=small_config(n_layers=2, causal=False, head="none"), tied=False
    )
    model = random_model(cfg.replace(decoder_start_token_id=1))
    tokens = Tokens(torch.ones(2, 3, dtype=torch.long), source=Tokens(torch.ones(2, 7).long()))
    _, cache = model.run_with_cache(tokens, ["attn.z", "cross_attn.k", "cross_attn.z"], pos=-1)
    assert cache.positions("encoder_blocks.1.attn.hook_z") == (6,)
    assert cache.positions("decoder_blocks.0.cross_attn.hook_k") == (6,)
    assert cache.positions("decoder_blocks.0.cross_attn.hook_z") == (2,)
