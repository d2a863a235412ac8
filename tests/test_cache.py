"""A cache is a mapping of what flowed on: it holds that and no more, and knows whose run it was."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch

from interp.core.sites import UnknownSite
from interp.core.tap import ActivationCache
from interp.core.tokens import Tokens

from .strategies import random_model, small_config

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return random_model(small_config())


def test_cache_is_a_mapping(model):
    _, cache = model.run_with_cache(IDS, ["resid_post", "pattern"])
    assert len(cache) == 6 and ("pattern", 1) in cache and "nothing" not in cache
    assert cache["pattern", 1] is cache["blocks.1.attn.hook_pattern"]
    assert cache.stack("resid_post").shape == (3, 2, 4, 32)
    assert dict(cache.items()).keys() == set(cache)
    assert cache.get("hook_embed") is None
    with pytest.raises(KeyError, match="was not cached"):
        cache["z", 0]
    with pytest.raises(KeyError, match="no layer of 'z' was cached"):
        cache.stack("z")
    with pytest.raises(KeyError, match="several sites"):
        model.run_with_cache(IDS)[1].stack("scale")


def test_pos_keeps_positions_and_only_their_memory(model):
    _, full = model.run_with_cache(IDS)
    _, last = model.run_with_cache(IDS, pos=-1)
    _, some = model.run_with_cache(IDS, ["resid_post", "pattern"], pos=slice(1, 3))
    assert torch.equal(last["resid_post", 1], full["resid_post", 1][:, -1:])
    assert torch.allclose(some["pattern", 0], full["pattern", 0][:, :, 1:3])
    kept = last["resid_post", 1]
    assert kept.untyped_storage().nbytes() == kept.numel() * 8
    with pytest.raises(ValueError, match="pos=4: expected 0 to 3"):
        model.run_with_cache(IDS, "z", pos=4)


def test_a_kept_tensor_does_not_keep_its_neighbours():
    model = random_model(small_config(mlp_gated=True))
    for site in ("q", "k", "v", "mlp.pre", "pre_linear", "z"):
        _, cache = model.run_with_cache(IDS, site)
        for kept in cache.values():
            assert kept.untyped_storage().nbytes() == kept.numel() * 8, site


def test_a_dropped_cache_is_freed(model):
    cache = model.run_with_cache(IDS)[1]
    tensors = [weakref.ref(x) for x in cache.values()]
    whole = weakref.ref(cache)
    del cache
    gc.collect()
    assert whole() is None and all(t() is None for t in tensors)


def test_a_cache_selects_what_it_holds(model):
    _, cache = model.run_with_cache(IDS, ["resid_post", ("z", 1)])
    assert cache.select("z") == ["blocks.1.attn.hook_z"]
    assert cache.select(None) == [*cache]
    with pytest.raises(UnknownSite, match=r"^'pattern' was not cached; name it in names_filter$"):
        cache.select("pattern")
    with pytest.raises(UnknownSite, match=r"2 sites, e\.g\. 'blocks\.0\.hook_resid_pre'"):
        model.run_with_cache(IDS, [("resid_pre", 0), ("z", 1)])[1]["pattern", 0]
    empty = ActivationCache({}, model.sites, model.accept(IDS), model.stacks)
    with pytest.raises(UnknownSite, match=r"0 sites, e\.g\. None"):
        empty["pattern", 0]


def test_sites_of_one_name_in_two_places_are_not_stacked(model):
    _, cache = model.run_with_cache(IDS, ["ln1.hook_scale", "ln2.hook_scale"])
    with pytest.raises(UnknownSite, match=r"several sites: ln1\.hook_scale, ln2\.hook_scale"):
        cache.stack("hook_scale")


def test_a_cache_shows_its_size(model):
    _, cache = model.run_with_cache(IDS, "hook_embed")
    cache = ActivationCache({"hook_embed": torch.zeros(1000, 800)}, model.sites, cache.tokens, ())
    assert repr(cache).startswith("ActivationCache(1 sites, 3.2 MB, Tokens(batch=2, pos=4")


def test_a_cache_of_a_model_that_is_gone_is_of_no_model(model):
    other = random_model(small_config())
    _, cache = other.run_with_cache(IDS, "hook_embed")
    assert cache.is_of(other.stacks) and not cache.is_of([])
    del other
    gc.collect()
    assert not cache.is_of(model.stacks)


def test_the_width_of_a_run_is_that_of_the_stack_a_site_counts():
    encoder = small_config(n_layers=1, causal=False, head="none")
    pair = random_model(small_config(n_layers=1, encoder=encoder, decoder_start_token_id=1))
    source = Tokens.of([[1, 2, 3, 4, 5]])
    _, cache = pair.run_with_cache(Tokens(torch.tensor([[1, 6, 7]]), source=source))
    widths = {
        "encoder_blocks.0.hook_resid_post": 5,
        "decoder_blocks.0.hook_resid_post": 3,
        "decoder_blocks.0.cross_attn.hook_k": 5,
        "decoder_blocks.0.cross_attn.hook_z": 3,
    }
    assert {name: cache.width(name) for name in widths} == widths


def test_a_cache_out_of_a_pickle_knows_its_model_by_its_weights(model):
    twin, other = random_model(small_config()), random_model(small_config(), seed=1)
    _, cache = model.run_with_cache(IDS, ["z", "hook_embed"], pos=[2, 0])
    once = pickle.loads(pickle.dumps(cache))
    again = pickle.loads(pickle.dumps(once))  # before anybody asked
    for copied in (once, again):
        assert [*copied] == [*cache] and copied.positions(("z", 1)) == (2, 0)
        assert all(torch.equal(copied[name], cache[name]) for name in cache)
        assert copied.tokens.ids.tolist() == IDS.tolist()
        assert not copied.is_of(other.stacks) and not copied.is_of([])
        for _ in range(2):  # by hashes, and then by the blocks themselves
            assert copied.is_of(twin.stacks) and not copied.is_of(other.stacks)
    assert pickle.loads(pickle.dumps(again)).is_of(model.stacks)


def test_a_cache_of_a_model_that_is_gone_is_of_none_also_out_of_a_pickle(model):
    _, cache = random_model(small_config()).run_with_cache(IDS, "hook_embed")
    gc.collect()
    assert not pickle.loads(pickle.dumps(cache)).is_of(model.stacks)


def test_a_cache_is_of_every_model_with_the_same_weights(model):
    _, cache = model.run_with_cache(IDS, "hook_embed")
    twin = random_model(small_config())
    assert cache.is_of(twin.stacks)
    twin.blocks[2].mlp.out_weight.data[0, 0] += 1e-6
    assert not cache.is_of(twin.stacks)
    for other in (random_model(small_config(n_layers=2)), random_model(small_config(n_layers=4)),
                  random_model(small_config()).to("meta")):  # fmt: skip
        assert not cache.is_of(other.stacks)
    _, cache = twin.run_with_cache(IDS, "hook_embed")
    twin.blocks[0].mlp.out_weight.data[0, 0] = float("nan")
    assert cache.is_of(twin.stacks)  # it is itself, NaN or not


def test_what_a_cache_shares_is_shared_by_its_copies(model):
    _, cache = model.run_with_cache(IDS, "hook_embed")
    copied, tokens = copy.deepcopy([cache, cache.tokens])
    assert copied.tokens is tokens and tokens is not cache.tokens
    assert copied["hook_embed"] is not cache["hook_embed"]
    assert torch.equal(copied["hook_embed"], cache["hook_embed"]) and copied.is_of(model.stacks)
    shallow = copy.copy(cache)
    assert shallow is not cache and shallow["hook_embed"] is cache["hook_embed"]
    assert type(copied) is type(shallow) is ActivationCache and shallow.is_of(model.stacks)


def test_positions_that_are_given_as_a_generator_serve_every_site(model):
    _, cache = model.run_with_cache(IDS, "resid_post", pos=iter([3, 1]))
    assert {cache.positions(name) for name in cache} == {(3, 1)} and len(cache) == 3
