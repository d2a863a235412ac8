"""Fingerprints: equal for what computes alike, different where a number could be."""

from __future__ import annotations

import functools
import threading

import numpy as np
import pytest
import torch

from interp.loading.fingerprint import digest

FACTOR = 1.0


def scaled(x):
    return helper(x) * FACTOR


def helper(x):
    return x.mean()


def countdown(n):
    return n and countdown(n - 1)


def through_table(x):
    return TABLE["mean"](x)


TABLE = {"mean": through_table}  # data that holds the function that reads it


def test_the_digest_is_the_same_in_every_process():
    value = ("z", 1, 0.1, None, True, b"\0", {"b": 1, "a": {"x", "y", "z"}}, torch.arange(3))
    assert digest(value) == "edfcafd67539e43e"


def test_plain_values_are_told_apart():
    values = [
        *(None, True, 1, 1.0, "1", b"1", -0.0, 0.0, 1 + 0j, [], [[]], [1], [[1]], ["1"]),
        *({}, {"a": 1}, {"a": 2}, {"b": 1}, {1}, {2}, slice(1), ...),
        *(["a", "b"], ["a b"], ["a\n", "b"], torch.float32, torch.float64),
    ]
    assert len({digest(value) for value in values}) == len(values)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest((1, 2)) == digest([1, 2])


def test_tensors_are_their_dtype_shape_and_numbers():
    x = torch.arange(6)
    different = [x, x.int(), x.float(), x.view(2, 3), x.view(3, 2), x + 1, x[:0], x[0], x > 2]
    different += [x.numpy().astype(np.int32), np.float64(1), np.array(["a"]), x.bfloat16()]
    assert len({digest(value) for value in different}) == len(different)
    assert digest(x.view(2, 3).T.contiguous()) == digest(x.view(2, 3).T)  # whatever the memory
    layer = torch.nn.Linear(2, 2)
    before = digest(layer)
    layer.weight.data += 1
    assert digest(layer) != before


def test_functions_are_told_apart_by_what_they_do():
    different = [
        lambda x: x.mean(),
        lambda x: x.sum(),
        lambda x: x.sum(0),
        lambda x: x.sum(1),
        lambda x, y=1: x.sum(y),
        lambda x, y=2: x.sum(y),
        lambda x, *, y=2: x.sum(y),
        lambda x: [one.sum() for one in x],
        lambda x: [one.mean() for one in x],
        *(lambda x, by=by: x * by for by in (1, 2)),
        torch.sum,
        torch.mean,
        functools.partial(scaled, 1),
        functools.partial(scaled, 2),
        countdown,
    ]
    assert len({digest(fn) for fn in different}) == len(different)


def test_a_closure_counts():
    def times(factor):
        return lambda x: x * factor

    def later():
        def fn():
            return missing

        if not fn:
            missing = 1
        return fn

    assert digest(times(2)) == digest(times(2)) != digest(times(3))
    assert digest(times(torch.ones(1))) != digest(times(torch.zeros(1)))
    assert digest(later()) == digest(later())


def test_what_a_function_reads_in_its_file_counts(monkeypatch):
    before = digest(scaled)
    with monkeypatch.context() as patched:
        patched.setitem(globals(), "FACTOR", 2.0)
        assert digest(scaled) != before
    with monkeypatch.context() as patched:
        patched.setattr(helper, "__code__", (lambda x: x.sum()).__code__)
        assert digest(scaled) != before
    with monkeypatch.context() as patched:
        patched.setitem(globals(), "FACTOR", threading.Lock())  # stands for its type
        assert digest(scaled) == digest(scaled) != before
    assert digest(scaled) == before
    assert digest(through_table) == digest(through_table)


def test_a_decorated_function_is_what_it_wraps():
    plain, other = torch.no_grad()(lambda x: x.sum()), torch.no_grad()(lambda x: x.mean())
    assert digest(plain) == digest(torch.no_grad()(lambda x: x.sum())) != digest(other)
    assert digest(functools.lru_cache(scaled)) != digest(functools.lru_cache(helper))


def test_methods_are_their_function_and_their_object():
    one, two = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    assert digest(one.forward) == digest(one.forward) != digest(two.forward)


def test_what_cannot_be_compared_is_refused():
    for value in (object(), [threading.Lock()], {"a": iter(())}, np.array([object()])):
        with pytest.raises(ValueError, match="cannot be compared with that of an earlier run"):
            digest(value)
