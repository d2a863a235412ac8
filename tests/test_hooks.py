"""How hooks are called, and what of theirs lands: a tensor like the site's own, or an error."""

from __future__ import annotations

from functools import partial, wraps

import pytest
import torch
from torch import nn

from interp.core.calls import is_plain, second_argument
from interp.core.tap import EditError, Hook

from .strategies import random_model, small_config

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
SITE = ("z", 1)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return random_model(small_config())


def silence(z, head, hook):
    assert isinstance(hook, Hook) and hook.layer == 1
    z[:, :, head] = 0


def hook_first(z, hook, head=1):
    silence(z, head, hook)


def only_by_name(z, *, hook, head=1):
    silence(z, head, hook)


def any_words(z, **words):
    silence(z, 1, words["hook"])


def anything(*values):
    silence(values[0], 1, values[1])


def other_word(z, where):
    silence(z, 1, where)


def by_place_only(z, hook, /):
    silence(z, 1, hook)


@wraps(silence)
def wrapped(z, hook):
    return silence(z, 1, hook)


@wraps(only_by_name)
def handed_on(*args, **kwargs):
    return only_by_name(*args, **kwargs)


class Silencer:
    def __init__(self, head=1):
        self.head = head

    def __call__(self, z, hook):
        silence(z, self.head, hook)

    def method(self, z, *, hook=None):
        silence(z, self.head, hook)

    @staticmethod
    def static(z, hook):
        silence(z, 1, hook)


class Layer(nn.Module):
    def forward(self, z, *, hook):
        return z.clone().index_fill(2, torch.tensor([1]), 0) if hook.layer == 1 else z


class Unreadable:
    """As a builtin without a signature."""

    __signature__ = "nothing"

    def __call__(self, z, hook):
        silence(z, 1, hook)


FORMS = [
    partial(silence, head=1), hook_first, only_by_name, any_words, anything, other_word,
    by_place_only, wrapped, handed_on, Silencer(), Silencer().method, Silencer.static, Layer(),
    Unreadable(), partial(only_by_name, head=1), partial(hook_first, head=1),
    lambda z, hook: silence(z, 1, hook), lambda z, hook, head=1: silence(z, head, hook),
    lambda z, *, hook, head=1: silence(z, head, hook),
    lambda z, head=1, hook=None: silence(z, head, hook),
]  # fmt: skip


@pytest.mark.parametrize("fn", FORMS, ids=lambda fn: getattr(fn, "__name__", type(fn).__name__))
def test_a_hook_gets_its_place_however_it_asks_for_it(unchecked, model, fn):
    """partial(f, head=1) of f(z, head, hook) got the hook as its head."""
    _, cache = model.with_hooks([(SITE, fn)]).run_with_cache(IDS, SITE)
    _, before = model.run_with_cache(IDS, SITE)
    assert cache[SITE][:, :, 1].abs().max() == 0
    assert torch.equal(cache[SITE][:, :, [0, 2, 3]], before[SITE][:, :, [0, 2, 3]])


@pytest.mark.parametrize(
    "fn",
    [
        lambda z: None,
        lambda: None,
        lambda z, head, place: None,
        lambda hook, z: None,
        partial(silence, 1, 2, 3),
        nn.ReLU(),
        lambda z, *, head: None,
    ],
)
def test_a_function_that_cannot_take_a_hook_is_refused_at_once(unchecked, model, fn):
    with pytest.raises(EditError, match=r"'z'.*\(tensor, hook\)"):
        model.with_hooks([("z", fn)])


def test_how_a_second_argument_is_taken():
    assert second_argument(lambda a: 0, "b") == "absent"
    assert second_argument(lambda b: 0, "b") == "absent"  # the first one, whatever its name
    assert second_argument(lambda a, b: 0, "b") == "named"
    assert second_argument(lambda a, c: 0, "b") == "required"
    assert second_argument(lambda a, c=1: 0, "b") == "optional"
    assert second_argument(lambda *a: 0, "b") == "optional"
    assert second_argument(lambda a, c=1, b=2: 0, "b") == "named"
    assert second_argument(torch.relu, "b") == second_argument(max, "b") == "unknown"
    assert is_plain(lambda a, b: 0, "b") and is_plain(lambda a, c: 0, "b")
    for fn in (lambda b, a: 0, lambda a: 0, lambda a, b, c: 0, lambda a, c, *, b: 0, wrapped,
               lambda a, c, **b: 0, partial(silence, head=1)):  # fmt: skip
        assert not is_plain(fn, "b")


def left(change):
    def fn(x, hook):
        change(x)

    return fn


def returned(change):
    def fn(x, hook):
        change(x)
        return x

    return fn


CHANGES = {
    "transpose_": lambda x: x.transpose_(0, 1),
    "swapaxes_": lambda x: x.swapaxes_(2, 3),
    "squeeze_": lambda x: x.unsqueeze_(0),
    "fewer rows": lambda x: setattr(x, "data", x.data[:1]),
    "fewer positions": lambda x: setattr(x, "data", x.data[:, 1:].clone()),
    "resize_": lambda x: x.resize_(2, 3),
    "set_": lambda x: x.set_(torch.zeros(1, 1, 4, 8, dtype=torch.float64)),
    "nothing left": lambda x: x.resize_(0),
    "dtype": lambda x: setattr(x, "data", x.data.float()),
    "half": lambda x: setattr(x, "data", x.data.bfloat16()),
}


@pytest.mark.parametrize("how", [left, returned])
@pytest.mark.parametrize("name", CHANGES)
def test_a_tensor_that_was_changed_in_place_must_still_fit(unchecked, model, name, how):
    """A returned copy was compared with itself, and one that was not returned with nothing."""
    ids = IDS[:, :3]  # batch, positions, heads and d_head all differ
    with pytest.raises(EditError, match=r"'blocks\.1\.attn\.hook_z' returned (shape|dtype)"):
        model.run_with_hooks(ids, [(SITE, how(CHANGES[name]))])
    assert torch.equal(model(ids), random_model(small_config())(ids))


@pytest.mark.parametrize("what", [lambda x: x.to_sparse(), lambda x: [x], lambda x: x.numpy()])
def test_what_is_no_tensor_like_the_sites_is_refused(unchecked, model, what):
    with pytest.raises(EditError, match=r"returned (layout torch.sparse_coo|list|ndarray)"):
        model.run_with_hooks(IDS, [(SITE, lambda x, hook: what(x))])


def test_a_change_in_place_that_fits_lands(model):
    """A square of batch and positions may be turned: its shape stays."""
    ids = torch.arange(16).view(4, 4) % 29

    def turn(x, hook):
        x.transpose_(0, 1)

    _, cache = model.with_hooks([(SITE, turn)]).run_with_cache(ids, SITE)
    assert torch.equal(cache[SITE], model.run_with_cache(ids, SITE)[1][SITE].transpose(0, 1))
