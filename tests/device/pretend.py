"""A pretend accelerator: tensors that hold CPU data and say that they lie on the device "pretend".

What a GPU refuses, it refuses, without a GPU: operations that mix its tensors with the CPU's,
`.numpy()` without `.cpu()`, a generator of another device. It has no random numbers of its own:
whatever is drawn has to be drawn on the CPU, where a seed gives the same numbers for all devices.
On torch's PrivateUse1 backend for Python (torch ≥ 2.9); importing this module registers it.

    model = interp.load("tinyworld", device="pretend")
    model(model.to_tokens("the king")).device        # pretend:0
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
SEEDED = torch.Tag.nondeterministic_seeded
POINTWISE = torch.Tag.pointwise
TAKES_SCALARS = {
    aten.where.self,
    aten.masked_fill.Tensor,
    aten.masked_fill_.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten.fill_.Tensor,
}
"""Beside the pointwise ones: the operations that take a CPU tensor of no axes, as CUDA does."""
TAKES_INDICES = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
"""The operations that take index tensors of the CPU on a tensor of the device, as CUDA does."""


class Backend:
    """What torch asks of a device's module; `torch.pretend` is this."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """`torch.manual_seed` seeds every device; here there is nothing to seed."""


_setup_privateuseone_for_python_backend("pretend", backend_module=Backend)
DEVICE = torch.device("pretend:0")


class Pretend(torch.Tensor):
    """A tensor of the device; `held` is the CPU tensor behind it."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor, requires_grad: bool = False) -> Pretend:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=DEVICE, requires_grad=requires_grad,
        )  # fmt: skip
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    @property
    def data(self) -> Pretend:
        return self.detach()

    @data.setter
    def data(self, other: Pretend) -> None:
        torch.Tensor.data.__set__(self, other)
        self.held = other.held

    def numpy(self, *_: object, **__: object) -> None:
        raise TypeError("can't convert a tensor of device pretend to numpy; use .cpu() first")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.held.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __deepcopy__(self, memo: dict) -> Pretend:
        copied = Pretend(self.held.clone(), self.requires_grad)
        copied._is_param = isinstance(self, torch.nn.Parameter)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: int) -> tuple:
        return Pretend, (self.held, self.requires_grad)

    def __format__(self, spec: str) -> str:
        return format(self.held, spec)

    def __repr__(self, **_: object) -> str:
        return f"pretend {self.held}"


def _each(function, value: Any) -> Any:
    """The function on every tensor of an operation's argument or result; lists are one deep."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_each(function, item) for item in value)
    return value


def held(x: torch.Tensor) -> torch.Tensor:
    return x.held if isinstance(x, Pretend) else x


def run(func, args: tuple, kwargs: dict) -> Any:
    """One operation of torch: refused where a GPU would refuse it, else done on the CPU data."""
    if func is aten._to_copy.default:
        return _moved(func, args[0], dict(kwargs))
    if func is aten.copy_.default:
        held(args[0]).copy_(held(args[1]))
        return args[0]
    tensors: list[torch.Tensor] = []
    _each(tensors.append, [*args, *kwargs.values()])
    _check(func, args, tensors)
    kwargs = {**kwargs, **({"device": "cpu"} if kwargs.get("device") is not None else {})}
    done = func(*_each(held, args), **{key: _each(held, value) for key, value in kwargs.items()})
    ours = {id(x.held): x for x in tensors if isinstance(x, Pretend)}
    if torch.Tag.inplace_view in func.tags:  # transpose_ and its kin: the outside has a shape, too
        with no_dispatch():
            func(*args, **kwargs)
    assert all(x.shape == x.held.shape for x in ours.values()), f"{func} changed a tensor's size"
    return _each(lambda x: ours[id(x)] if id(x) in ours else Pretend(x), done)


def _check(func, args: tuple, tensors: list[torch.Tensor]) -> None:
    if SEEDED in func.tags:
        raise RuntimeError(f"{func} draws on the device: draw on the CPU, and move what was drawn")
    foreign = [x for x in tensors if not isinstance(x, Pretend)]
    if not foreign:
        return
    if func in TAKES_INDICES and isinstance(args[0], Pretend):
        foreign = [x for x in foreign if not any(x is index for index in args[1])]
    if POINTWISE in func.tags or func in TAKES_SCALARS:
        foreign = [x for x in foreign if x.dim()]
    if foreign:
        shapes = [tuple(x.shape) for x in foreign]
        raise RuntimeError(f"tensors on two devices: {func} mixes pretend and cpu {shapes}")


def _moved(func, x: torch.Tensor, kwargs: dict) -> torch.Tensor:
    """`.to(device)` and `.to(dtype)`, the only way from one device to another beside `copy_`."""
    target = kwargs.pop("device", None) or x.device
    kwargs.pop("pin_memory", None)
    moved = func(held(x), **kwargs)
    return Pretend(moved) if torch.device(target).type == DEVICE.type else moved


def _made(name: str):
    """A tensor that is made on the device: on the CPU, and then said to lie there."""
    function = getattr(aten, name.partition(".")[0])
    overload = getattr(function, name.partition(".")[2] or "default")

    def make(*args, device=None, pin_memory=None, **kwargs):
        if device is not None and (device.index or 0) >= Backend.device_count():
            raise RuntimeError(f"device {device}: there is one, pretend:0")
        return Pretend(overload(*args, **kwargs, device="cpu"))

    return make


def _copy_from(source, target, non_blocking=False):
    held(target).copy_(held(source))
    return target


_library = torch.library.Library("aten", "IMPL")
_library.impl("_copy_from", _copy_from, "PrivateUse1")
for _name in (
    *("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step"),
    *("eye", "eye.m", "linspace", "logspace", "tril_indices", "triu_indices"),
):
    _library.impl(_name, _made(_name), "PrivateUse1")
