"""Edits land or raise, and the model keeps nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.core.sites import UnknownSite
from interp.core.tap import SILENT, EditError, Tap

from .device.pretend import DEVICE
from .strategies import configs, random_model, small_config

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return random_model(small_config())


def zero(x, hook):
    return torch.zeros_like(x)


@settings(max_examples=60, deadline=None)
@given(cfg=configs(sliding_window=None), data=st.data())  # in a window of one, no query matters
def test_an_edit_anywhere_reaches_what_lies_behind_it(cfg, data):
    """At every site: the edited value is what is cached there, and the run depends on it."""
    model = random_model(cfg)
    site = data.draw(st.sampled_from(model.sites.names))
    base, _ = model.run_with_cache(IDS, site)
    noise = {}
    generator = torch.Generator().manual_seed(0)

    def shift(x, hook):
        noise[hook.name] = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return x + noise[hook.name]

    view = model.with_hooks([(site, shift)])
    edited, cache = view.run_with_cache(IDS, model.sites.names)
    _, clean = model.run_with_cache(IDS, site)
    assert torch.allclose(cache[site], clean[site] + noise[site], atol=1e-9)
    assert edited.shape == base.shape and not torch.equal(edited, base)


def test_reading_everything_gives_the_same_output(model):
    plain = model(IDS)
    out, _ = model.run_with_cache(IDS)
    assert torch.allclose(out, plain, atol=1e-10)


def test_hooks_get_their_own_copy(model):
    _, before = model.run_with_cache(IDS, "resid_post")
    kept = before["resid_post", 0].clone()

    def destroy(x, hook):
        x.fill_(7.0)  # in place, nothing returned: the edit still lands

    view = model.with_hooks([(("resid_pre", 1), destroy)])
    _, cache = view.run_with_cache(IDS, [("resid_post", 0), ("resid_pre", 1)])
    assert torch.equal(cache["resid_post", 0], kept)
    assert torch.equal(cache["resid_pre", 1], torch.full_like(kept, 7.0))
    assert torch.equal(before["resid_post", 0], kept)


def test_hook_knows_where_it_is(model):
    seen = []
    model.run_with_hooks(IDS, [("z", lambda x, hook: seen.append((hook.name, hook.layer)))])
    assert seen == [(f"blocks.{layer}.attn.hook_z", layer) for layer in range(3)]


def test_hooks_run_in_order_and_views_stack(model):
    add = lambda n: lambda x, hook: x * 2 + n  # noqa: E731
    one = model.with_hooks([(("z", 0), add(1))])
    two = one.with_hooks([(("z", 0), add(10))])
    _, base = model.run_with_cache(IDS, ("z", 0))
    _, cache = two.run_with_cache(IDS, ("z", 0))
    assert torch.allclose(cache["z", 0], (base["z", 0] * 2 + 1) * 2 + 10)
    _, cache = one.run_with_cache(IDS, ("z", 0))
    assert torch.allclose(cache["z", 0], base["z", 0] * 2 + 1)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda x, hook: x[:, :1], r"returned shape \[2, 1, 4, 8\]; the site has \[2, 4, 4, 8\]"),
        (lambda x, hook: x.float(), "returned dtype torch.float32; the site has torch.float64"),
        (lambda x, hook: x.to("meta"), "returned device meta"),
        (lambda x, hook: 5, "returned int"),
    ],
)
def test_an_edit_that_cannot_land_raises(unchecked, model, edit, message):
    with pytest.raises(EditError, match=message) as error:
        model.run_with_hooks(IDS, [(("z", 1), edit)])
    assert "blocks.1.attn.hook_z" in str(error.value)


def test_unknown_sites_raise_before_running(unchecked, model):
    with pytest.raises(UnknownSite, match="did you mean"):
        model.with_hooks([("resid_psot", zero)])
    with pytest.raises(UnknownSite):
        model.run_with_cache(IDS, "pattrn")
    with pytest.raises(EditError, match="not a function"):
        model.with_hooks([("z", 3)])
    with pytest.raises(UnknownSite, match="no layer 7"):
        model.with_hooks([(("z", 7), zero)])


def test_an_edit_that_never_fires_raises(model):
    tap = Tap(model.sites, fwd_hooks=[(("z", 2), zero)])
    model(IDS, tap, stop_at_layer=1)
    with pytest.raises(EditError, match=r"'blocks\.2\.attn\.hook_z' never fired"):
        tap.check_fired()
    with pytest.raises(UnknownSite):
        model.run_with_hooks(IDS, [(("z", 2), zero)], stop_at_layer=1)


def test_a_forward_pass_that_drops_a_site_is_caught(model, monkeypatch):
    """The mutant: a block that forgets to call the tap at resid_mid."""
    block = type(model.blocks[0])
    monkeypatch.setattr(block, "to_post", lambda self, x, tap: (x, self.mlp.to_post(self.ln2(x))))
    with pytest.raises(EditError, match="never fired"):
        model.run_with_hooks(IDS, [("resid_mid", zero)])
    with pytest.raises(EditError, match="did not reach"):
        model.run_with_cache(IDS, "resid_mid")


def test_the_ledger_counts(model):
    tap = Tap(model.sites, fwd_hooks=[("z", zero)])
    model(IDS, tap)
    assert tap.ledger == [(f"blocks.{layer}.attn.hook_z", 1, 2) for layer in range(3)]
    for again in (IDS[:1], torch.cat([IDS, IDS, IDS])):  # rows of all times, not of the last
        model(again, tap)
    assert tap.ledger == [(f"blocks.{layer}.attn.hook_z", 3, 2 + 1 + 6) for layer in range(3)]


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_nothing_is_left_after_an_exception(model, error):
    before = model(IDS)
    state = dict(model.__dict__)

    def fail(x, hook):
        x.zero_()
        raise error

    view = model.with_hooks([(("resid_mid", 1), fail)])
    for run in (view, view.run_with_cache, lambda ids: view.generate(ids, 3)):
        with pytest.raises(error):
            run(IDS)
    assert torch.equal(model(IDS), before)
    assert model.__dict__ == state and not model._forward_hooks


def test_an_abandoned_stream_leaves_nothing(model):
    before = model(IDS)
    steps = model.with_hooks([("z", zero)]).stream(IDS, 10)
    next(steps), next(steps)
    steps.close()
    assert torch.equal(model(IDS), before)


def test_a_view_is_immutable_and_leaves_the_model_alone(model):
    before = model(IDS)
    view = model.with_hooks([("z", zero)])
    assert not torch.equal(view(IDS), before)
    for change in (lambda: setattr(view, "cfg", None), view.half, lambda: view.to("meta")):
        with pytest.raises(AttributeError, match="immutable"):
            change()
    assert view.W_E is model.W_E
    assert torch.equal(model(IDS), before)
    with pytest.raises(TypeError, match="with_hooks"):
        model.hooks([("z", zero)])


def test_a_view_has_every_verb(model):
    view = model.with_hooks([("resid_pre", zero)])
    assert view.pool(IDS).shape == (2, 32)
    assert view.generate(IDS, 2).new_ids.shape == (2, 2)
    assert not torch.equal(view.pool(IDS), model.pool(IDS))
    assert view.num_params() == model.num_params()


def assert_gradients(model, sites, probe):
    """autograd.grad on the cache equals a finite difference of an edit at the site."""
    out, cache = model.run_with_cache(IDS, sites, grad=True)
    weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad((out * weights).sum(), list(cache.values()))
    grad = dict(zip(cache, grads, strict=True))[probe]
    direction = torch.randn(grad.shape, dtype=grad.dtype)
    step = 1e-6

    def at(sign):
        moved = model.run_with_hooks(IDS, [(probe, lambda x, hook: x + sign * step * direction)])
        return (moved * weights).sum()

    numeric = (at(1) - at(-1)) / (2 * step)
    assert torch.isclose(numeric, (grad * direction).sum(), rtol=1e-4, atol=1e-4), probe


@settings(max_examples=25, deadline=None)
@given(cfg=configs(activation="gelu"), data=st.data())
def test_gradients_reach_every_cached_site(cfg, data):
    model = random_model(cfg)
    shared = [name for name in model.sites.names if not name.endswith("_input")]
    assert_gradients(model, shared, data.draw(st.sampled_from(shared)))
    split = [name for name in model.sites.names if ".ln1.hook" not in name]
    if cfg.norm_position in ("pre", "both"):
        inputs = [name for name in split if name.endswith("_input")]
        assert_gradients(model, split, data.draw(st.sampled_from(inputs)))


def test_a_head_with_its_own_input_refuses_edits_of_the_shared_norm(model):
    edits = [(("q_input", 1), zero), (("ln1.hook_scale", 1), lambda x, hook: x * 2)]
    with pytest.raises(EditError, match="normed apart"):
        model.run_with_hooks(IDS, edits)
    model.with_hooks(edits[:1]).run_with_cache(IDS, "ln1.hook_scale")  # reading is fine


def test_grad_refuses_copies(model):
    for extra in ({"pos": -1}, {"device": "cpu"}):
        with pytest.raises(ValueError, match="off the graph"):
            model.run_with_cache(IDS, "z", grad=True, **extra)
    _, cache = model.run_with_cache(IDS)
    assert not any(x.requires_grad for x in cache.values())
    assert not any(p.requires_grad for p in model.parameters())


def test_learned_edits_get_gradients(model):
    mask = torch.ones(4, dtype=torch.float64, requires_grad=True)
    out = model.run_with_hooks(IDS, [(("z", 1), lambda x, hook: x * mask[:, None])])
    out.sum().backward()
    assert mask.grad.abs().min() > 0


def test_the_silent_tap_looks_at_nothing(model):
    assert not SILENT.wants("hook_embed") and not SILENT.changes("hook_embed")


def test_a_tap_keeps_no_graph_unless_asked(model):
    x = torch.ones(2, 4, model.cfg.d_model)
    tap = Tap(model.sites, reads=["hook_embed"])
    assert tap("hook_embed", x) is x and not tap.changes("hook_embed")
    kept = Tap(model.sites, reads=["hook_embed"], grad=True)
    assert kept("hook_embed", x).requires_grad and kept.changes("hook_embed")
    with pytest.raises(UnknownSite, match="no site 'hook_nothing'"):
        Tap(model.sites, reads=["hook_nothing"])


def test_what_was_met_before_is_neither_read_nor_edited_again(model):
    names = ["hook_embed", "hook_logits"]
    tap = Tap(model.sites, reads=names, fwd_hooks=[(names, zero)], met_before=[*names[:1], "other"])
    x = torch.ones(2, 4, model.cfg.d_model)
    assert not tap.wants("hook_embed") and tap("hook_embed", x) is x
    with pytest.raises(EditError, match="the edit on 'hook_logits' never fired: the run"):
        tap.check_fired()
    tap("hook_logits", torch.ones(2, 4, model.cfg.d_vocab))
    tap.check_fired()


@pytest.mark.parametrize(
    ("n", "words"),
    [(1, "never fired: the run did not reach that site$"), (2, r"fired \(nor did 1 more\): the"),
     (3, r"fired \(nor did 2 more\): the run")],
)  # fmt: skip
def test_edits_that_never_fired_are_counted(model, n, words):
    names = ["hook_logits", ("resid_post", 1), ("resid_post", 0)][:n]
    tap = Tap(model.sites, fwd_hooks=[(names, zero)])
    first = "blocks.0.hook_resid_post" if n == 3 else None
    with pytest.raises(EditError, match=words) as error:
        tap.check_fired()
    assert first is None or f"the edit on {first!r}" in str(error.value)


def test_the_first_site_that_was_not_met_is_named(model):
    tap = Tap(model.sites, reads=["hook_logits", "hook_embed"])
    with pytest.raises(EditError, match=r"^the run did not reach 'hook_embed', which was to be"):
        tap.check_fired()


def test_reads_go_to_the_device_that_is_named(model):
    x = torch.ones(2, 4, model.cfg.d_model)
    tap = Tap(model.sites, reads=["hook_embed"], device="meta")
    assert tap("hook_embed", x) is x and tap.values["hook_embed"].device.type == "meta"
    tap = Tap(model.sites, reads=["hook_embed"])
    tap("hook_embed", x)
    assert tap.values["hook_embed"] is x


def test_a_read_is_made_after_all_edits_of_its_site(model):
    x = torch.ones(2, 4, model.cfg.d_model)
    hooks = [("hook_embed", lambda x, hook: x + 1), ("hook_embed", lambda x, hook: x * 3)]
    tap = Tap(model.sites, reads=["hook_embed"], fwd_hooks=hooks)
    assert (tap("hook_embed", x) == 6).all() and (tap.values["hook_embed"] == 6).all()
    assert (x == 1).all() and tap.wants("hook_embed") and not tap.wants("hook_logits")
    assert tap.ledger == [("hook_embed", 1, 2)] and tap.kept == {}
    assert tap("hook_logits", x) is x and not tap.changes("hook_logits")


def test_a_gradient_is_asked_of_a_read_that_has_none(model):
    tap = Tap(model.sites, reads=["hook_embed"], grad=True)
    leaf = tap("hook_embed", torch.ones(2, 4, model.cfg.d_model))
    assert leaf.is_leaf and tap.values["hook_embed"] is leaf
    inner = leaf * 2
    assert Tap(model.sites, reads=["hook_embed"], grad=True)("hook_embed", inner) is inner
    edited = Tap(model.sites, fwd_hooks=[("hook_embed", zero)], grad=True)
    assert edited.changes("hook_embed") and not edited.changes("hook_logits")


def test_positions_are_picked_on_the_device_of_the_tensor(model):
    x = torch.randn(2, 4, model.cfg.d_model)
    tap = Tap(model.sites, reads=["hook_embed"], pos=[3, 1], device="cpu")
    there = x.to(DEVICE)
    assert tap("hook_embed", there) is there
    assert torch.equal(tap.values["hook_embed"], x[:, [3, 1]])
