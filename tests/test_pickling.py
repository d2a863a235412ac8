"""Edits, metrics, caches and the values around them come out of a pickle with the same numbers."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch

import interp
from interp import edits, erasure, metrics
from interp.core.calls import Portable
from interp.core.tap import ActivationCache
from interp.core.tokens import Tokens
from interp.loading.fingerprint import digest

from .strategies import random_model, small_config

IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [3, 3, 1, 4, 2]])
ANSWER, WRONG = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
NODES = [{"row": 0, "site": "resid_post", "layer": 1, "pos": 2},
         {"row": 1, "site": "resid_post", "layer": 0}]  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return random_model(small_config())


def reference():
    return Tokens(IDS.flip(0), roles={"end": torch.tensor([4, 4, 4])})


def cached(model):
    return model.run_with_cache(reference(), "resid_post")[1]


def vector(seed=0, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape or (32,), dtype=torch.float64, generator=generator)


def eraser():
    x = vector(3, 40, 32)
    return erasure.fit_eraser(x, (x[:, 0] > 0).long())


EDITS = {
    "zero": lambda model: edits.zero(),
    "set_to": lambda model: edits.set_to(vector()),
    "scale": lambda model: edits.scale(1.3),
    "add": lambda model: edits.add(vector(1, 3, 32), 2.0),
    "project_out": lambda model: edits.project_out(vector(1, 2, 32)),
    "noise": lambda model: edits.noise(0.5, seed=3),
    "patch tokens": lambda model: edits.patch(reference()),
    "patch cache": lambda model: edits.patch(cached(model)),
    "mean": lambda model: edits.mean(reference()),
    "mean per pos": lambda model: edits.mean(cached(model), per="pos"),
    "resample": lambda model: edits.resample(cached(model), seed=2),
    "each": lambda model: edits.each({0: edits.zero(), 1: edits.patch(cached(model))}),
    "eraser": lambda model: eraser().edit(),
}


def last_logit(logits, examples):
    return logits[:, -1, 3] * (examples + 1)


def whole_batch(resid):
    return resid[:, -1].sum(-1)


def of_cache(cache):
    return cache["resid_post", 2][:, -1, 0]


class Scaled:
    """A callable object with a state of its own."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, logits, examples):
        return logits[:, -1, 3] * self.scale


METRICS = {
    "logit_diff": metrics.logit_diff(ANSWER, WRONG),
    "log_prob": metrics.log_prob(ANSWER, pos=-1),
    "prob": metrics.prob(ANSWER),
    "rank": metrics.rank(ANSWER),
    "accuracy": metrics.accuracy(ANSWER),
    "kl": metrics.kl("all"),
    "js": metrics.js(),
    "loss": metrics.loss(),
    "cosine": metrics.cosine(vector()),
    "pooled_cosine": metrics.pooled_cosine(),
    "pooled_cosine of": metrics.pooled_cosine(vector(4, 3, 32)),
    "function": metrics.function(last_logit),
    "function of all": metrics.function(whole_batch, of="residual"),
    "function of an object": metrics.function(Scaled(2.0)),
    "partial": metrics.function(partial(Scaled.__call__, Scaled(3.0)), "partial"),
    "cache_function": metrics.cache_function(of_cache, "resid_post"),
}
WAYS = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


def swept(model, edit, metric):
    frame = interp.sweep(model, IDS, NODES, edit=edit, metric=metric, progress=False,
                         allow_noop=True)  # fmt: skip
    return frame[["value", "effect"]].to_numpy()


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_comes_back_as_it_was(unchecked, model, name):
    edit = EDITS[name](model)
    for way in WAYS.values():
        again = way(edit)
        assert again is not edit and (again.name, again.direction) == (edit.name, edit.direction)
        assert digest(again.bind) == digest(edit.bind)  # a journal goes on with it
    again, metric = WAYS["pickle"](edit), METRICS["logit_diff"]
    assert np.array_equal(swept(model, edit, metric), swept(model, again, metric))


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_comes_back_as_it_was(unchecked, model, name):
    metric, edit = METRICS[name], edits.add(vector(8))
    for way in WAYS.values():
        again = way(metric)
        assert again is not metric and (again.name, again.whole) == (metric.name, metric.whole)
    again = WAYS["pickle"](metric)
    assert np.array_equal(swept(model, edit, metric), swept(model, edit, again))


