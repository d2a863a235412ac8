"""The pretend accelerator refuses what a GPU refuses, and computes what the CPU computes."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from interp.model import HookedTransformer
from tests.device.pretend import DEVICE, Pretend
from tests.strategies import small_config

GIVEN = torch.arange(12, dtype=torch.float32).view(3, 4)
INDEX = torch.tensor([2, 0])


def there() -> torch.Tensor:
    return GIVEN.to("pretend")


MIXED = {
    "add": lambda x: x + GIVEN,
    "add, the other way round": lambda x: GIVEN + x,
    "a scalar of the device": lambda x: GIVEN * x.sum(),
    "in place": lambda x: x.mul_(GIVEN),
    "matmul": lambda x: x @ GIVEN.T,
    "cat": lambda x: torch.cat([x, GIVEN]),
    "stack of scalars": lambda x: torch.stack([x.sum(), GIVEN.sum()]),
    "where": lambda x: torch.where(GIVEN > 3, x, x),
    "masked_fill": lambda x: x.masked_fill(GIVEN > 3, 0.0),
    "embedding": lambda x: nn.functional.embedding(INDEX, x),
    "gather": lambda x: x.gather(0, INDEX[None].expand(1, 2)),
    "index_select": lambda x: x.index_select(0, INDEX),
    "the CPU's tensor by the device's index": lambda x: GIVEN[INDEX.to("pretend")],
    "the CPU's ids by the device's index": lambda x: INDEX[torch.tensor([0]).to("pretend")],
    "written values": lambda x: x.index_put_((INDEX,), GIVEN[:2]),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, GIVEN),
    "layer_norm": lambda x: nn.functional.layer_norm(x, (4,), torch.ones(4)),
    "attention": lambda x: nn.functional.scaled_dot_product_attention(
        x[None], x[None], GIVEN[None]
    ),
}
DRAWN = {
    "randn": lambda: torch.randn(3, device="pretend"),
    "randn with a generator of the CPU": lambda: torch.randn(
        3, device="pretend", generator=torch.Generator()
    ),
    "rand_like": lambda: torch.rand_like(there()),
    "normal_": lambda: there().normal_(),
    "randperm": lambda: torch.randperm(3, device="pretend"),
    "multinomial": lambda: torch.multinomial(there() + 1, 1),
    "bernoulli": lambda: (there() / 12).bernoulli(),
    "dropout": lambda: nn.functional.dropout(there()),
}


@pytest.mark.parametrize("what", MIXED)
def test_two_devices_do_not_mix(what):
    with pytest.raises(RuntimeError, match=r"two devices|same device type"):
        MIXED[what](there())


@pytest.mark.parametrize("what", DRAWN)
def test_nothing_is_drawn_there(what):
    with pytest.raises(RuntimeError, match="draw on the CPU"):
        DRAWN[what]()


def test_there_is_no_generator():
    with pytest.raises(NotImplementedError):
        torch.Generator("pretend")


@pytest.mark.parametrize("read", [np.asarray, np.array, Pretend.numpy])
def test_numpy_needs_cpu_first(read):
    with pytest.raises(TypeError, match=r"use \.cpu\(\) first|can't convert"):
        read(there())
    assert np.array_equal(there().cpu().numpy(), GIVEN.numpy())


TAKEN = {
    "a CPU tensor without axes": lambda x, y: x + torch.tensor(2.0, dtype=y.dtype),
    "a number": lambda x, y: x / 3,
    "where with one": lambda x, y: torch.where(x > 3, x, torch.tensor(0.0)),
    "the CPU's index": lambda x, y: x[INDEX],
    "the CPU's mask": lambda x, y: x[torch.tensor([True, False, True])],
    "index": lambda x, y: x[INDEX.to(x.device), INDEX.to(x.device)],
    "topk": lambda x, y: x.topk(2).values,
    "svd": lambda x, y: torch.linalg.svd(x)[1],
    "a view in place": lambda x, y: (x[1:].mul_(2), x)[1],
    "transposed in place": lambda x, y: x.transpose_(0, 1),
    "data": lambda x, y: (setattr(x, "data", x.data[:1]), x)[1],
    "copy_ from the CPU": lambda x, y: torch.empty_like(x).copy_(GIVEN),
    "made there": lambda x, y: torch.arange(4, device=x.device) + torch.eye(4, device=x.device),
    "other makers": lambda x, y: torch.full((2, 2), 3.0, device=x.device).tril() + x.new_ones(2),
    "a gradient": lambda x, y: torch.autograd.grad((w := x.requires_grad_()).square().sum(), w)[0],
}


@pytest.mark.parametrize("what", TAKEN)
def test_the_rest_is_computed_as_on_the_cpu(what):
    ours, plain = (TAKEN[what](x, GIVEN) for x in (there(), GIVEN.clone()))
    assert isinstance(ours, Pretend) and ours.device == DEVICE
    assert ours.shape == plain.shape and torch.equal(ours.cpu(), plain)


def test_a_tensor_there_is_a_tensor():
    x = there()
    assert x.tolist() == GIVEN.tolist() and float(x.sum()) == 66 and bool((x >= 0).all())
    assert f"{x.sum():.1f}" == "66.0" and "pretend" in repr(x)
    assert not x.is_cuda and x.type() == "torch.pretend.FloatTensor"
    for again in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert again.device == DEVICE and torch.equal(again.cpu(), GIVEN)
        assert again.data_ptr() != x.data_ptr()
    assert x.cpu().data_ptr() != x.data_ptr()
    with pytest.raises(RuntimeError, match="there is one"):
        torch.zeros(1, device="pretend:1")


def test_a_model_goes_there_and_back():
    model = HookedTransformer(small_config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert {p.device for p in model.to("pretend").parameters()} == {DEVICE}
    assert {p.dtype for p in model.double().parameters()} == {torch.float64}
    assert {p.device.type for p in copy.deepcopy(model).parameters()} == {"pretend"}
    for name, value in model.float().cpu().state_dict().items():
        assert type(value) is not Pretend and torch.equal(value, before[name])