@pytest.mark.parametrize(
    ("module", "kind", "tried"), [(edits, "Edit", EDITS), (metrics, "Metric", METRICS)]
)
def test_every_edit_and_metric_is_tried(module, kind, tried):
    """One that comes later is asked for."""
    returns = {
        name: getattr(value, "__annotations__", {}).get("return")
        for name, value in vars(module).items()
        if callable(value)
    }
    made = {name for name, returned in returns.items() if returned == kind}
    assert len(made) > 8 and made <= {name.split()[0] for name in tried}


@pytest.mark.parametrize(
    "make",
    [
        lambda: metrics.function(lambda logits: logits[:, -1, 3], "mine"),
        lambda: metrics.cache_function(lambda cache: cache["z", 0][:, 0, 0, 0], "z", "mine"),
        lambda: metrics.function(partial(lambda a, logits: logits[:, -1, a], 3), "mine"),
        lambda: edits.Edit("mine", "steer", lambda *_: lambda x, rows: x),
        lambda: edits.each({0: edits.Edit("mine", "steer", lambda *_: lambda x, rows: x)}),
        lambda: metrics.Metric("mine", lambda *_: None),
        lambda: metrics.function(type("Local", (), {"__call__": lambda self, x: x})(), "mine"),
    ],
)
def test_a_function_without_a_name_is_refused_in_plain_words(make):
    value = make()
    assert isinstance(value, Portable)
    for way in (copy.copy, copy.deepcopy):
        assert way(value).name == value.name  # a copy needs no name
    with pytest.raises(pickle.PicklingError, match=r"'mine' cannot be pickled: it holds .*module"):
        pickle.dumps(value)


@pytest.mark.parametrize("way", WAYS)
def test_a_cache_comes_back_and_knows_its_model(model, way):
    cache = cached(model)
    again = WAYS[way](cache)
    assert isinstance(again, ActivationCache) and list(again) == list(cache)
    assert all(torch.equal(again[name], cache[name]) for name in cache)
    assert torch.equal(again.stack("resid_post"), cache.stack("resid_post"))
    assert torch.equal(again["resid_post", 2], cache["resid_post", 2])
    assert torch.equal(again.tokens.ids, IDS.flip(0)) and "end" in again.tokens.roles
    shared = again["resid_post", 0].data_ptr() == cache["resid_post", 0].data_ptr()
    assert shared == (way == "copy")
    assert again.is_of(model.stacks) and again.is_of(random_model(small_config()).stacks)
    assert not again.is_of(random_model(small_config(), seed=1).stacks)
    twice = WAYS[way](WAYS["pickle"](again))
    assert twice.is_of(model.stacks) and repr(twice) == repr(cache)


def test_a_cache_of_a_model_that_is_gone_says_so(model):
    gone = random_model(small_config())
    again = pickle.loads(pickle.dumps(cached(gone)))
    assert again.is_of(model.stacks)  # the same weights
    cache = cached(gone)
    del gone
    again = pickle.loads(pickle.dumps(cache))
    with pytest.raises(ValueError, match="another model, or on one that is gone"):
        interp.sweep(model, IDS, NODES, edit=edits.patch(again), metric=METRICS["loss"])


def test_weights_that_changed_are_another_model(model):
    ours = random_model(small_config())
    again = pickle.loads(pickle.dumps(cached(ours)))
    ours.blocks[0].mlp.out_weight.data += 1
    assert not again.is_of(ours.stacks) and again.is_of(model.stacks)


def test_values_around_them_come_back():
    tokens = Tokens(IDS, mask=IDS > 1, roles={"end": ANSWER}, strings=[["a"] * 5] * 3, bos=True)
    direction = interp.Direction(vector(), "blocks.0.hook_resid_post", "made", mean=vector(1))
    config, fitted = small_config(), eraser()
    probe = interp.LinearProbe(C=2.0).fit(vector(5, 30, 4), torch.arange(30) % 2)
    for way in WAYS.values():
        assert digest(way(tokens)) == digest(tokens) and way(tokens).strings == tokens.strings
        assert way(config) == config
        assert torch.equal(way(direction).unit, direction.unit)
        assert torch.equal(way(fitted)(vector(6, 2, 32)), fitted(vector(6, 2, 32)))
        x = vector(7, 5, 4)
        assert np.array_equal(way(probe).predict(x), probe.predict(x))
